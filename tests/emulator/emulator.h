// Enough of CUDA to run csrc/cuda on the host, compiled by g++: for the tests, where there is no GPU.
//
// A block's threads are fibers of one host thread, which run from one synchronisation to the next. In what order is the
// test's choice (order()): a kernel that lacks a synchronisation gives other numbers in another order, and one in which
// not all threads arrive at the same one stops with a sentence. Blocks run one after another, and find in shared memory
// what the one before has left there. Here every function of a warp orders memory, as only __syncwarp does on a GPU: what
// that hides is for compute-sanitizer's racecheck.
#pragma once
#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <random>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "cuda_runtime_api.h"

#define __CUDACC__
#define __host__
#define __device__
#define __global__
#define __forceinline__ inline
#define __grid_constant__
#define __launch_bounds__(threads)
#define __shared__ static
#define DK_SHARED_MEMORY(NAME) double* const NAME = emulator::block().dynamic.data()
#define DK_LAUNCH(KERNEL, GRID, THREADS, SHARED, STREAM, ...) \
  emulator::launch(GRID, THREADS, SHARED, [&] { KERNEL(__VA_ARGS__); })

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
inline dim3 threadIdx, blockIdx, blockDim, gridDim;

using std::fma;
inline int min(int a, int b) { return a < b ? a : b; }
inline int __popc(uint32_t a) { return __builtin_popcount(a); }
inline int __ffs(uint32_t a) { return __builtin_ffs((int)a); }
inline int atomicAdd(int* to, int a) { return (*to += a) - a; }

namespace emulator {

// by_warp: each warp as far as it can go before the next begins; backwards, shuffled: each thread to where it waits.
enum Order { by_warp, backwards, shuffled };
inline Order& order() {
  static Order chosen = by_warp;
  return chosen;
}

// Where threads meet. A meeting's values stay until all have come to the next.
struct Meeting {
  unsigned expected = 0, arrived = 0, number = 0;
  const char* what = "";
  uint64_t values[2][32];
};

constexpr size_t stack_bytes = 128 << 10;

struct Fiber {
  ucontext_t context;  // to begin; then jumps, which cost no system call
  jmp_buf here;
  bool begun = false;
  std::vector<char> stack;
  unsigned thread = 0;
  bool done = false;
  Meeting* at = nullptr;  // waits for this
  unsigned number = 0;    // to have had so many
};

struct Block {
  std::vector<Fiber> fibers;
  std::vector<Meeting> warps;
  Meeting all;
  std::vector<double> dynamic;
  jmp_buf scheduler;
  Fiber* running = nullptr;
  const std::function<void()>* kernel = nullptr;
  std::string error;
};
inline Block& block() {
  static Block one;
  return one;
}

// Runs the fiber until it waits or is done.
__attribute__((noinline)) inline void resume(Fiber& f) {
  Block& b = block();
  b.running = &f;
  if (_setjmp(b.scheduler)) return;
  if (f.begun) _longjmp(f.here, 1);
  f.begun = true;
  setcontext(&f.context);
}

__attribute__((noinline)) inline void wait() {
  Block& b = block();
  if (!_setjmp(b.running->here)) _longjmp(b.scheduler, 1);
}

// All that are expected at m come here, and leave together; returns the meeting's values, to which each adds its own.
inline const uint64_t* meet(Meeting& m, const char* what, uint64_t value = 0) {
  Block& b = block();
  if (m.arrived && std::strcmp(m.what, what)) b.error = std::string(m.what) + " meets " + what;
  m.what = what;
  const unsigned number = m.number;
  m.values[number % 2][b.running->thread % 32] = value;
  if (++m.arrived == m.expected) m.arrived = 0, m.number++;
  b.running->at = &m, b.running->number = number;
  wait();
  return m.values[number % 2];
}

inline void enter() {
  Block& b = block();
  (*b.kernel)();
  b.running->done = true;
  if (b.all.expected-- && b.all.arrived && b.all.arrived == b.all.expected) b.all.arrived = 0, b.all.number++;
  wait();
}

inline void run_block(unsigned threads) {
  Block& b = block();
  static std::mt19937 random(0);
  std::vector<unsigned> turns(threads);
  for (unsigned t = 0; t < threads; t++) turns[t] = order() == backwards ? threads - 1 - t : t;
  b.warps.assign((threads + 31) / 32, {});
  for (Meeting& w : b.warps) w.expected = 32;
  b.all = {}, b.all.expected = threads;
  if (b.fibers.size() < threads) b.fibers = std::vector<Fiber>(threads);
  for (unsigned t = 0; t < threads; t++) {
    Fiber& f = b.fibers[t];
    f.stack.resize(stack_bytes), f.thread = t, f.begun = f.done = false, f.at = nullptr;
    getcontext(&f.context);
    f.context.uc_stack.ss_sp = f.stack.data(), f.context.uc_stack.ss_size = stack_bytes, f.context.uc_link = nullptr;
    makecontext(&f.context, enter, 0);
  }
  unsigned left = threads;
  auto moves = [&](unsigned t) {
    Fiber& f = b.fibers[t];
    if (f.done || (f.at && f.at->number == f.number)) return false;
    f.at = nullptr, threadIdx.x = t;
    resume(f);
    left -= f.done;
    return true;
  };
  auto all_move = [&](unsigned begin, unsigned end) {
    bool moved = false;
    for (unsigned t = begin; t < end; t++) moved |= moves(turns[t]);
    return moved;
  };
  while (left) {
    bool moved = false;
    if (order() == shuffled) std::shuffle(turns.begin(), turns.end(), random);
    if (order() == by_warp) {
      for (unsigned t = 0; t < threads; t += 32)
        while (all_move(t, t + 32)) moved = true;
    } else moved = all_move(0, threads);
    if (!b.error.empty()) throw std::runtime_error("emulator: " + std::exchange(b.error, ""));
    if (!moved) throw std::runtime_error("emulator: some threads of the block never arrive where others wait");
  }
}

template <class Size> void launch(dim3 grid, dim3 threads, Size shared, const std::function<void()>& kernel) {
  if (!grid.x || !grid.y || grid.y > 65535 || !threads.x || threads.x > 1024 || shared > 48 * 1024)
    throw std::runtime_error("emulator: no GPU takes a launch of these sizes");
  gridDim = grid, blockDim = threads;
  block().kernel = &kernel;
  block().dynamic.assign(shared / sizeof(double) + 1, NAN);
  for (blockIdx.y = 0; blockIdx.y < grid.y; blockIdx.y++)
    for (blockIdx.x = 0; blockIdx.x < grid.x; blockIdx.x++) run_block(threads.x);
}

inline const uint64_t* meet_warp(const char* what, uint64_t value = 0) {
  return meet(block().warps[threadIdx.x / 32], what, value);
}

template <class T> uint64_t bits_of(T a) {
  uint64_t bits = 0;
  std::memcpy(&bits, &a, sizeof a);
  return bits;
}
template <class T> T value_of(uint64_t bits) {
  T a;
  std::memcpy(&a, &bits, sizeof a);
  return a;
}

}  // namespace emulator

inline void __syncthreads() { emulator::meet(emulator::block().all, "__syncthreads"); }
inline void __syncwarp() { emulator::meet_warp("__syncwarp"); }

inline uint32_t __ballot_sync(unsigned, bool p) {
  const uint64_t* of = emulator::meet_warp("ballot", p);
  uint32_t bits = 0;
  for (int l = 0; l < 32; l++) bits |= (uint32_t)of[l] << l;
  return bits;
}
inline int __reduce_add_sync(unsigned, int a) {
  const uint64_t* of = emulator::meet_warp("reduce_add", (uint64_t)(int64_t)a);
  int sum = 0;
  for (int l = 0; l < 32; l++) sum += (int)of[l];
  return sum;
}
inline uint32_t __reduce_max_sync(unsigned, uint32_t a) {
  const uint64_t* of = emulator::meet_warp("reduce_max", a);
  uint32_t most = 0;
  for (int l = 0; l < 32; l++) most = of[l] > most ? (uint32_t)of[l] : most;
  return most;
}
template <class T> T __shfl_sync(unsigned, T a, int lane) {
  return emulator::value_of<T>(emulator::meet_warp("shfl", emulator::bits_of(a))[lane]);
}
template <class T> T __shfl_xor_sync(unsigned, T a, int mask) {
  const int from = (threadIdx.x % 32) ^ mask;
  return emulator::value_of<T>(emulator::meet_warp("shfl_xor", emulator::bits_of(a))[from]);
}
template <class T> T __shfl_up_sync(unsigned, T a, int by) {
  const int lane = threadIdx.x % 32;
  return emulator::value_of<T>(emulator::meet_warp("shfl_up", emulator::bits_of(a))[lane < by ? lane : lane - by]);
}
