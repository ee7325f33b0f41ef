// What the CUDA kernels are called with. Nothing is checked here: ops/ has checked shapes and dtypes, backends/cuda has
// made everything contiguous and chosen the launch (backends/cuda/plan.py), and no size reaches 2^31.
#pragma once
#include <cuda_runtime_api.h>

#include <cstdint>

#include "cuda/numbers.h"

namespace dk {

enum GateKind { no_gate, one_gate, gate_by_index, gate_each };

// a = (y + bias) combined with the row's gate and rounded; winners are ranked by a * boost. Absent: null.
template <class T> struct RowGate {
  const T *y, *bias;
  const Wide<T> *gate, *boost;
  const void* index;  // int32 or, with wide_index, int64
  int kind, wide_index, add;
};

// Dense: z and kept [B, O]; or k-sparse: values, pre and indices [B, k], 1 <= k <= O.
template <class T> struct KWinners {
  RowGate<T> how;
  int B, O, k;
  int relu, keep_ties;
  T* z;
  uint8_t* kept;
  T* values;
  Wide<T>* pre;
  int32_t* indices;
};

// A warp a row: rows of up to 32 * entries units, `warps` rows a block.
template <class T> void kwinners_by_warp(const KWinners<T>&, int entries, int warps, cudaStream_t);
// A block a row.
template <class T> void kwinners_by_block(const KWinners<T>&, cudaStream_t);
// Blocks of `tile` units of a row. memory: zeros; split_bytes says how many.
template <class T> void kwinners_split(const KWinners<T>&, int tile, void* memory, cudaStream_t);
template <class T> int64_t split_bytes(int64_t B, int64_t tiles);

// y [B, O] = x W^T + bias for k-sparse x [B, I]; one of the weight's strides is 1.
template <class T> struct GatherProduct {
  const T* values;
  const int32_t* indices;
  int B, k, O;
  const T* weight;
  int64_t stride_o, stride_i;
  const T* bias;
  T* y;
};
template <class T> void gather_product(const GatherProduct<T>&, cudaStream_t);

// out [rows, n] = the k-sparse [B, rows]^T times the other [B, n]: dense, or (m > 0) m entries a sample at `columns`.
template <class T> struct Outer {
  const T* values;
  const int32_t* indices;
  int B, k, rows;
  const T* other;
  const int32_t* columns;
  int n, m;
  T* out;
};
template <class T> void outer(const Outer<T>&, int warps, cudaStream_t);

// Adam on p [rows, n] by that gradient, which is not written (Outer::out is not read). rule: lr / (1 - beta1^t) and
// sqrt(1 - beta2^t); hyper: lr, beta1, beta2 and eps. Entries where keep (or null) is zero become zero, moments too. With
// omega (or null), Synaptic Intelligence: strength * importance * (p - reference) joins the gradient, and omega falls by
// the gradient (counts_penalty: with that in it) times what p moved.
template <class T> struct AdamStep {
  T *p, *m, *v;
  const uint8_t* keep;
  const double *rule, *hyper;
  T* omega;
  const T *importance, *reference;
  double strength;
  int counts_penalty;
};
template <class T> void adam_outer(const Outer<T>&, const AdamStep<T>&, int warps, cudaStream_t);

}  // namespace dk
