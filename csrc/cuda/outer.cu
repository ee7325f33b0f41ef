// The gradient of a weight between k-sparse rows: a warp owns a row of it, finds the samples that have an entry there
// and adds them in the order of the batch. No atomics, so the same bits from run to run.
#include "cuda/device_warp.h"
#include "cuda/launch.h"
#include "cuda/kernels.h"

namespace dk {
namespace {

constexpr int most_warps = 4, columns_a_lane = 32;

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

// Dense others: 32 * columns_a_lane columns of a row a warp, in registers.
template <class T> __global__ void __launch_bounds__(32 * most_warps) outer_dense(const __grid_constant__ Outer<T> p) {
  using X = Wide<T>;
  const int row = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
  if (row >= p.rows) return;  // the whole warp
  const int begin = blockIdx.y * 32 * columns_a_lane + DeviceWarp::lane();
  X sums[columns_a_lane] = {};
  for_each_entry(p, row, [&](int sample, X value) {
    const T* const other = p.other + (int64_t)sample * p.n;
#pragma unroll
    for (int c = 0; c < columns_a_lane; c++)
      if (begin + 32 * c < p.n) sums[c] = fma(value, widen(other[begin + 32 * c]), sums[c]);
  });
#pragma unroll
  for (int c = 0; c < columns_a_lane; c++)
    if (begin + 32 * c < p.n) p.out[(int64_t)row * p.n + begin + 32 * c] = narrow<T>(sums[c]);
}

// k-sparse others, whose indices differ within a sample: the whole row in shared memory, a warp a row. A sample's columns
// go to different lanes, and __syncwarp orders one sample's before the next's, which other lanes may have.
template <class T> __global__ void __launch_bounds__(32 * most_warps) outer_sparse(const __grid_constant__ Outer<T> p) {
  using X = Wide<T>;
  DK_SHARED_MEMORY(memory);
  const int warp = threadIdx.x / 32, row = blockIdx.x * (blockDim.x / 32) + warp;
  if (row >= p.rows) return;  // the whole warp
  X* const sums = (X*)memory + (int64_t)warp * p.n;
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
  for (int c = DeviceWarp::lane(); c < p.n; c += 32) p.out[(int64_t)row * p.n + c] = narrow<T>(sums[c]);
}

}  // namespace

template <class T> void outer(const Outer<T>& p, int warps, cudaStream_t stream) {
  const int blocks = (p.rows + warps - 1) / warps, tile = 32 * columns_a_lane;
  const size_t row = (size_t)p.n * sizeof(Wide<T>);
  if (p.columns) DK_LAUNCH(outer_sparse, blocks, 32 * warps, warps * row, stream, p);
  else DK_LAUNCH(outer_dense, dim3(blocks, (p.n + tile - 1) / tile), 32 * warps, 0, stream, p);
}

#define DK_INSTANCE(T) template void outer(const Outer<T>&, int warps, cudaStream_t);
DK_FOR_EACH_DTYPE(DK_INSTANCE)

}  // namespace dk
