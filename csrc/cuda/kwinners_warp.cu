// Gate and k winners, a warp a row: the row stays in registers, and is read once.
#include "cuda/device_warp.h"  // the policy, which core/select.h is written for
//
#include <stdexcept>

#include "core/select.h"
#include "cuda/launch.h"
#include "cuda/row.h"

namespace dk {
namespace {

constexpr int most_threads = 128;  // so that a thread may have all 255 registers

// Rows that can't be read four at a time take more registers than there are where a lane holds more than this.
template <class T> constexpr int most_single = 256 / sizeof(Wide<T>);

// x[e] = f(x[e], the entry of `from` that it is) for each of a lane's elements; fours: four can be read at once.
template <class T, int N, class F>
__device__ __forceinline__ void with_row(Wide<T>* x, const T* from, int units, bool fours, F f) {
  const int lane = DeviceWarp::lane();
  if (fours) {
#pragma unroll
    for (int q = 0; q < N / 4; q++) {
      const int i = 128 * q + 4 * lane;
      if (i < units) {
        const Four<T> four = *(const Four<T>*)(from + i);
#pragma unroll
        for (int j = 0; j < 4; j++) x[4 * q + j] = f(x[4 * q + j], widen(four.v[j]));
      }
    }
  } else if constexpr (N <= most_single<T>) {
#pragma unroll
    for (int e = 0; e < N; e++) {
      const int i = 128 * (e / 4) + 4 * lane + e % 4;
      if (i < units) x[e] = f(x[e], widen(from[i]));
    }
  }
}

template <class T> __device__ __forceinline__ void zero_row(const KWinners<T>& p, int64_t b, bool fours) {
  const int lane = DeviceWarp::lane();
  T* z = p.z + b * p.O;
  uint8_t* kept = p.kept + b * p.O;
  const T zero = narrow<T>(0);
  for (int i = fours ? 4 * lane : lane; i < p.O; i += fours ? 128 : 32) {
    if (fours) *(Four<T>*)(z + i) = {zero, zero, zero, zero}, *(uint32_t*)(kept + i) = 0;
    else z[i] = zero, kept[i] = 0;
  }
}

template <class T> bool in_fours(const KWinners<T>& p) {
  const uintptr_t all = (uintptr_t)p.how.y | (uintptr_t)p.how.bias | (uintptr_t)p.how.gate | (uintptr_t)p.how.boost |
                        (uintptr_t)p.z | (uintptr_t)p.kept;
  return p.O % 4 == 0 && all % 16 == 0;
}

template <class T, int N>
__global__ void __launch_bounds__(most_threads) warp_a_row(const __grid_constant__ KWinners<T> p, const bool fours) {
  using K = RankKey<Wide<T>>;
  using X = Wide<T>;
  DK_SHARED_MEMORY(memory);
  const int warp = threadIdx.x / 32;
  const int64_t b = (int64_t)blockIdx.x * (blockDim.x / 32) + warp;
  if (b >= p.B) return;  // the whole warp
  // first keys, then the winners' list: cut_of_row is through with its room when it returns
  uint16_t* const list = (uint16_t*)memory + warp * 32 * N;

  const Row<T> row(p.how, b, p.O);
  X x[N] = {};
  with_row<T, N>(x, row.y, p.O, fours, [](X, X y) { return y; });
  if (!p.values) zero_row(p, b, fours);
  if (row.bias) with_row<T, N>(x, row.bias, p.O, fours, [](X a, X bias) { return a + bias; });
  if (row.gate && row.add) with_row<X, N>(x, row.gate, p.O, fours, [](X a, X gate) { return a + gate; });
  if (row.gate && !row.add) with_row<X, N>(x, row.gate, p.O, fours, [](X a, X gate) { return a * gate; });
#pragma unroll
  for (int e = 0; e < N; e++) x[e] = widen(narrow<T>(x[e]));
  if (row.boost) with_row<X, N>(x, row.boost, p.O, fours, [](X a, X boost) { return a * boost; });

  K keys[N];
#pragma unroll
  for (int e = 0; e < N; e++) {
    const int i = 128 * (e / 4) + 4 * DeviceWarp::lane() + e % 4;
    keys[e] = i < p.O ? rank_key(x[e]) : K(0);
  }
  const Cut<K> cut = cut_of_row<DeviceWarp, N, K>(keys, p.O, p.k, p.keep_ties, (K*)list);
  const int winners = list_winners<DeviceWarp, N, K>(keys, cut, list);
  // orders the list, and in a dense row the zeros that other lanes have written where winners go
  __syncwarp();
  const Results<T> results{p, b};
  for (int w = DeviceWarp::lane(); w < winners; w += 32) {
    const int i = list[w];
    const X pre = row.pre(i);
    results.winner(i, w, row.combined(i, pre), pre);
  }
}

}  // namespace

template <class T> void kwinners_by_warp(const KWinners<T>& p, int entries, int warps, cudaStream_t stream) {
  const dim3 grid((p.B + warps - 1) / warps);
  const bool fours = in_fours(p);
  if (!fours && entries > most_single<T>) return kwinners_by_block(p, stream);
  // the winners' list of a warp: 32 * entries places of 2 bytes
  if (entries == 8) DK_LAUNCH((warp_a_row<T, 8>), grid, 32 * warps, warps * 64 * 8, stream, p, fours);
  else if (entries == 32) DK_LAUNCH((warp_a_row<T, 32>), grid, 32 * warps, warps * 64 * 32, stream, p, fours);
  else if (entries == 64) DK_LAUNCH((warp_a_row<T, 64>), grid, 32 * warps, warps * 64 * 64, stream, p, fours);
  else if (entries == 128 && sizeof(T) < 8) {
    if constexpr (sizeof(T) < 8) DK_LAUNCH((warp_a_row<T, 128>), grid, 32 * warps, warps * 64 * 128, stream, p, fours);
  } else throw std::invalid_argument("kwinners_by_warp: no kernel of " + std::to_string(entries) + " entries a lane");
}

#define DK_INSTANCE(T) template void kwinners_by_warp(const KWinners<T>&, int, int, cudaStream_t);
DK_FOR_EACH_DTYPE(DK_INSTANCE)

}  // namespace dk
