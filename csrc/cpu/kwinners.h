// Bias, gate and k winners of each row: guess a threshold from the row's moments, collect the few candidates above
// it, and settle the exact k-th among them by bisection over ordered keys.

// How far above the mean, in standard deviations, about `fraction` of a normal row lies (Abramowitz & Stegun 26.2.23).
static double normal_quantile(double fraction) {
  const bool upper = fraction < 0.5;
  const double t = std::sqrt(-2 * std::log(upper ? fraction : 1 - fraction));
  const double z = t - (2.515517 + t * (0.802853 + t * 0.010328)) / (1 + t * (1.432788 + t * (0.189269 + t * 0.001308)));
  return upper ? z : -z;
}

// A guess that leaves about 1.5 k candidates; -inf (all of them) where that is most of the row.
static double guess_for(int64_t k, int64_t n) {
  const double fraction = (1.5 * k + 16) / n;
  return fraction < 0.6 ? normal_quantile(fraction) : -std::numeric_limits<double>::infinity();
}

// Appends key and index of every entry that is not below t (NaN never is). Returns their number.
template <class T> DK_INLINE int64_t collect(const T* rank, int64_t n, T t, Key<T>* keys, int32_t* at) {
  int64_t count = 0;
  for (int64_t i = 0; i < n; i++) {
    keys[count] = ordered_key(rank[i]);
    at[count] = (int32_t)i;
    count += !(rank[i] < t);
  }
  return count;
}

#ifdef DK_AVX512
DK_INLINE int64_t collect(const float* rank, int64_t n, float t, int32_t* keys, int32_t* at) {
  const __m512 threshold = _mm512_set1_ps(t);
  __m512i index = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  int64_t count = 0;
  for (int64_t i = 0; i < n; i += 16, index = _mm512_add_epi32(index, _mm512_set1_epi32(16))) {
    const __mmask16 in_row = n - i >= 16 ? 0xffff : (__mmask16)((1u << (n - i)) - 1);
    const __m512 v = _mm512_maskz_loadu_ps(in_row, rank + i);
    const __mmask16 pick = _mm512_mask_cmp_ps_mask(in_row, v, threshold, _CMP_NLT_UQ);
    if (!pick) continue;
    const __m512i bits = _mm512_castps_si512(_mm512_add_ps(v, _mm512_setzero_ps()));
    const __m512i flip = _mm512_and_si512(_mm512_srai_epi32(bits, 31), _mm512_set1_epi32(0x7fffffff));
    const __mmask16 nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
    const __m512i key = _mm512_mask_mov_epi32(_mm512_xor_si512(bits, flip), nan, _mm512_set1_epi32(0x7fffffff));
    _mm512_storeu_si512(keys + count, _mm512_maskz_compress_epi32(pick, key));
    _mm512_storeu_si512(at + count, _mm512_maskz_compress_epi32(pick, index));
    count += __builtin_popcount(pick);
  }
  return count;
}
#endif

template <class K> DK_INLINE int64_t count_from(const K* keys, int64_t n, K at_least) {
  K count = 0;
  for (int64_t i = 0; i < n; i++) count += keys[i] >= at_least;
  return count;
}

// A threshold that k of the n keys reach, which need not be a key, or the k-th largest where its ties are more than k
// (n >= k >= 1). Writes up to 15 keys past the end.
template <class K> DK_INLINE K threshold_of(K* keys, int64_t n, int64_t k) {
  K low = keys[0], high = keys[0];
  for (int64_t i = 0; i < n; i++) {
    low = keys[i] < low ? keys[i] : low;
    high = keys[i] > high ? keys[i] : high;
  }
  const int64_t padded = round_up(n, 16);  // whole vectors: the search counts some twenty times
  for (int64_t i = n; i < padded; i++) keys[i] = std::numeric_limits<K>::min();
  for (int64_t reached = n; reached != k && low < high;) {
    const K mid = (low & high) + ((low ^ high) >> 1) + ((low ^ high) & 1);  // ceiling of the mean, without overflow
    const int64_t count = count_from(keys, padded, mid);
    if (count >= k) low = mid, reached = count;
    else high = mid - 1;
  }
  return low;
}

template <class T> DK_INLINE T guess_threshold(const T* rank, int64_t n, double guess) {
  constexpr int64_t L = lanes<T>;
  vec<T> totals[4] = {}, products[4] = {};  // chains short enough to overlap
  int64_t i = 0;
  for (; i + 4 * L <= n; i += 4 * L)
    for (int v = 0; v < 4; v++) {
      const vec<T> x = load(rank + i + v * L);
      totals[v] += x, products[v] += x * x;
    }
  T total = sum<T>((totals[0] + totals[1]) + (totals[2] + totals[3]));
  T squares = sum<T>((products[0] + products[1]) + (products[2] + products[3]));
  for (; i < n; i++) total += rank[i], squares += rank[i] * rank[i];
  const T mean = total / n, variance = squares / n - mean * mean;
  const T t = mean + (T)guess * std::sqrt(variance > 0 ? variance : T(0));
  return t == t ? t : -std::numeric_limits<T>::infinity();
}

// Ascending indices of the winners of one row; returns their number (k, or more where equal ones are kept).
template <class T>
DK_INLINE int64_t row_winners(const T* rank, int64_t n, int64_t k, bool keep_ties, double guess, Key<T>* keys,
                              int32_t* at, int32_t* out) {
  if (k <= 0 || k >= n) {
    for (int64_t i = 0; i < (k <= 0 ? 0 : n); i++) out[i] = (int32_t)i;
    return k <= 0 ? 0 : n;
  }
  int64_t found = collect(rank, n, guess_threshold(rank, n, guess), keys, at);
  if (found < k) found = collect(rank, n, -std::numeric_limits<T>::infinity(), keys, at);
  const Key<T> kth = threshold_of(keys, found, k);
  int64_t count = 0;
  if (keep_ties || count_from(keys, found, kth) == k) {
    for (int64_t i = 0; i < found; i++) out[count] = at[i], count += keys[i] >= kth;
    return count;
  }
  int64_t equal = k - (kth == std::numeric_limits<Key<T>>::max() ? 0 : count_from(keys, found, (Key<T>)(kth + 1)));
  for (int64_t i = 0; i < found; i++) {
    const bool is_equal = keys[i] == kth;
    out[count] = at[i];
    count += (keys[i] > kth) | (is_equal & (equal > 0));
    equal -= is_equal;
  }
  return count;
}

// a = (y + bias) combined with the gate. A sum and then a product leave nothing to fuse: each is rounded.
template <class T> DK_INLINE void gate_row(const T* y, const RowGate<T>& how, int64_t b, int64_t n, T* a) {
  const T *gate = how.row(b, n), *bias = how.bias;
  if (bias && gate && !how.add)
    for (int64_t i = 0; i < n; i++) a[i] = (y[i] + bias[i]) * gate[i];
  else if (bias && gate)
    for (int64_t i = 0; i < n; i++) a[i] = (y[i] + bias[i]) + gate[i];
  else if (gate && !how.add)
    for (int64_t i = 0; i < n; i++) a[i] = y[i] * gate[i];
  else if (gate || bias)
    for (int64_t i = 0; i < n; i++) a[i] = y[i] + (gate ? gate : bias)[i];
  else
    copy_bytes(a, y, n * sizeof(T));
}

template <class T> DK_INLINE bool passes(bool relu, T v) { return !relu || !(v <= 0); }

template <class T>
DK_INLINE void scatter_winners(const T* a, const int32_t* won, int64_t count, bool relu, int64_t n, T* z, uint8_t* kept) {
  set_bytes(z, 0, n * sizeof(T));
  set_bytes(kept, 0, n);
  for (int64_t j = 0; j < count; j++)
    if (passes(relu, a[won[j]])) z[won[j]] = a[won[j]], kept[won[j]] = 1;
}

template <class T> void kwinners(const KWinners<T>& p) {
  const int64_t O = p.O, pad = round_up(O, 16) + 16;
  if (!p.B || !O) return;
  const double guess = guess_for(p.k, O);
  const Buffer<T> rows(p.threads * pad), boosted(p.how.boost ? p.threads * pad : 0);
  const Buffer<Key<T>> keys(p.threads * pad);
  const Buffer<int32_t> candidates(p.threads * pad), winners(p.threads * pad);
#pragma omp parallel for num_threads(p.threads) schedule(dynamic, 8)
  for (int64_t b = 0; b < p.B; b++) {
    const int64_t at = thread_number() * pad;
    T *a = rows + at, *rank = a;
    int32_t* won = winners + at;
    gate_row(p.y + b * O, p.how, b, O, a);
    if (p.how.boost) {
      rank = boosted + at;
      for (int64_t i = 0; i < O; i++) rank[i] = a[i] * p.how.boost[i];
    }
    const int64_t count = row_winners(rank, O, p.k, p.keep_ties, guess, keys + at, candidates + at, won);
    if (p.z) {
      scatter_winners(a, won, count, p.relu, O, p.z + b * O, p.kept + b * O);
    } else {
      for (int64_t j = 0; j < count; j++) {
        const int64_t i = won[j], out = b * p.k + j;
        p.indices[out] = won[j];
        p.values[out] = passes(p.relu, a[i]) ? a[i] : T(0);
        p.pre[out] = p.y[b * O + i] + (p.how.bias ? p.how.bias[i] : T(0));
      }
    }
  }
}

// Units are dealt out to threads in ranges, and each range walks the batch in order: sums have one order for any
// number of threads.
template <class T> void kwinners_backward(const KWinnersBackward<T>& p) {
  const int64_t O = p.O, tile = 64;
  if (p.grad_gate) set_bytes(p.grad_gate, 0, p.how.G * O * sizeof(T));
  if (p.grad_bias) set_bytes(p.grad_bias, 0, O * sizeof(T));
#pragma omp parallel for num_threads(p.threads) schedule(static)
  for (int64_t o0 = 0; o0 < O; o0 += tile)
    for (int64_t b = 0; b < p.B; b++) {
      const T* gate = p.how.row(b, O);
      T* grad_gate = p.grad_gate ? p.grad_gate + p.how.group(b) * O : nullptr;
      for (int64_t o = o0; o < lower(o0 + tile, O); o++) {
        const int64_t q = b * O + o;
        const bool live = p.kept[q];
        const T grad = live ? p.grad_z[q] : T(0);
        const T grad_y = live && gate && !p.how.add ? grad * gate[o] : grad;
        if (p.grad_y) p.grad_y[q] = grad_y;
        if (!live) continue;
        if (p.grad_bias) p.grad_bias[o] += grad_y;
        if (grad_gate) grad_gate[o] += p.how.add ? grad : grad * (p.y[q] + (p.how.bias ? p.how.bias[o] : T(0)));
      }
    }
}

template <class T> int64_t winners_backward(const WinnersBackward<T>& p) {
  const int64_t bad = first_bad_index(p.indices, p.B * p.k, p.O);
  if (bad >= 0) return bad;
  const int64_t O = p.O, k = p.k, tile = (O + p.threads - 1) / p.threads;
  if (p.grad_gate) set_bytes(p.grad_gate, 0, p.how.G * O * sizeof(T));
  if (p.grad_bias) set_bytes(p.grad_bias, 0, O * sizeof(T));
#pragma omp parallel for num_threads(p.threads) schedule(static)
  for (int64_t b = 0; b < p.B; b++) {
    const T* gate = p.how.add ? nullptr : p.how.row(b, O);
    for (int64_t q = b * k; q < (b + 1) * k; q++) {
      const T grad = passes(p.relu, p.values[q]) ? p.grad_values[q] : T(0);
      p.grad_y[q] = gate ? grad * gate[p.indices[q]] : grad;
    }
  }
  if (!p.grad_gate && !p.grad_bias) return -1;
#pragma omp parallel for num_threads(p.threads) schedule(static)
  for (int t = 0; t < p.threads; t++)
    for (int64_t b = 0; b < p.B; b++) {
      T* grad_gate = p.grad_gate ? p.grad_gate + p.how.group(b) * O : nullptr;
      for (int64_t q = b * k; q < (b + 1) * k; q++) {
        const int64_t o = p.indices[q];
        if (o < t * tile || o >= (t + 1) * tile || !passes(p.relu, p.values[q])) continue;
        if (p.grad_bias) p.grad_bias[o] += p.grad_y[q];
        if (grad_gate) grad_gate[o] += p.how.add ? p.grad_values[q] : p.grad_values[q] * p.pre[q];
      }
    }
  return -1;
}

template <class T> void duty_cycle(const DutyCycle<T>& p) {
  const Buffer<T> active(p.units);
  for (int64_t u = 0; u < p.units; u++) active[u] = 0;
  for (int64_t q = 0; q < p.batch * p.k; q++) active[p.indices[q]] += p.values[q] > 0;
  *p.seen += p.batch;
  const int64_t longest = lower(*p.seen, p.longest), period = longest > p.batch ? longest : p.batch;
  // separate loops, so that each operation is rounded as torch rounds it
  for (int64_t u = 0; u < p.units; u++) p.duty[u] *= T(period - p.batch);
  for (int64_t u = 0; u < p.units; u++) p.duty[u] += active[u];
  for (int64_t u = 0; u < p.units; u++) p.duty[u] /= T(period);
}
