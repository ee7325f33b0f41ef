// The CPU kernels' arguments, and the table through which the running chip's version of each is called.
// All matrices are row-major and contiguous unless strides are given (in elements). Names as in reference.py.
#pragma once
#include <cstdint>

namespace dk {

template <class T> struct SegmentGate {  // gate, winner [G, O] of context [G, C], segments [O, S, C], bias [O, S]?
  const T *context, *segments, *bias;
  int64_t G, O, S, C;
  bool abs_max, sigmoid;
  T* gate;
  int32_t* winner;
  const T* known;  // [O, S]: the activations of the one context, and segments are not read; or null
  T* activations;  // [O, S]: takes the activations of the one context; or null
  int threads;
};

template <class T> struct SegmentGateBackward {  // grad_* may be null: not wanted
  const T *grad_gate, *context, *segments, *gate;
  const int32_t* winner;
  int64_t G, O, S, C;
  bool sigmoid;
  T *grad_context, *grad_segments, *grad_bias;
  int threads;
};

template <class T> struct RowGate {  // how a row of y becomes what is ranked: bias?, gate [G, O]?, boost?
  const T *bias, *gate, *boost;
  const int32_t* context_index;  // [B]; null: one gate row for all, or one each
  int64_t G;
  bool add;
  const T* row(int64_t b, int64_t units) const {
    return gate ? gate + (context_index ? context_index[b] : G == 1 ? 0 : b) * units : nullptr;
  }
  int64_t group(int64_t b) const { return context_index ? context_index[b] : G == 1 ? 0 : b; }
};

template <class T> struct KWinners {  // either z and kept [B, O], or values, indices and pre [B, k]
  const T* y;
  RowGate<T> how;
  int64_t B, O, k;
  bool relu, keep_ties;
  T* z;
  uint8_t* kept;
  T *values, *pre;
  int32_t* indices;
  int threads;
};

template <class T> struct KWinners2d {  // z and kept [B, C, A] of y [B, C, A]; how: gate [G, C], boost [C], no bias
  const T* y;
  RowGate<T> how;
  int64_t B, C, A, k;
  bool local, relu, keep_ties;
  T* z;
  uint8_t* kept;
  int threads;
};

template <class T> struct KWinners2dBackward {  // grad_y [B, C, A] and grad_gate [G, C] may be null
  const T *grad_z, *y;
  const uint8_t* kept;
  RowGate<T> how;
  int64_t B, C, A;
  T *grad_y, *grad_gate;
  int threads;
};

template <class T> struct KWinnersBackward {  // of the dense form
  const T *grad_z, *y;
  const uint8_t* kept;
  RowGate<T> how;
  int64_t B, O;
  T *grad_y, *grad_gate, *grad_bias;
  int threads;
};

template <class T> struct WinnersBackward {  // of the sparse form; grad_y [B, k] at the winners
  const T *grad_values, *values, *pre;
  const int32_t* indices;
  RowGate<T> how;
  int64_t B, O, k;
  bool relu;
  T *grad_y, *grad_gate, *grad_bias;
  int threads;
};

// y[b, :] = bias + sum_j values[b, j] * m[indices[b, j], :], m [I, O] given by strides.
template <class T> struct KSparseMatmul {
  const T* values;
  const int32_t* indices;
  int64_t B, k, I, O;
  const T* m;
  int64_t stride_i, stride_o;
  const T* bias;
  T* y;
  int threads;
};

// y = x m for a dense x [B, I] of which most entries equal one number; at most the share most_others do not.
template <class T> struct MostlyConstantMatmul {
  const T* x;
  int64_t B, I, O;
  const T* m;
  int64_t stride_i, stride_o;
  double most_others;
  bool few;       // few samples: summed in the order in which rows are read in place, as they are where sums are known
  const T* sums;  // [O]: m's columns summed; null: not known
  T* y;
  int threads;
};

// The entries q = b * k + j of indices [B, k] by the unit that they name: those of unit u are entry[i], of the samples
// sample[i], for start[u] <= i < start[u + 1].
struct MakeUnitLists {
  const int32_t* indices;
  int64_t B, k, units;
  int32_t *start, *entry, *sample;  // [units + 1], [B * k], [B * k]
  int32_t *used, *place;            // [units]: the units that are named, ascending; each one's number among them
};

// grad_m[i, :] = sum over (b, j) with indices[b, j] == i of values[b, j] * r[b, :], and
// grad_values[b, j] = r[b, :] . m[indices[b, j], :].  r [B, n] holds the columns cols (null: all O, in order).
// The indices come as their unit lists.
template <class T> struct KSparseOuter {
  const T* values;
  const int32_t *start, *entry, *sample;
  int64_t B, k, I, O;
  const T* r;
  int64_t n;
  const int32_t* cols;
  const T* m;
  int64_t stride_i, stride_o;
  T* grad_m;
  int64_t grad_stride_i, grad_stride_o;
  T* grad_values;
  // Or grad_m only where it can be other than zero: sums [units in use + 1, pitch] over the columns cols; or null.
  T* sums;
  int64_t pitch;         // n, rounded up to 16
  const int32_t* place;  // [I]: a unit's number among those in use
  int threads;
};

template <class T> struct AdamRule {
  T one_minus_beta1, beta2, one_minus_beta2, inverse_root_correction2, step, eps;
  double beta1, wide_beta2;
  int32_t now;    // number of this step, from 1
  bool may_rest;  // no step from now on moves a row without gradient more than this one does
};

// Synaptic Intelligence beside a step, [I, O] as the weight: the gradient gets strength * importance * (weight -
// reference) added, and omega falls by the gradient (with that part in it or without) times the weight's change.
template <class T> struct Synapses {
  T* omega;  // null: no such thing
  const T *importance, *reference;
  T strength;           // 2 c; 0: no penalty
  bool counts_penalty;  // in omega
};

// Adam on weight [I, O], whose gradient is `outer`'s grad_m: it is taken from outer.sums, or made.
template <class T> struct AdamOuter {
  KSparseOuter<T> outer;
  AdamRule<T> rule;
  T* weight;              // contiguous [I, O]
  T *m, *v;               // of row i's unmasked entries, side by side from start[i] on
  const int64_t* start;   // [I + 1]
  const uint16_t* bits;   // [I, O / 16 rounded up]: 1 where not masked; null: nothing is masked
  int32_t* since;         // [I], see adam.h
  Synapses<T> synapses;
};

// Adam on the touched rows of segments [O, S, C]: row rows[t] has moments m[t], v[t], of C entries or, with rank1, one.
template <class T> struct AdamSegments {
  const T *grad, *context;  // of the winning activations [G, O]; [G, C]
  const int32_t* winner;    // [G, O]
  int64_t G, O, S, C;
  AdamRule<T> rule;
  const int32_t* rows;
  int32_t* since;  // [count], see adam.h
  int64_t count;
  bool rank1;
  T *segments, *m, *v;
  const uint8_t* keep;  // [O, S, C]; null: nothing is masked
  T* activations;       // [O, S] of the one context, kept up to date; null: not wanted
  int threads;
};

template <class T> struct Densify {  // z [B, O] from values at indices, or (gather) values from z
  T* values;
  const int32_t *indices, *place;  // place: unit -> column of z, and the indices are known to be in range; or null
  int64_t B, k, O;
  T* z;
  bool gather;
  int threads;
};

// seen += batch; duty = (duty * (period - batch) + how often a unit's value is above 0) / period
template <class T> struct DutyCycle {
  T* duty;
  const T* values;
  const int32_t* indices;  // [batch, k], in range
  int64_t* seen;           // one number; the period is it, at least batch and at most longest
  int64_t units, batch, k, longest;
};

template <class T> struct AdamDense {  // all four in one memory order
  AdamRule<T> rule;
  T *p, *m, *v;
  const T* grad;
  int64_t n;
  int threads;
};

template <class T> struct Rezero {  // weight = 0 where keep is 0, both in the same memory order
  T* weight;
  const uint8_t* keep;
  int64_t n;
  int threads;
};

// Kernels that read indices return the flat position q of the first one out of range, or -1; unit_lists returns the
// number of units that are named, or -1 - q.
template <class T> struct Kernels {
  void (*segment_gate)(const SegmentGate<T>&);
  void (*segment_gate_backward)(const SegmentGateBackward<T>&);
  void (*kwinners)(const KWinners<T>&);
  void (*kwinners_backward)(const KWinnersBackward<T>&);
  int64_t (*winners_backward)(const WinnersBackward<T>&);
  void (*kwinners2d)(const KWinners2d<T>&);
  void (*kwinners2d_backward)(const KWinners2dBackward<T>&);
  int64_t (*ksparse_matmul)(const KSparseMatmul<T>&);
  bool (*mostly_constant_matmul)(const MostlyConstantMatmul<T>&);
  int64_t (*unit_lists)(const MakeUnitLists&);
  void (*ksparse_outer)(const KSparseOuter<T>&);
  int64_t (*densify)(const Densify<T>&);
  void (*duty_cycle)(const DutyCycle<T>&);
  void (*rezero)(const Rezero<T>&);
  void (*adam_outer)(const AdamOuter<T>&);
  void (*adam_segments)(const AdamSegments<T>&);
  void (*adam_dense)(const AdamDense<T>&);
};

namespace portable { template <class T> Kernels<T> table(); }
namespace avx2 { template <class T> Kernels<T> table(); }
namespace avx512 { template <class T> Kernels<T> table(); }

enum class Isa { portable, avx2, avx512 };
const char* name(Isa);
bool supported(Isa);
Isa current_isa();
void set_isa(Isa);
template <class T> const Kernels<T>& kernels();

}  // namespace dk
