// Ordered keys: integers that compare as the contract ranks floats (-0.0 equal to 0.0, every NaN above +inf).
#pragma once
#include <cstdint>
#include <cstring>

#ifdef __CUDACC__
#define DK_ANYWHERE __host__ __device__ __forceinline__
#else
#define DK_ANYWHERE static inline
#endif

namespace dk {

template <class T> struct KeyOf;
template <> struct KeyOf<float> { using type = int32_t; using rank = uint32_t; };
template <> struct KeyOf<double> { using type = int64_t; using rank = uint64_t; };
template <class T> using Key = typename KeyOf<T>::type;
template <class T> using RankKey = typename KeyOf<T>::rank;

template <class T> DK_ANYWHERE Key<T> ordered_key(T value) {
  using K = Key<T>;
  constexpr K top = (K)(~RankKey<T>(0) >> 1);
  if (value != value) return top;
  value += T(0);  // -0.0 becomes 0.0
  K bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits ^ ((bits >> (8 * sizeof(K) - 1)) & top);
}

// The same order in unsigned numbers. No float has key 0, which stands for no entry; NaN has the largest.
template <class T> DK_ANYWHERE RankKey<T> rank_key(T value) {
  using K = RankKey<T>;
  return (K)ordered_key(value) ^ (K(1) << (8 * sizeof(K) - 1));
}

}  // namespace dk
