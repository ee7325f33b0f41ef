// 32 lanes in one host thread: what the row algorithms (select.h, radix.h) run on under g++, for the tests.
//
// A policy has Lanes<T>, a number a lane, with the operators of T, and the functions below; the device's is
// cuda/device_warp.h. All lanes take part in each, so algorithms branch only on what is the same for the whole warp.
#pragma once
#include <cstdint>

#define DK_WARP static inline
#define DK_UNROLL

namespace dk {

struct HostWarp {
  template <class T> struct Lanes {
    T v[32];
    Lanes() {}
    Lanes(T same) {
      for (T& lane : v) lane = same;
    }
#define DK_LANEWISE(R, op)                                      \
  friend Lanes<R> operator op(const Lanes& a, const Lanes& b) { \
    Lanes<R> out;                                               \
    for (int l = 0; l < 32; l++) out.v[l] = a.v[l] op b.v[l];   \
    return out;                                                 \
  }
    DK_LANEWISE(T, +)
    DK_LANEWISE(T, -)
    DK_LANEWISE(T, *)
    DK_LANEWISE(T, &)
    DK_LANEWISE(T, |)
    DK_LANEWISE(T, >>)
    DK_LANEWISE(bool, <)
    DK_LANEWISE(bool, >)
    DK_LANEWISE(bool, >=)
    DK_LANEWISE(bool, ==)
#undef DK_LANEWISE
  };

  static Lanes<int> lane() {
    Lanes<int> out;
    for (int l = 0; l < 32; l++) out.v[l] = l;
    return out;
  }
  // A bit for each lane in which it holds.
  static uint32_t ballot(const Lanes<bool>& p) {
    uint32_t bits = 0;
    for (int l = 0; l < 32; l++) bits |= (uint32_t)p.v[l] << l;
    return bits;
  }
  // How many of the bits belong to lower lanes.
  static Lanes<int> below(uint32_t bits) {
    Lanes<int> out;
    for (int l = 0; l < 32; l++) out.v[l] = __builtin_popcount(bits & ((1u << l) - 1));
    return out;
  }
  static int count(uint32_t bits) { return __builtin_popcount(bits); }
  static int first(uint32_t bits) { return __builtin_ctz(bits); }
  static int sum(const Lanes<int>& a) {
    int out = 0;
    for (int lane : a.v) out += lane;
    return out;
  }
  template <class T> static T largest(const Lanes<T>& a) {
    T out = a.v[0];
    for (T lane : a.v) out = lane > out ? lane : out;
    return out;
  }
  // Of the lanes below, without one's own.
  static Lanes<int> sum_below(const Lanes<int>& a) {
    Lanes<int> out;
    for (int l = 0, sum = 0; l < 32; sum += a.v[l++]) out.v[l] = sum;
    return out;
  }
  template <class T> static T from(const Lanes<T>& a, int lane) { return a.v[lane]; }
  template <class T> static Lanes<T> select(const Lanes<bool>& p, const Lanes<T>& a, const Lanes<T>& b) {
    Lanes<T> out;
    for (int l = 0; l < 32; l++) out.v[l] = p.v[l] ? a.v[l] : b.v[l];
    return out;
  }
  template <class T> static Lanes<T> load(const T* from, const Lanes<int>& at, const Lanes<bool>& mask, T other) {
    Lanes<T> out;
    for (int l = 0; l < 32; l++) out.v[l] = mask.v[l] ? from[at.v[l]] : other;
    return out;
  }
  template <class T, class V>
  static void store(T* to, const Lanes<int>& at, const Lanes<V>& value, const Lanes<bool>& mask) {
    for (int l = 0; l < 32; l++)
      if (mask.v[l]) to[at.v[l]] = (T)value.v[l];
  }
  // Orders what the lanes have written to memory before what they read from it after.
  static void sync() {}
};

}  // namespace dk
