// The winners of a row that no warp holds: its keys are counted by their digits, from the top one down, until the k-th
// largest is known. Written once for device and host (the policy W, see host_warp.h, is included first).
#pragma once
#include <cstdint>

#include "core/select.h"

namespace dk {

constexpr int digit_bits = 11, bins = 1 << digit_bits;

template <class K> constexpr int passes = (8 * sizeof(K) + digit_bits - 1) / digit_bits;

// Bits below the digit of this pass; the last digit overlaps the one before it, whose bits are the same for all in play.
template <class K> DK_ANYWHERE int shift_of(int pass) {
  const int shift = 8 * (int)sizeof(K) - digit_bits * (pass + 1);
  return shift > 0 ? shift : 0;
}

// What is known of the k-th largest key after some passes.
template <class K> struct Search {
  K key;      // its digits so far, then zeros
  int need;   // so many of the keys with those digits win
  int shift;  // bits that are not known yet; all of them at first
  int done;   // all keys with those digits win, or none is left to tell apart
};

template <class K> DK_ANYWHERE Search<K> begin_search(int k) { return {0, k, 8 * (int)sizeof(K), 0}; }

template <class K> DK_ANYWHERE bool in_play(K key, const Search<K>& so_far) {
  return so_far.shift == 8 * (int)sizeof(K) || ((key ^ so_far.key) >> so_far.shift) == 0;
}

template <class K> DK_ANYWHERE int digit_of(K key, int shift) { return (int)(key >> shift) & (bins - 1); }

// Of no lower key than 1: where the whole lowest digit wins, places without an entry (key 0) still do not.
template <class K> DK_ANYWHERE Cut<K> cut_of_search(const Search<K>& s, bool keep_ties) {
  return {s.key ? s.key : K(1), keep_ties || s.done == 2 ? all_equals : s.need};
}

template <class K> DK_ANYWHERE bool wins_surely(K key, Cut<K> cut) {
  return cut.equal == all_equals ? key >= cut.key : key > cut.key;
}

// Whether the key wins only where few before it in the row equal it.
template <class K> DK_ANYWHERE bool wins_in_turn(K key, Cut<K> cut) { return cut.equal != all_equals && key == cut.key; }

// Where the need-th largest of what the counts stand for lies: among `parts` parts of `span` counts below `top`.
// Leaves `top` at that part's upper end and `need` as counted from there.
template <class W> DK_WARP void narrow_down(const int* counts, int& top, int span, int parts, int& need) {
  using Int = Lanes<W, int>;
  const Int lane = W::lane(), begin = Int(top) - (lane + Int(1)) * Int(span);
  Int mine(0);
  for (int i = 0; i < span; i++) {  // each lane begins elsewhere, and so in another bank of shared memory
    const Int at = begin + ((Int(i) + lane) & Int(span - 1));
    mine = mine + W::load(counts, at, lane < Int(parts), 0);
  }
  const Int above = W::sum_below(mine);
  const Lanes<W, bool> here = (above < Int(need)) & (above + mine >= Int(need));
  const int part = W::first(W::ballot(here));
  need -= W::from(above, part);
  top -= part * span;
}

// The search after the pass whose digits were counted. One warp; counts: `bins` of them.
template <class W, class K> DK_WARP Search<K> next_search(Search<K> s, int pass, const int* counts) {
  if (s.done) return s;
  int top = bins;
  narrow_down<W>(counts, top, bins / 32, 32, s.need);
  narrow_down<W>(counts, top, bins / 1024, 32, s.need);
  narrow_down<W>(counts, top, 1, bins / 1024, s.need);
  s.shift = shift_of<K>(pass);
  s.key |= (K)(top - 1) << s.shift;
  if (counts[top - 1] == s.need) s.done = 2;
  else if (s.shift == 0) s.done = 1;
  return s;
}

}  // namespace dk
