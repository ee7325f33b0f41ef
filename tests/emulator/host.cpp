// The row algorithms of csrc/core on 32 host lanes, for ctypes; and what the emulated module lacks.
#include <algorithm>
//
#include "core/host_warp.h"  // the policy first
//
#include "core/radix.h"
#include "cuda/launch.h"
#include "emulator.h"

using namespace dk;

// Entry i of a row as a warp holds it: element e of lane l.
static int entry(int e, int l) { return 128 * (e / 4) + 4 * l + e % 4; }

template <int N, class T>
static int by_warp(const T* rank, int units, int k, bool keep_ties, int32_t* out) {
  using K = RankKey<T>;
  Lanes<HostWarp, K> keys[N];
  for (int e = 0; e < N; e++)
    for (int l = 0; l < 32; l++) keys[e].v[l] = entry(e, l) < units ? rank_key(rank[entry(e, l)]) : K(0);
  std::vector<K> room(std::max(1, gathered<N>));
  std::vector<uint16_t> list(32 * N);
  const Cut<K> cut = cut_of_row<HostWarp, N, K>(keys, units, k, keep_ties, room.data());
  const int count = list_winners<HostWarp, N, K>(keys, cut, list.data());
  std::copy(list.begin(), list.begin() + count, out);
  return count;
}

template <class T> static int by_radix(const T* rank, int units, int k, bool keep_ties, int32_t* out) {
  using K = RankKey<T>;
  Search<K> search = begin_search<K>(k);
  for (int pass = 0; pass < passes<K>; pass++) {
    std::vector<int> counts(bins);
    for (int i = 0; i < units && !search.done; i++) {
      const K key = rank_key(rank[i]);
      counts[digit_of(key, shift_of<K>(pass))] += in_play(key, search);
    }
    search = next_search<HostWarp, K>(search, pass, counts.data());
  }
  const Cut<K> cut = cut_of_search(search, keep_ties);
  int count = 0, equal = 0;
  for (int i = 0; i < units; i++) {
    const K key = rank_key(rank[i]);
    if (wins_surely(key, cut) || (wins_in_turn(key, cut) && equal++ < cut.equal)) out[count++] = i;
  }
  return count;
}

template <class T> static int winners(const T* rank, int units, int k, bool keep_ties, int entries, int32_t* out) {
  if (entries == 8) return by_warp<8>(rank, units, k, keep_ties, out);
  if (entries == 32) return by_warp<32>(rank, units, k, keep_ties, out);
  if (entries == 64) return by_warp<64>(rank, units, k, keep_ties, out);
  if (entries == 128) return by_warp<128>(rank, units, k, keep_ties, out);
  return by_radix(rank, units, k, keep_ties, out);
}

#define EXPORT extern "C" __attribute__((visibility("default")))

// Ascending winners of one row; entries: of a lane, 0 for the radix search. Returns their number.
EXPORT int winners_f32(const float* rank, int units, int k, int keep_ties, int entries, int32_t* out) {
  return winners(rank, units, k, keep_ties, entries, out);
}
EXPORT int winners_f64(const double* rank, int units, int k, int keep_ties, int entries, int32_t* out) {
  return winners(rank, units, k, keep_ties, entries, out);
}
// Keys, for comparing.
EXPORT uint64_t key_f32(float rank) { return rank_key(rank); }
EXPORT uint64_t key_f64(double rank) { return rank_key(rank); }

// In what order the emulator runs a block's threads.
EXPORT void set_order(int order) { emulator::order() = (emulator::Order)order; }

// A kernel to try the emulator on: how many of a warp's threads find what their neighbour on either side wrote.
static void neighbours_kernel(bool synchronised, int* right) {
  __shared__ unsigned written[32];
  written[threadIdx.x] = 0;
  __syncwarp();
  written[threadIdx.x] = threadIdx.x + 1;
  if (synchronised) __syncwarp();
  const unsigned before = (threadIdx.x + 31) % 32, after = (threadIdx.x + 1) % 32;
  *right += written[before] == before + 1 && written[after] == after + 1;
}
EXPORT int neighbours(int synchronised) {
  int right = 0;
  DK_LAUNCH(neighbours_kernel, 1, 32, 0, nullptr, synchronised, &right);
  return right;
}

namespace dk {
std::string explain(cudaError_t) { return ""; }
std::string why_not(int) { return ""; }
}  // namespace dk
