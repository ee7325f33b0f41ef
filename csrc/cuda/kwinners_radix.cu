// Gate and k winners of rows that no warp holds, by radix selection: a block a row, or several blocks where rows are few.
// Each pass reads the row again, which by then is in a cache.
#include "cuda/device_warp.h"  // the policy, which core/radix.h is written for
//
#include "core/radix.h"
#include "cuda/launch.h"
#include "cuda/row.h"

namespace dk {
namespace {

constexpr int threads = 512, warps = threads / 32;

template <class T> using KeyFor = RankKey<Wide<T>>;

template <class T> __device__ __forceinline__ KeyFor<T> key_at(const Row<T>& row, int i) {
  return row.key(i, row.combined(i, row.pre(i)));
}

// Counts the digits of this pass of the keys in play among entries [begin, end), into counts in shared memory.
template <class T>
__device__ void count_digits(const Row<T>& row, int begin, int end, const Search<KeyFor<T>>& so_far, int pass, int* counts) {
  for (int i = begin + (int)threadIdx.x; i < end; i += threads) {
    const KeyFor<T> key = key_at(row, i);
    if (in_play(key, so_far)) atomicAdd(&counts[digit_of(key, shift_of<KeyFor<T>>(pass))], 1);
  }
}

__device__ __forceinline__ void clear(int* counts) {
  for (int i = threadIdx.x; i < bins; i += threads) counts[i] = 0;
}

// The search after the pass that was counted, for every thread. shared: of the block's own. Begins and ends together.
template <class K>
__device__ Search<K> searched(const Search<K>& so_far, int pass, const int* counts, Search<K>* shared) {
  __syncthreads();  // counts are complete, and nobody reads what `shared` was
  if (threadIdx.x < 32) {
    const Search<K> next = next_search<DeviceWarp, K>(so_far, pass, counts);
    if (threadIdx.x == 0) *shared = next;
  }
  __syncthreads();
  return *shared;
}

// How many keys of the block's entries won surely, and how many win in turn: of all threads, and of those before this one.
struct Tally {
  int sure, turn, sure_before, turn_before;
};

// tallies: a word a warp, of the block's own. Begins and ends together, so that it may be called again at once.
__device__ __forceinline__ Tally tally(bool sure, bool turn, uint32_t* tallies) {
  const uint32_t sures = DeviceWarp::ballot(sure), turns = DeviceWarp::ballot(turn);
  const int warp = threadIdx.x / 32;
  __syncthreads();  // the tallies of the call before have been read
  if (DeviceWarp::lane() == 0) tallies[warp] = __popc(sures) | __popc(turns) << 16;  // at most `threads` each
  __syncthreads();
  uint32_t all = 0, before = 0;
#pragma unroll
  for (int w = 0; w < warps; w++) {
    if (w == warp) before = all;
    all += tallies[w];
  }
  return {(int)(all & 0xffff), (int)(all >> 16), (int)(before & 0xffff) + DeviceWarp::below(sures),
          (int)(before >> 16) + DeviceWarp::below(turns)};
}

// Writes entries [begin, end) of row b, before which `sure` keys won surely and `turn` equal the cut's.
template <class T>
__device__ void write_winners(const Row<T>& row, const Results<T>& results, int begin, int end, Cut<KeyFor<T>> cut,
                              int sure, int turn, uint32_t* tallies) {
  for (int start = begin; start < end; start += threads) {  // the same for all threads: tally() is for all of them
    const int i = start + (int)threadIdx.x;
    const bool inside = i < end;
    Wide<T> pre = 0;
    T a = narrow<T>(0);
    KeyFor<T> key = 0;  // wins neither way
    if (inside) pre = row.pre(i), a = row.combined(i, pre), key = row.key(i, a);
    const bool surely = wins_surely(key, cut), in_turn = wins_in_turn(key, cut);
    const Tally t = tally(surely, in_turn, tallies);
    const int equals = turn + t.turn_before;
    if (surely || (in_turn && equals < cut.equal))
      results.winner(i, sure + t.sure_before + min(equals, cut.equal), a, pre);
    else if (inside) results.loser(i);
    sure += t.sure, turn += t.turn;
  }
}

template <class T> __global__ void __launch_bounds__(threads) block_a_row(const __grid_constant__ KWinners<T> p) {
  using K = KeyFor<T>;
  __shared__ int counts[bins];
  __shared__ Search<K> shared;
  __shared__ uint32_t tallies[warps];
  const int64_t b = blockIdx.x;
  const Row<T> row(p.how, b, p.O);
  Search<K> search = begin_search<K>(p.k);
  for (int pass = 0; pass < passes<K> && !search.done; pass++) {
    clear(counts);
    __syncthreads();
    count_digits(row, 0, p.O, search, pass, counts);
    search = searched(search, pass, counts, &shared);
  }
  write_winners(row, Results<T>{p, b}, 0, p.O, cut_of_search(search, p.keep_ties), 0, 0, tallies);
}

// ---- several blocks a row -------------------------------------------------------------------------------------------

// What the launches leave each other, for each row: digits counted in each pass (zeros at first), the search after each
// pass but the last, and for each tile how many of its keys won surely and in turn.
template <class K> struct Split {
  int* counts;          // [B, passes, bins]
  Search<K>* searches;  // [B, passes]
  int* tallied;         // [B, tiles, 2]
  int tile, tiles;

  Split(void* memory, int64_t B, int tile, int64_t tiles) : tile(tile), tiles((int)tiles) {
    searches = (Search<K>*)memory;
    counts = (int*)(searches + B * passes<K>);
    tallied = counts + B * passes<K> * bins;
  }
  static int64_t bytes(int64_t B, int64_t tiles) {
    return B * (passes<K> * (sizeof(Search<K>) + bins * sizeof(int)) + tiles * 2 * sizeof(int));
  }
};

// The search before `pass`, as every block finds it: the launch before has counted the digits of pass - 1, and left the
// search that it began with. One block a row leaves this launch's for the next.
template <class K>
__device__ Search<K> search_before(const Split<K>& split, int64_t b, int pass, int k, Search<K>* shared) {
  if (pass == 0) return begin_search<K>(k);
  const Search<K> so_far = pass == 1 ? begin_search<K>(k) : split.searches[b * passes<K> + pass - 2];
  const int* counts = split.counts + (b * passes<K> + pass - 1) * bins;
  const Search<K> search = searched(so_far, pass - 1, counts, shared);
  if (blockIdx.x % split.tiles == 0 && threadIdx.x == 0) split.searches[b * passes<K> + pass - 1] = search;
  return search;
}

// The block's row b, and its entries [begin, end).
template <class K> struct Tile {
  int64_t b;
  int begin, end;
  __device__ Tile(const Split<K>& split, int units)
      : b(blockIdx.x / split.tiles), begin(blockIdx.x % split.tiles * split.tile), end(min(begin + split.tile, units)) {}
};

template <class T>
__global__ void __launch_bounds__(threads)
    split_count(const __grid_constant__ KWinners<T> p, const Split<KeyFor<T>> split, int pass) {
  using K = KeyFor<T>;
  __shared__ int counts[bins];
  __shared__ Search<K> shared;
  const Tile<K> tile(split, p.O);
  const Search<K> search = search_before(split, tile.b, pass, p.k, &shared);
  if (search.done) return;
  clear(counts);
  __syncthreads();
  count_digits(Row<T>(p.how, tile.b, p.O), tile.begin, tile.end, search, pass, counts);
  __syncthreads();
  int* const to = split.counts + (tile.b * passes<K> + pass) * bins;
  for (int i = threadIdx.x; i < bins; i += threads)
    if (counts[i]) atomicAdd(&to[i], counts[i]);  // whole numbers: the same in any order
}

template <class T>
__global__ void __launch_bounds__(threads)
    split_tally(const __grid_constant__ KWinners<T> p, const Split<KeyFor<T>> split) {
  using K = KeyFor<T>;
  __shared__ Search<K> shared;
  __shared__ uint32_t tallies[warps];
  const Tile<K> tile(split, p.O);
  const Search<K> search = search_before(split, tile.b, passes<K>, p.k, &shared);
  const Cut<K> cut = cut_of_search(search, p.keep_ties);
  const Row<T> row(p.how, tile.b, p.O);
  int sure = 0, turn = 0;
  for (int start = tile.begin; start < tile.end; start += threads) {
    const int i = start + (int)threadIdx.x;
    const K key = i < tile.end ? key_at(row, i) : K(0);
    const Tally t = tally(wins_surely(key, cut), wins_in_turn(key, cut), tallies);
    sure += t.sure, turn += t.turn;
  }
  int* const to = split.tallied + 2 * (int64_t)blockIdx.x;
  if (threadIdx.x == 0) to[0] = sure, to[1] = turn;
}

template <class T>
__global__ void __launch_bounds__(threads)
    split_write(const __grid_constant__ KWinners<T> p, const Split<KeyFor<T>> split) {
  using K = KeyFor<T>;
  __shared__ uint32_t tallies[warps];
  const Tile<K> tile(split, p.O);
  const Cut<K> cut = cut_of_search(split.searches[tile.b * passes<K> + passes<K> - 1], p.keep_ties);
  int sure = 0, turn = 0;
  for (const int* of = split.tallied + 2 * tile.b * split.tiles; of < split.tallied + 2 * (int64_t)blockIdx.x; of += 2)
    sure += of[0], turn += of[1];
  write_winners(Row<T>(p.how, tile.b, p.O), Results<T>{p, tile.b}, tile.begin, tile.end, cut, sure, turn, tallies);
}

}  // namespace

template <class T> void kwinners_by_block(const KWinners<T>& p, cudaStream_t stream) {
  DK_LAUNCH(block_a_row, p.B, threads, 0, stream, p);
}

template <class T> int64_t split_bytes(int64_t B, int64_t tiles) { return Split<KeyFor<T>>::bytes(B, tiles); }

template <class T> void kwinners_split(const KWinners<T>& p, int tile, void* memory, cudaStream_t stream) {
  const int64_t tiles = (p.O + tile - 1) / tile;
  const Split<KeyFor<T>> split(memory, p.B, tile, tiles);
  const dim3 grid((unsigned)(p.B * tiles));
  for (int pass = 0; pass < passes<KeyFor<T>>; pass++) DK_LAUNCH(split_count, grid, threads, 0, stream, p, split, pass);
  DK_LAUNCH(split_tally, grid, threads, 0, stream, p, split);
  DK_LAUNCH(split_write, grid, threads, 0, stream, p, split);
}

#define DK_INSTANCE(T)                                                                     \
  template void kwinners_by_block(const KWinners<T>&, cudaStream_t);                       \
  template void kwinners_split(const KWinners<T>&, int tile, void* memory, cudaStream_t);  \
  template int64_t split_bytes<T>(int64_t B, int64_t tiles);
DK_FOR_EACH_DTYPE(DK_INSTANCE)

}  // namespace dk
