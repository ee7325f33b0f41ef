// Adam on weights whose gradient is known by its factors: a row of the gradient is made in cache and used at once.
// Rows that never had gradient are skipped: with g = m = v = 0 Adam would not change a bit of them.

// Decaying moments become denormal numbers, which are slow: they count as zero inside these kernels, unless eps is so
// small (that of a user's, not the usual 1e-8) that their root, 1e-19 at most, is seen beside it.
class FlushDenormals {
 public:
#if defined(__x86_64__)
  explicit FlushDenormals(double eps) : before_(_mm_getcsr()) { _mm_setcsr(eps < 1e-12 ? before_ : before_ | 0x8040); }
  ~FlushDenormals() { _mm_setcsr(before_); }

 private:
  unsigned before_;
#else
  explicit FlushDenormals(double) {}
#endif
};

// m, v and p of n entries move by the gradient g (none: zero), as torch.optim.Adam moves them. Whether p changed.
template <bool gradient, class T>
DK_INLINE bool adam_entries(const AdamRule<T>& rule, const T* g, T* m, T* v, T* p, int64_t n) {
  int changed = 0;
#pragma omp simd reduction(| : changed)
  for (int64_t i = 0; i < n; i++) {
    const T grad = gradient ? g[i] : T(0);
    m[i] += rule.one_minus_beta1 * (grad - m[i]);
    v[i] = rule.beta2 * v[i] + rule.one_minus_beta2 * grad * grad;
    const T moved = p[i] - rule.step * m[i] / (std::sqrt(v[i]) * rule.inverse_root_correction2 + rule.eps);
    changed |= moved != p[i];
    p[i] = moved;
  }
  return changed;
}

template <class T> DK_INLINE bool adam_row(const AdamRule<T>& rule, const T* g, T* m, T* v, T* p, int64_t n) {
  return g ? adam_entries<true>(rule, g, m, v, p, n) : adam_entries<false, T>(rule, nullptr, m, v, p, n);
}

// A row without gradient that a step did not change by a bit will not change in the next ones either: it rests. `since`
// is its last step then; 0 for a row that has had no gradient yet, -1 for one that moves.
constexpr int32_t untouched = 0, moving = -1;

template <class T> DK_INLINE bool may_skip(const AdamRule<T>& rule, int32_t since, bool used) {
  return !used && (since == untouched || (since > 0 && rule.may_rest));
}

// The moments of a row that rested, as the steps since would have left them.
template <class T> DK_INLINE void wake(const AdamRule<T>& rule, int32_t& since, T* m, T* v, int64_t n) {
  if (since > 0) {
    const double idle = rule.now - 1 - since;
    const T by1 = (T)std::pow(rule.beta1, idle), by2 = (T)std::pow(rule.wide_beta2, idle);
    for (int64_t i = 0; i < n; i++) m[i] *= by1, v[i] *= by2;
  }
  since = moving;
}

template <class T> DK_INLINE void let_rest(const AdamRule<T>& rule, int32_t& since, bool used, bool changed) {
  if (!used && !changed && rule.may_rest) since = rule.now;
}

template <class T> void adam_dense(const AdamDense<T>& p) {
  const int64_t chunk = 4096, chunks = (p.n + chunk - 1) / chunk;
#pragma omp parallel for num_threads(lower(p.threads, chunks > 0 ? chunks : 1)) schedule(static)
  for (int64_t c = 0; c < chunks; c++) {
    const FlushDenormals flushed(p.rule.eps);
    const int64_t i = c * chunk;
    adam_entries<true>(p.rule, p.grad + i, p.m + i, p.v + i, p.p + i, lower(chunk, p.n - i));
  }
}

// Row `unit` of the gradient, O wide: in its place among the sums, or written out in `full`.
template <class T>
DK_INLINE const T* gradient_row(const KSparseOuter<T>& p, const OuterRows<T>& rows, int64_t unit, T* full) {
  if (!p.sums) return rows.sum_into(unit, full), full;
  const T* sums = p.sums + p.place[unit] * p.pitch;
  if (!p.cols) return sums;
  spread(sums, rows.columns(), p.O, full);
  return full;
}

// The gradient g (null: zero) of a row and the penalty's, into total.
template <class T>
DK_INLINE const T* with_penalty(const Synapses<T>& synapses, int64_t at, const T* g, const T* weights, int64_t n, T* total) {
  const T *importance = synapses.importance + at, *reference = synapses.reference + at;
  for (int64_t i = 0; i < n; i++) {
    const T penalty = synapses.strength * importance[i] * (weights[i] - reference[i]);
    total[i] = g ? g[i] + penalty : penalty;
  }
  return total;
}

template <class T>
DK_INLINE void count_change(T* omega, const T* g, const T* before, const T* weights, int64_t n) {
  for (int64_t i = 0; i < n; i++) omega[i] -= g[i] * (weights[i] - before[i]);
}

template <class T> void adam_outer(const AdamOuter<T>& p) {
  const KSparseOuter<T>& outer = p.outer;
  const Synapses<T>& synapses = p.synapses;
  const int64_t O = outer.O;
  const OuterRows<T> rows(outer);
  const int64_t row_size = round_up(O, 16) + 32, words = round_up(O, 16) / 16;
  const Buffer<T> scratch(outer.threads * 5 * row_size);
#pragma omp parallel num_threads(outer.threads)
  {
    const FlushDenormals flushed(p.rule.eps);
    T *full = scratch + thread_number() * 5 * row_size, *g = full + row_size, *kept = g + row_size;
    T *before = kept + row_size, *total = before + row_size;
#pragma omp for schedule(dynamic, 8)
    for (int64_t i = 0; i < outer.I; i++) {
      const bool used = rows.used(i);
      int32_t& since = p.since[i];
      if (may_skip(p.rule, since, used)) continue;
      T *weights = p.weight + i * O, *m = p.m + p.start[i], *v = p.v + p.start[i];
      wake(p.rule, since, m, v, p.start[i + 1] - p.start[i]);
      const T *gradient = nullptr, *seen = nullptr;
      const uint16_t* bits = p.bits ? p.bits + i * words : nullptr;
      const bool at_once = used && bits && outer.sums && outer.cols && !synapses.omega;
      if (used && !at_once) gradient = gradient_row(outer, rows, i, full);
      if (synapses.omega) {
        seen = gradient;
        if (synapses.strength != 0) gradient = with_penalty(synapses, i * O, gradient, weights, O, total);
        if (synapses.counts_penalty) seen = gradient;
        if (seen) copy_bytes(before, weights, O * sizeof(T));
      }
      bool changed;
      if (bits) {
        const int64_t n = squeeze(weights, bits, O, kept);
        if (at_once) spread_and_squeeze(outer.sums + outer.place[i] * outer.pitch, rows.columns(), bits, O, g);
        else if (gradient) squeeze(gradient, bits, O, g);
        changed = adam_row(p.rule, at_once || gradient ? (const T*)g : nullptr, m, v, kept, n);
        if (changed) spread((const T*)kept, bits, O, weights);
      } else {
        changed = adam_row(p.rule, gradient, m, v, weights, O);
      }
      if (seen && changed) count_change(synapses.omega + i * O, seen, before, weights, O);
      let_rest(p.rule, since, used, changed);
    }
  }
}

// One step of a row whose gradient has always been a multiple of the same context c: its moments are gm * c and
// gv * c * c. Returns whether it changed; product: with c, summed as segment_gate sums it.
template <class T>
DK_INLINE bool adam_rank1_row(const AdamRule<T>& rule, T gm, T gv, const T* c, const uint8_t* keep, T* p, int64_t n,
                              T& product) {
  constexpr int L = lanes<T>;
  const T step = rule.step * gm, root = std::sqrt(gv) * rule.inverse_root_correction2;
  vec<T> acc = {};
  decltype(acc != acc) changed = {};
  const auto moved_from = [&](vec<T> old, int64_t i, int64_t here) {
    const vec<T> context = here == L ? load(c + i) : load_some(c + i, here);
    vec<T> moving = context;
    for (int64_t j = 0; keep && j < here; j++) moving[j] = keep[i + j] ? moving[j] : T(0);
    const vec<T> moved = old - step * moving / (root * (moving < 0 ? -moving : moving) + rule.eps);
    acc = multiply_add<T>(moved, context, acc);  // as dot_block
    changed |= moved != old;
    return moved;
  };
  int64_t i = 0;
  for (; i + L <= n; i += L) store(p + i, moved_from(load(p + i), i, L));
  if (i < n) {
    const vec<T> moved = moved_from(load_some(p + i, n - i), i, n - i);
    copy_bytes(p + i, &moved, (n - i) * sizeof(T));
  }
  product = sum<T>(acc);
  bool any = false;
  for (int j = 0; j < L; j++) any |= changed[j] != 0;
  return any;
}

// The gradient of segment (o, s), the sum over the contexts in which it won, into g; whether it won with any.
template <class T> DK_INLINE bool segment_gradient(const AdamSegments<T>& p, int64_t o, int64_t s, T* g) {
  bool used = false;
  for (int64_t q = 0; q < p.G; q++) {
    if (p.winner[q * p.O + o] != s || p.grad[q * p.O + o] == 0) continue;
    if (!used) set_bytes(g, 0, p.C * sizeof(T));
    used = true;
    add_scaled(g, p.context + q * p.C, p.grad[q * p.O + o], p.C);
  }
  return used;
}

template <class T> void adam_segments(const AdamSegments<T>& p) {
  const int64_t C = p.C, S = p.S, row_size = round_up(C, lanes<T>) + lanes<T>;
  const Buffer<T> gradients(p.threads * row_size);
#pragma omp parallel num_threads(p.threads)
  {
    const FlushDenormals flushed(p.rule.eps);
    T* g = gradients + thread_number() * row_size;
#pragma omp for schedule(dynamic, 16)
    for (int64_t t = 0; t < p.count; t++) {
      const int64_t row = p.rows[t], o = row / S, s = row % S, n = p.rank1 ? 1 : C;
      const uint8_t* keep = p.keep ? p.keep + row * C : nullptr;
      T *weights = p.segments + row * C, *m = p.m + t * n, *v = p.v + t * n;
      const T grad = p.rank1 && p.winner[o] == s ? p.grad[o] : T(0);  // one context
      const bool used = p.rank1 ? grad != 0 : segment_gradient(p, o, s, g);
      if (may_skip(p.rule, p.since[t], used)) continue;
      wake(p.rule, p.since[t], m, v, n);
      bool changed;
      T product = 0;
      if (p.rank1) {
        *m += p.rule.one_minus_beta1 * (grad - *m);
        *v = p.rule.beta2 * *v + p.rule.one_minus_beta2 * grad * grad;
        changed = adam_rank1_row(p.rule, *m, *v, p.context, keep, weights, C, product);
      } else {
        if (used && keep)
          for (int64_t c = 0; c < C; c++) g[c] = keep[c] ? g[c] : T(0);
        changed = adam_row(p.rule, used ? (const T*)g : nullptr, m, v, weights, C);
        if (p.activations) dot_block<T, 1, 1>(weights, p.context, C, &product, 1);
      }
      if (p.activations) p.activations[row] = product;
      let_rest(p.rule, p.since[t], used, changed);
    }
  }
}
