// y = x W^T + bias for few k-sparse rows x: gathers the columns of W that a row's entries name. Sums have one order.
#include "cuda/device_warp.h"
#include "cuda/launch.h"
#include "cuda/kernels.h"

namespace dk {
namespace {

constexpr int warps = 8;

// A weight stored by input: a lane a unit, 32 units of a sample a block, whose warps share the sample's entries.
template <class T> __global__ void __launch_bounds__(32 * warps) gather_columns(const __grid_constant__ GatherProduct<T> p) {
  using X = Wide<T>;
  __shared__ X parts[warps][32];
  const int lane = DeviceWarp::lane(), warp = threadIdx.x / 32, o = 32 * blockIdx.x + lane;
  const int64_t first = (int64_t)blockIdx.y * p.k;
  X sum = 0;
  if (o < p.O) {
#pragma unroll 4
    for (int j = warp; j < p.k; j += warps)
      sum = fma(widen(p.values[first + j]), widen(p.weight[p.indices[first + j] * p.stride_i + o]), sum);
  }
  parts[warp][lane] = sum;
  __syncthreads();
  if (warp || o >= p.O) return;
#pragma unroll
  for (int w = 1; w < warps; w++) sum += parts[w][lane];
  if (p.bias) sum += widen(p.bias[o]);
  p.y[(int64_t)blockIdx.y * p.O + o] = narrow<T>(sum);
}

// A weight stored by unit: a warp a unit of a sample, whose lanes share the sample's entries.
template <class T> __global__ void __launch_bounds__(32 * warps) gather_rows(const __grid_constant__ GatherProduct<T> p) {
  using X = Wide<T>;
  const int lane = DeviceWarp::lane(), o = warps * blockIdx.x + threadIdx.x / 32;
  if (o >= p.O) return;  // the whole warp
  const int64_t first = (int64_t)blockIdx.y * p.k;
  const T* const weight = p.weight + o * p.stride_o;
  X sum = 0;
#pragma unroll 4
  for (int j = lane; j < p.k; j += 32) sum = fma(widen(p.values[first + j]), widen(weight[p.indices[first + j]]), sum);
#pragma unroll
  for (int d = 16; d; d /= 2) sum += __shfl_xor_sync(DeviceWarp::all, sum, d);
  if (p.bias) sum += widen(p.bias[o]);
  if (lane == 0) p.y[(int64_t)blockIdx.y * p.O + o] = narrow<T>(sum);
}

}  // namespace

template <class T> void gather_product(const GatherProduct<T>& p, cudaStream_t stream) {
  if (p.stride_o == 1) DK_LAUNCH(gather_columns, dim3((p.O + 31) / 32, p.B), 32 * warps, 0, stream, p);
  else DK_LAUNCH(gather_rows, dim3((p.O + warps - 1) / warps, p.B), 32 * warps, 0, stream, p);
}

cudaError_t has_code() {
  cudaFuncAttributes unused;
  return cudaFuncGetAttributes(&unused, gather_rows<float>);
}

#define DK_INSTANCE(T) template void gather_product(const GatherProduct<T>&, cudaStream_t);
DK_FOR_EACH_DTYPE(DK_INSTANCE)

}  // namespace dk
