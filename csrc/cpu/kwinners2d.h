// k winners of images [B, C, A] (A = H * W) whose channels have gates. Of a whole sample: the row kernel on its C * A
// values. Of each location: a lane is a location, and all lanes of a vector search for their threshold together.

template <class T> DK_INLINE T combined(T y, T gate, bool add) { return add ? y + gate : y * gate; }

template <class T> DK_INLINE void gate_image(const T* y, const T* gate, bool add, int64_t channels, int64_t area, T* a) {
  if (!gate) return copy_bytes(a, y, channels * area * sizeof(T));
  for (int64_t c = 0; c < channels; c++)
    for (int64_t i = c * area; i < (c + 1) * area; i++) a[i] = combined(y[i], gate[c], add);
}

template <class T> void winners_of_samples(const KWinners2d<T>& p) {
  const int64_t n = p.C * p.A, pad = round_up(n, 16) + 16;
  const double guess = guess_for(p.k, n);
  const Buffer<T> images(p.threads * pad), boosted(p.how.boost ? p.threads * pad : 0);
  const Buffer<Key<T>> keys(p.threads * pad);
  const Buffer<int32_t> candidates(p.threads * pad), winners(p.threads * pad);
#pragma omp parallel for num_threads(p.threads) schedule(dynamic)
  for (int64_t b = 0; b < p.B; b++) {
    const int64_t at = thread_number() * pad;
    T *a = images + at, *rank = a;
    int32_t* won = winners + at;
    gate_image(p.y + b * n, p.how.row(b, p.C), p.how.add, p.C, p.A, a);
    if (p.how.boost) {
      rank = boosted + at;
      gate_image(a, p.how.boost, false, p.C, p.A, rank);
    }
    const int64_t count = row_winners(rank, n, p.k, p.keep_ties, guess, keys + at, candidates + at, won);
    scatter_winners(a, won, count, p.relu, n, p.z + b * n, p.kept + b * n);
  }
}

// ---- of each location -----------------------------------------------------------------------------------------------

template <class T> DK_INLINE vec<Key<T>> ordered_keys(vec<T> v) {
  using K = Key<T>;
  v += T(0);  // -0.0 becomes 0.0
  const vec<K> bits = (vec<K>)v, flip = (bits >> (8 * (int)sizeof(K) - 1)) & std::numeric_limits<K>::max();
  const vec<K> nan = (vec<K>)(v != v);
  return (nan & std::numeric_limits<K>::max()) | (~nan & (bits ^ flip));
}

template <class K> DK_INLINE bool any(vec<K> mask) {
  for (int i = 0; i < lanes<K>; i++)
    if (mask[i]) return true;
  return false;
}
#ifdef DK_AVX512
template <> inline __attribute__((always_inline)) bool any<int32_t>(vec<int32_t> mask) {
  return _mm512_test_epi32_mask((__m512i)mask, (__m512i)mask);
}
#endif

template <class K> DK_INLINE vec<K> choose(vec<K> mask, vec<K> yes, vec<K> no) { return (mask & yes) | (~mask & no); }

// As threshold_of, for the n keys of each lane: a key that k of them reach, or the k-th itself where there are ties.
template <class K> DK_INLINE vec<K> kth_of_lanes(const vec<K>* keys, int64_t n, K k) {
  vec<K> low = keys[0], high = keys[0], reached = vec<K>{} + (K)n;
  for (int64_t c = 1; c < n; c++) {
    low = choose<K>(keys[c] < low, keys[c], low);
    high = choose<K>(keys[c] > high, keys[c], high);
  }
  for (;;) {
    const vec<K> open = (reached != k) & (low < high);
    if (!any<K>(open)) return low;
    const vec<K> apart = low ^ high, mid = (low & high) + (apart >> 1) + (apart & 1);
    vec<K> count{};
    for (int64_t c = 0; c < n; c++) count -= keys[c] >= mid;
    const vec<K> enough = open & (count >= k), short_of = open & (count < k);
    low = choose<K>(enough, mid, low);
    reached = choose<K>(enough, count, reached);
    high = choose<K>(short_of, mid - 1, high);
  }
}

// One vector of locations: a [C] as combined with the gate, keys [C] by rank. Writes z and kept, `width` lanes of each.
template <class T>
DK_INLINE void choose_at_locations(const KWinners2d<T>& p, const vec<T>* a, const vec<Key<T>>* keys, int64_t width, T* z,
                                   uint8_t* kept) {
  using K = Key<T>;
  typedef uint8_t bytes __attribute__((vector_size(lanes<T>)));
  const vec<K> kth = kth_of_lanes<K>(keys, p.C, (K)p.k);
  vec<K> above{}, equal;
  for (int64_t c = 0; c < p.C; c++) above -= keys[c] > kth;
  equal = p.keep_ties ? vec<K>{} + (K)p.C : (K)p.k - above;
  for (int64_t c = 0; c < p.C; c++, z += p.A, kept += p.A) {
    const vec<K> ties = keys[c] == kth, passing = p.relu ? ~(vec<K>)(a[c] <= T(0)) : ~vec<K>{};
    const vec<K> won = ((keys[c] > kth) | (ties & (equal > 0))) & passing;
    equal += ties;  // a true lane is -1
    const vec<T> value = (vec<T>)((vec<K>)a[c] & won);
    const bytes flags = __builtin_convertvector(won, bytes) & 1;
    if (width == lanes<T>) {
      store(z, value);
      std::memcpy(kept, &flags, sizeof flags);
    } else {
      std::memcpy(z, &value, width * sizeof(T));
      std::memcpy(kept, &flags, width);
    }
  }
}

template <class T> void winners_of_locations(const KWinners2d<T>& p) {
  constexpr int64_t L = lanes<T>;
  const int64_t tiles = (p.A + L - 1) / L, pad = p.C * L;
  const Buffer<T> images(p.threads * pad);
  const Buffer<Key<T>> ranks(p.threads * pad);
#pragma omp parallel for num_threads(p.threads) schedule(static)
  for (int64_t tile = 0; tile < p.B * tiles; tile++) {
    vec<T>* a = (vec<T>*)(images + thread_number() * pad);
    vec<Key<T>>* keys = (vec<Key<T>>*)(ranks + thread_number() * pad);
    const int64_t b = tile / tiles, first = tile % tiles * L, width = lower(L, p.A - first);
    const T *gate = p.how.row(b, p.C), *boost = p.how.boost;
    const int64_t at = b * p.C * p.A + first;
    for (int64_t c = 0; c < p.C; c++) {
      const T* y = p.y + at + c * p.A;
      a[c] = width == L ? load(y) : load_some(y, width);
      if (gate) a[c] = p.how.add ? a[c] + gate[c] : a[c] * gate[c];
      keys[c] = ordered_keys<T>(boost ? a[c] * boost[c] : a[c]);
    }
    choose_at_locations(p, a, keys, width, p.z + at, p.kept + at);
  }
}

template <class T> void kwinners2d(const KWinners2d<T>& p) {
  const int64_t n = p.B * p.C * p.A;
  if (!n) return;
  if (!p.local) return winners_of_samples(p);
  if (p.k > 0) return winners_of_locations(p);
  set_bytes(p.z, 0, n * sizeof(T));
  set_bytes(p.kept, 0, n);
}

// A channel has one owner, which walks the batch in order: sums have one order for any number of threads.
template <class T> void kwinners2d_backward(const KWinners2dBackward<T>& p) {
  if (p.grad_gate) set_bytes(p.grad_gate, 0, p.how.G * p.C * sizeof(T));
#pragma omp parallel for num_threads(p.threads) schedule(static)
  for (int64_t c = 0; c < p.C; c++)
    for (int64_t b = 0; b < p.B; b++) {
      const int64_t at = (b * p.C + c) * p.A;
      const T *grad_z = p.grad_z + at, *y = p.y + at, *gate = p.how.row(b, p.C);
      const uint8_t* kept = p.kept + at;
      const T times = gate && !p.how.add ? gate[c] : T(1);
      if (p.grad_y)
        for (int64_t i = 0; i < p.A; i++) p.grad_y[at + i] = kept[i] ? grad_z[i] * times : T(0);
      if (!p.grad_gate) continue;
      T sums[16] = {};  // partial sums of fixed places, which the compiler may keep in vectors of any width
      for (int64_t i = 0; i < p.A; i++) {
        const T part = p.how.add ? grad_z[i] : grad_z[i] * y[i];
        sums[i % 16] += kept[i] ? part : T(0);
      }
      for (int width = 8; width; width /= 2)
        for (int i = 0; i < width; i++) sums[i] += sums[i + width];
      p.grad_gate[p.how.group(b) * p.C + c] += sums[0];
    }
}
