// A warp of the device: a lane a thread. See core/host_warp.h for what a policy promises.
//
// All 32 threads of the warp must arrive at each function: callers leave a kernel, and branch, by whole warps only.
#pragma once
#include <cstdint>

#define DK_WARP __device__ __forceinline__
#define DK_UNROLL _Pragma("unroll")

namespace dk {

struct DeviceWarp {
  template <class T> using Lanes = T;
  static constexpr unsigned all = 0xffffffffu;

  static DK_WARP int lane() { return threadIdx.x & 31; }
  static DK_WARP uint32_t ballot(bool p) { return __ballot_sync(all, p); }
  static DK_WARP int below(uint32_t bits) { return __popc(bits & ((1u << lane()) - 1)); }
  static DK_WARP int count(uint32_t bits) { return __popc(bits); }
  static DK_WARP int first(uint32_t bits) { return __ffs(bits) - 1; }
  static DK_WARP int sum(int a) { return __reduce_add_sync(all, a); }
  static DK_WARP uint32_t largest(uint32_t a) { return __reduce_max_sync(all, a); }
  static DK_WARP uint64_t largest(uint64_t a) {
DK_UNROLL
    for (int d = 16; d; d /= 2) {
      const uint64_t other = __shfl_xor_sync(all, a, d);
      a = other > a ? other : a;
    }
    return a;
  }
  static DK_WARP int sum_below(int a) {
    int sum = a;
DK_UNROLL
    for (int d = 1; d < 32; d *= 2) {
      const int lower = __shfl_up_sync(all, sum, d);
      if (lane() >= d) sum += lower;
    }
    return sum - a;
  }
  template <class T> static DK_WARP T from(T a, int lane) { return __shfl_sync(all, a, lane); }
  template <class T> static DK_WARP T select(bool p, T a, T b) { return p ? a : b; }
  template <class T> static DK_WARP T load(const T* from, int at, bool mask, T other) { return mask ? from[at] : other; }
  template <class T, class V> static DK_WARP void store(T* to, int at, V value, bool mask) {
    if (mask) to[at] = (T)value;
  }
  static DK_WARP void sync() { __syncwarp(); }
};

}  // namespace dk
