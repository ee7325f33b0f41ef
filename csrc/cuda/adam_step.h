// A step of Adam on entries of a weight whose gradient has just been summed, as backends/triton/adam.py's `dense` makes it.
#pragma once
#include "cuda/kernels.h"

namespace dk {

__device__ __forceinline__ float root_of(float a) { return sqrtf(a); }
__device__ __forceinline__ double root_of(double a) { return sqrt(a); }

template <class T> class Stepped {
 public:
  __device__ __forceinline__ explicit Stepped(const AdamStep<T>& how)
      : how_(how), rate_(how.rule[0]), inverse_root_(1 / how.rule[1]), rest1_(1 - how.hyper[1]),
        rest2_(1 - how.hyper[2]), eps_(how.hyper[3]), strength_(how.strength) {}

  // N entries 32 apart, those that lie before `left`. All are read before one is written: a warp then waits once, not N
  // times, as the compiler can't know that the weights are not the moments. An array each: as scalars of the loop, two of
  // them cost a spill on sm_100.
  template <int N> __device__ __forceinline__ void operator()(int64_t at, int left, const T* sums) const {
    const auto read = [=](const auto* from, int i) { return 32 * i < left ? from[at + 32 * i] : 0; };
    T p[N], m[N], v[N], grad[N], importance[N], reference[N], omega[N];
    bool keep[N];
#pragma unroll
    for (int i = 0; i < N; i++) {
      p[i] = read(how_.p, i), m[i] = read(how_.m, i), v[i] = read(how_.v, i);
      keep[i] = !how_.keep || read(how_.keep, i);
      grad[i] = sums[i];
    }
    if (how_.omega) {
#pragma unroll
      for (int i = 0; i < N; i++) {
        importance[i] = read(how_.importance, i), reference[i] = read(how_.reference, i), omega[i] = read(how_.omega, i);
        grad[i] += strength_ * importance[i] * (p[i] - reference[i]);
      }
    }
#pragma unroll
    for (int i = 0; i < N; i++) {
      m[i] += (grad[i] - m[i]) * rest1_;
      v[i] += (grad[i] * grad[i] - v[i]) * rest2_;
      T moved = p[i] - rate_ * m[i] / (root_of(v[i]) * inverse_root_ + eps_);
      if (!keep[i]) moved = m[i] = v[i] = 0;
      if (how_.omega) omega[i] -= (how_.counts_penalty ? grad[i] : sums[i]) * (moved - p[i]);
      p[i] = moved;
    }
#pragma unroll
    for (int i = 0; i < N; i++) {
      if (32 * i >= left) continue;
      how_.p[at + 32 * i] = p[i], how_.m[at + 32 * i] = m[i], how_.v[at + 32 * i] = v[i];
      if (how_.omega) how_.omega[at + 32 * i] = omega[i];
    }
  }

 private:
  const AdamStep<T>& how_;
  T rate_, inverse_root_, rest1_, rest2_, eps_, strength_;
};

}  // namespace dk
