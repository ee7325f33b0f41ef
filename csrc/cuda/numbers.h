// The four dtypes: what they are computed in, and how they are rounded.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "core/order.h"

namespace dk {

using bf16 = __nv_bfloat16;
using fp16 = __half;

template <class T> struct WideOf { using type = float; };
template <> struct WideOf<double> { using type = double; };
template <class T> using Wide = typename WideOf<T>::type;

#ifdef __CUDACC__

__device__ __forceinline__ float widen(float a) { return a; }
__device__ __forceinline__ double widen(double a) { return a; }
__device__ __forceinline__ float widen(bf16 a) { return __bfloat162float(a); }
__device__ __forceinline__ float widen(fp16 a) { return __half2float(a); }

template <class T> __device__ __forceinline__ T narrow(Wide<T> a) { return a; }
template <> __device__ __forceinline__ bf16 narrow<bf16>(float a) { return __float2bfloat16_rn(a); }
template <> __device__ __forceinline__ fp16 narrow<fp16>(float a) { return __float2half_rn(a); }

// Four at once, where they lie on a boundary of as many bytes (16 at most).
template <class T> struct alignas(sizeof(T) < 4 ? 4 * sizeof(T) : 16) Four {
  T v[4];
};

#endif

}  // namespace dk
