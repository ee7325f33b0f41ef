// A step of Adam on an entry of a weight whose gradient has just been summed, as backends/triton/adam.py's `dense` makes it.
#pragma once
#include "cuda/kernels.h"

namespace dk {

__device__ __forceinline__ float root_of(float a) { return sqrtf(a); }
__device__ __forceinline__ double root_of(double a) { return sqrt(a); }

template <class T> class AdamEntry {
 public:
  __device__ __forceinline__ explicit AdamEntry(const AdamStep<T>& how)
      : how_(how), rate_(how.rule[0]), root_(how.rule[1]), rest1_(1 - how.hyper[1]), rest2_(1 - how.hyper[2]),
        eps_(how.hyper[3]), strength_(how.strength) {}

  __device__ __forceinline__ void operator()(int64_t at, T grad) const {
    const T old = how_.p[at];
    T seen = grad;
    if (how_.omega) {
      grad += strength_ * how_.importance[at] * (old - how_.reference[at]);
      if (how_.counts_penalty) seen = grad;
    }
    T first = how_.m[at], second = how_.v[at];
    first += (grad - first) * rest1_;
    second += (grad * grad - second) * rest2_;
    T moved = old - rate_ * first / (root_of(second) / root_ + eps_);
    if (how_.keep && !how_.keep[at]) moved = first = second = 0;
    if (how_.omega) how_.omega[at] -= seen * (moved - old);
    how_.p[at] = moved, how_.m[at] = first, how_.v[at] = second;
  }

 private:
  const AdamStep<T>& how_;
  T rate_, root_, rest1_, rest2_, eps_, strength_;
};

}  // namespace dk
