// The winners of a row that a warp holds in registers, written once for device and host (the policy W, see
// host_warp.h, is included first).
//
// Entry i of the row is element 4 * (i / 128) + i % 4 of lane i % 128 / 4: a lane holds runs of four, which it can load at
// once. Keys are those of order.h; places beyond the row's end hold key 0, which never wins.
#pragma once
#include <cstdint>

#include "core/order.h"

namespace dk {

template <class W, class T> using Lanes = typename W::template Lanes<T>;

constexpr int all_equals = 0x7fffffff;

// Winners are the keys above `key`, and the first `equal` of those that equal it.
template <class K> struct Cut {
  K key;
  int equal;
};

// A lane's N elements make N / group_size groups; the k-th largest of the groups' maxima is a bound for the row's own.
constexpr int group_size = 8;

// How many keys fit where those above that bound are gathered: as many as there are groups.
template <int N> constexpr int gathered = 32 * (N / group_size);

template <class W, int N, class K> DK_WARP int count_from(const Lanes<W, K>* keys, K least) {
  Lanes<W, int> mine(0);
DK_UNROLL
  for (int e = 0; e < N; e++) mine = mine + W::select(keys[e] >= Lanes<W, K>(least), Lanes<W, int>(1), Lanes<W, int>(0));
  return W::sum(mine);
}

// Raises `low`, which `reached` >= k keys reach, to the largest key that k of them reach, or to any that exactly k do.
// No key is above `high`.
template <class W, int N, class K> DK_WARP void bisect(const Lanes<W, K>* keys, int k, K& low, K high, int& reached) {
  while (reached != k && low < high) {
    const K middle = low + (high - low) / 2 + (high - low) % 2;  // above low
    const int count = count_from<W, N, K>(keys, middle);
    if (count >= k) low = middle, reached = count;
    else high = middle - 1;
  }
}

template <class W, int N, class K>
DK_WARP Cut<K> cut_between(const Lanes<W, K>* keys, int k, bool keep_ties, K low, K high, int reached) {
  bisect<W, N, K>(keys, k, low, high, reached);
  if (keep_ties || reached == k) return {low, all_equals};
  return {low, k - (low == K(~K(0)) ? 0 : count_from<W, N, K>(keys, low + 1))};
}

// Writes the keys from `least` up to room, in no order, as far as there are `places`; returns how many there are.
template <class W, int N, class K> DK_WARP int gather(const Lanes<W, K>* keys, K least, K* room, int places) {
  int found = 0;
DK_UNROLL
  for (int e = 0; e < N; e++) {
    const Lanes<W, bool> in = keys[e] >= Lanes<W, K>(least);
    const uint32_t bits = W::ballot(in);
    const Lanes<W, int> at = W::below(bits) + Lanes<W, int>(found);
    W::store(room, at, keys[e], in & (at < Lanes<W, int>(places)));
    found += W::count(bits);
  }
  return found;
}

// Of a row of `units` keys, N a lane; 1 <= k <= units. room: gathered<N> keys of the warp's own.
template <class W, int N, class K>
DK_WARP Cut<K> cut_of_row(const Lanes<W, K>* keys, int units, int k, bool keep_ties, K* room) {
  constexpr int groups = N / group_size, places = gathered<N>;
  const K none = 1;  // below the key of -inf
  if constexpr (groups > 1) {
    if (4 * k <= 3 * places) {  // with more, most of the row would be above the bound
      Lanes<W, K> top[groups];
DK_UNROLL
      for (int g = 0; g < groups; g++) {
        top[g] = keys[g * group_size];
DK_UNROLL
        for (int e = 1; e < group_size; e++) {
          const Lanes<W, K> key = keys[g * group_size + e];
          top[g] = W::select(key > top[g], key, top[g]);
        }
      }
      Lanes<W, K> highest = top[0];
DK_UNROLL
      for (int g = 1; g < groups; g++) highest = W::select(top[g] > highest, top[g], highest);
      const K high = W::largest(highest);
      K low = none;
      int reached = places;
      bisect<W, groups, K>(top, k, low, high, reached);
      const int found = gather<W, N, K>(keys, low, room, places);
      W::sync();
      if (found <= places) {
        Lanes<W, K> few[groups];
DK_UNROLL
        for (int g = 0; g < groups; g++) {
          const Lanes<W, int> at = W::lane() + Lanes<W, int>(32 * g);
          few[g] = W::load(room, at, at < Lanes<W, int>(found), K(0));
        }
        W::sync();  // room is free again
        return cut_between<W, groups, K>(few, k, keep_ties, low, high, found);
      }
      return cut_between<W, N, K>(keys, k, keep_ties, low, high, found);
    }
  }
  return cut_between<W, N, K>(keys, k, keep_ties, none, K(~K(0)), units);
}

// Writes the winners' places in the row to list, ascending; returns their number. list: 32 * N places.
template <class W, int N, class K> DK_WARP int list_winners(const Lanes<W, K>* keys, Cut<K> cut, uint16_t* list) {
  static_assert(N % 4 == 0 && 32 * N <= 65536, "four entries at a time, numbered in 16 bits");
  using Bool = Lanes<W, bool>;
  using Int = Lanes<W, int>;
  const Lanes<W, K> least(cut.key);
  int written = 0, equal = 0;
DK_UNROLL
  for (int q = 0; q < N / 4; q++) {
    Bool wins[4];
    if (cut.equal == all_equals) {
DK_UNROLL
      for (int j = 0; j < 4; j++) wins[j] = keys[4 * q + j] >= least;
    } else {
      Int before(equal);  // equals before this lane's first entry
DK_UNROLL
      for (int j = 0; j < 4; j++) {
        const uint32_t bits = W::ballot(keys[4 * q + j] == least);
        before = before + W::below(bits);
        equal += W::count(bits);
      }
DK_UNROLL
      for (int j = 0; j < 4; j++) {
        const Bool same = keys[4 * q + j] == least;
        wins[j] = (keys[4 * q + j] > least) | (same & (before < Int(cut.equal)));
        before = before + W::select(same, Int(1), Int(0));
      }
    }
    Int at(written);
DK_UNROLL
    for (int j = 0; j < 4; j++) {
      const uint32_t bits = W::ballot(wins[j]);
      at = at + W::below(bits);
      written += W::count(bits);
    }
DK_UNROLL
    for (int j = 0; j < 4; j++) {
      W::store(list, at, Int(128 * q + j) + W::lane() * Int(4), wins[j]);
      at = at + W::select(wins[j], Int(1), Int(0));
    }
  }
  return written;
}

}  // namespace dk
