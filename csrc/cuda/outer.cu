// The gradient of a weight between k-sparse rows: a warp owns a row of it, finds the samples that have an entry there
// and adds them in the order of the batch. No atomics, so the same bits from run to run. What is summed is written, or
// steps the weight at once: then no gradient is ever in memory.
#include "cuda/adam_step.h"
#include "cuda/device_warp.h"
#include "cuda/launch.h"
#include "cuda/kernels.h"

namespace dk {
namespace {

constexpr int most_warps = 4, at_once = 4;
template <class T> constexpr int columns_a_lane = sizeof(T) == 8 ? 16 : 32;  // more would spill

// The first of `count` ascending numbers that is not below `least`.
__device__ __forceinline__ int lower_bound(const int32_t* numbers, int count, int least) {
  int begin = 0;
  while (count) {
    const int half = count / 2;
    const bool beyond = numbers[begin + half] < least;
    begin = beyond ? begin + half + 1 : begin;
    count = beyond ? count - half - 1 : half;
  }
  return begin;
}

// Calls add(sample, value) for each entry of the row, by sample, with the whole warp.
template <class T, class F> __device__ __forceinline__ void for_each_entry(const Outer<T>& p, int row, F add) {
  for (int b0 = 0; b0 < p.B; b0 += 32) {
    const int b = b0 + DeviceWarp::lane();
    int at = 0;
    bool has = false;
    if (b < p.B) {
      const int32_t* const indices = p.indices + (int64_t)b * p.k;
      at = lower_bound(indices, p.k, row);
      has = at < p.k && indices[at] == row;
    }
    for (uint32_t hits = DeviceWarp::ballot(has); hits; hits &= hits - 1) {
      const int lane = DeviceWarp::first(hits), sample = b0 + lane;
      const int64_t first = (int64_t)sample * p.k;
      // an index may be there more than once
      for (int j = DeviceWarp::from(at, lane); j < p.k && p.indices[first + j] == row; j++)
        add(sample, widen(p.values[first + j]));
    }
  }
}

// What becomes of sums: they are written, N that lie 32 apart at once; or Stepped.
template <class T> class Written {
 public:
  __device__ __forceinline__ explicit Written(T* out) : out_(out) {}
  template <int N> __device__ __forceinline__ void operator()(int64_t at, int left, const Wide<T>* sums) const {
#pragma unroll
    for (int i = 0; i < N; i++)
      if (32 * i < left) out_[at + 32 * i] = narrow<T>(sums[i]);
  }

 private:
  T* out_;
};

// Dense others: a tile of the warp's row, summed in registers.
template <class Done, class T, class How>
__device__ __forceinline__ void dense_row(const Outer<T>& p, int row, const How& how) {
  using X = Wide<T>;
  constexpr int N = columns_a_lane<T>;
  const int begin = blockIdx.y * 32 * N + DeviceWarp::lane();
  X sums[N] = {};
  for_each_entry(p, row, [&](int sample, X value) {
    const T* const other = p.other + (int64_t)sample * p.n;
#pragma unroll
    for (int c = 0; c < N; c++)
      if (begin + 32 * c < p.n) sums[c] = fma(value, widen(other[begin + 32 * c]), sums[c]);
  });
  const Done done(how);  // not before: what it holds is not needed while the sums are made
#pragma unroll
  for (int c = 0; c < N; c += at_once)
    done.template operator()<at_once>((int64_t)row * p.n + begin + 32 * c, p.n - begin - 32 * c, sums + c);
}

// k-sparse others, whose indices differ within a sample: the whole row in shared memory, a warp a row. A sample's columns
// go to different lanes, and __syncwarp orders one sample's before the next's, which other lanes may have.
template <class Done, class T, class How>
__device__ __forceinline__ void sparse_row(const Outer<T>& p, int row, void* memory, const How& how) {
  using X = Wide<T>;
  X* const sums = (X*)memory + (int64_t)(threadIdx.x / 32) * p.n;
  for (int c = DeviceWarp::lane(); c < p.n; c += 32) sums[c] = 0;
  __syncwarp();
  for_each_entry(p, row, [&](int sample, X value) {
    const int64_t first = (int64_t)sample * p.m;
    for (int q = DeviceWarp::lane(); q < p.m; q += 32) {
      X& sum = sums[p.columns[first + q]];
      sum = fma(value, widen(p.other[first + q]), sum);
    }
    __syncwarp();
  });
  const Done done(how);
  for (int c = DeviceWarp::lane(); c < p.n; c += 32 * at_once) {
    X some[at_once];
#pragma unroll
    for (int i = 0; i < at_once; i++) some[i] = c + 32 * i < p.n ? sums[c + 32 * i] : X(0);
    done.template operator()<at_once>((int64_t)row * p.n + c, p.n - c, some);
  }
}

__device__ __forceinline__ int row_of_warp() { return blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32; }

template <class T> __global__ void __launch_bounds__(32 * most_warps) outer_dense(const __grid_constant__ Outer<T> p) {
  const int row = row_of_warp();
  if (row < p.rows) dense_row<Written<T>>(p, row, p.out);  // whole warps
}

template <class T> __global__ void __launch_bounds__(32 * most_warps) outer_sparse(const __grid_constant__ Outer<T> p) {
  DK_SHARED_MEMORY(memory);
  const int row = row_of_warp();
  if (row < p.rows) sparse_row<Written<T>>(p, row, memory, p.out);
}

template <class T>
__global__ void __launch_bounds__(32 * most_warps)
    adam_outer_dense(const __grid_constant__ Outer<T> p, const __grid_constant__ AdamStep<T> step) {
  const int row = row_of_warp();
  if (row < p.rows) dense_row<Stepped<T>>(p, row, step);
}

template <class T>
__global__ void __launch_bounds__(32 * most_warps)
    adam_outer_sparse(const __grid_constant__ Outer<T> p, const __grid_constant__ AdamStep<T> step) {
  DK_SHARED_MEMORY(memory);
  const int row = row_of_warp();
  if (row < p.rows) sparse_row<Stepped<T>>(p, row, memory, step);
}

// Blocks of `warps` rows; where the others are dense, of their columns tile by tile.
template <class T> dim3 grid_of(const Outer<T>& p, int warps) {
  const int tile = 32 * columns_a_lane<T>;
  return dim3((p.rows + warps - 1) / warps, p.columns ? 1 : (p.n + tile - 1) / tile);
}
template <class T> size_t shared_bytes(const Outer<T>& p, int warps) { return (size_t)warps * p.n * sizeof(Wide<T>); }

}  // namespace

template <class T> void outer(const Outer<T>& p, int warps, cudaStream_t stream) {
  const dim3 grid = grid_of(p, warps);
  if (p.columns) DK_LAUNCH(outer_sparse, grid, 32 * warps, shared_bytes(p, warps), stream, p);
  else DK_LAUNCH(outer_dense, grid, 32 * warps, 0, stream, p);
}

template <class T> void adam_outer(const Outer<T>& p, const AdamStep<T>& step, int warps, cudaStream_t stream) {
  const dim3 grid = grid_of(p, warps);
  if (p.columns) DK_LAUNCH(adam_outer_sparse, grid, 32 * warps, shared_bytes(p, warps), stream, p, step);
  else DK_LAUNCH(adam_outer_dense, grid, 32 * warps, 0, stream, p, step);
}

#define DK_INSTANCE(T) template void outer(const Outer<T>&, int warps, cudaStream_t);
DK_FOR_EACH_DTYPE(DK_INSTANCE)
template void adam_outer(const Outer<float>&, const AdamStep<float>&, int warps, cudaStream_t);
template void adam_outer(const Outer<double>&, const AdamStep<double>&, int warps, cudaStream_t);

}  // namespace dk
