// Ordered keys: integers that compare as the contract ranks floats (-0.0 equal to 0.0, every NaN above +inf).
#pragma once
#include <cstdint>
#include <cstring>
#include <limits>

namespace dk {

template <class T> struct KeyOf;
template <> struct KeyOf<float> { using type = int32_t; };
template <> struct KeyOf<double> { using type = int64_t; };
template <class T> using Key = typename KeyOf<T>::type;

template <class T> static inline Key<T> ordered_key(T value) {
  using K = Key<T>;
  if (value != value) return std::numeric_limits<K>::max();
  value += T(0);  // -0.0 becomes 0.0
  K bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits ^ ((bits >> (8 * sizeof(K) - 1)) & std::numeric_limits<K>::max());
}

}  // namespace dk
