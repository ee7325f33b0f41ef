// A row of y as its bias, gate and boost make it.
#pragma once
#include "core/order.h"
#include "cuda/kernels.h"

namespace dk {

template <class T> struct Row {
  const T *y, *bias;
  const Wide<T> *gate, *boost;
  bool add;

  __device__ Row(const RowGate<T>& how, int64_t b, int64_t units)
      : y(how.y + b * units), bias(how.bias), gate(how.gate), boost(how.boost), add(how.add) {
    if (how.kind == gate_each) gate += b * units;
    if (how.kind == gate_by_index)
      gate += units * (how.wide_index ? ((const int64_t*)how.index)[b] : ((const int32_t*)how.index)[b]);
  }

  // y + bias, unrounded.
  __device__ Wide<T> pre(int i) const { return bias ? widen(y[i]) + widen(bias[i]) : widen(y[i]); }

  __device__ T combined(int i, Wide<T> pre) const {
    return narrow<T>(!gate ? pre : add ? pre + gate[i] : pre * gate[i]);
  }

  __device__ RankKey<Wide<T>> key(int i, T a) const { return rank_key(boost ? widen(a) * boost[i] : widen(a)); }
};

// Where entry i of row b goes.
template <class T> struct Results {
  const KWinners<T>& p;
  const int64_t b;

  __device__ bool passes(T a) const { return !p.relu || !(widen(a) <= 0); }

  __device__ void winner(int i, int place, T a, Wide<T> pre) const {
    const bool passing = passes(a);
    const T out = passing ? a : narrow<T>(0);
    if (p.values) {
      const int64_t to = b * p.k + place;
      p.values[to] = out, p.pre[to] = pre, p.indices[to] = i;
    } else {
      const int64_t to = b * p.O + i;
      p.z[to] = out, p.kept[to] = passing;
    }
  }

  __device__ void loser(int i) const {
    if (p.values) return;
    const int64_t to = b * p.O + i;
    p.z[to] = narrow<T>(0), p.kept[to] = 0;
  }
};

}  // namespace dk
