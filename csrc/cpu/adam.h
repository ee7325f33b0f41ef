// Adam on weights whose gradient is known by its factors: a row of the gradient is made in cache and used at once.
// Rows that never had gradient are skipped: with g = m = v = 0 Adam would not change a bit of them.

// Decaying moments become denormal numbers, which are slow: they count as zero inside these kernels.
class FlushDenormals {
 public:
#if defined(__x86_64__)
  FlushDenormals() : before_(_mm_getcsr()) { _mm_setcsr(before_ | 0x8040); }
  ~FlushDenormals() { _mm_setcsr(before_); }

 private:
  unsigned before_;
#endif
};

// m, v and p of n entries move by the gradient g (null: zero), as torch.optim.Adam moves them.
template <class T> DK_INLINE void adam_row(const AdamRule<T>& rule, const T* g, T* m, T* v, T* p, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; i++) {
    const T grad = g ? g[i] : T(0);
    m[i] += rule.one_minus_beta1 * (grad - m[i]);
    v[i] = rule.beta2 * v[i] + rule.one_minus_beta2 * grad * grad;
    p[i] -= rule.step * m[i] / (std::sqrt(v[i]) * rule.inverse_root_correction2 + rule.eps);
  }
}

template <class T> int64_t adam_outer(const AdamOuter<T>& p) {
  const KSparseOuter<T>& outer = p.outer;
  const int64_t bad = first_bad_index(outer.indices, outer.B * outer.k, outer.I), O = outer.O;
  if (bad >= 0) return bad;
  const OuterRows<T> rows(outer);
  const int64_t row_size = round_up(O, lanes<T>) + lanes<T>;
  const Buffer<T> gradients(outer.threads * row_size);
#pragma omp parallel num_threads(outer.threads)
  {
    const FlushDenormals flushed;
    T* g = gradients + thread_number() * row_size;
#pragma omp for schedule(dynamic, 8)
    for (int64_t i = 0; i < outer.I; i++) {
      const bool used = rows.used(i);
      if (!used && !p.touched[i]) continue;
      p.touched[i] = 1;
      if (used) rows.row(i, g);
      if (used && p.keep) {
        const uint8_t* keep = p.keep + i * O;
        for (int64_t o = 0; o < O; o++) g[o] = keep[o] ? g[o] : T(0);
      }
      adam_row(p.rule, used ? (const T*)g : nullptr, p.m + i * O, p.v + i * O, p.weight + i * O, O);
    }
  }
  return -1;
}

// One step of a row whose gradient has always been a multiple of the same context c: its moments are gm * c and
// gv * c * c. Returns the row's new product with c, summed as segment_gate sums it.
template <class T>
DK_INLINE T adam_rank1_row(const AdamRule<T>& rule, T gm, T gv, const T* c, const uint8_t* keep, T* p, int64_t n) {
  constexpr int L = lanes<T>;
  const T step = rule.step * gm, root = std::sqrt(gv) * rule.inverse_root_correction2, eps = rule.eps;
  vec<T> acc = {};
  for (int64_t i = 0; i < n; i += L) {
    const int here = (int)lower(L, n - i);
    alignas(64) T moved[L] = {};
#pragma omp simd
    for (int j = 0; j < here; j++) {
      const T context = keep && !keep[i + j] ? T(0) : c[i + j];
      moved[j] = p[i + j] - step * context / (root * std::fabs(context) + eps);
    }
    if (here == L) {
      store(p + i, load(moved));
      acc += load(moved) * load(c + i);
    } else {
      std::memcpy(p + i, moved, here * sizeof(T));
      acc += load(moved) * load_some(c + i, here);
    }
  }
  return sum<T>(acc);
}

// The gradient of segment (o, s): sum over the contexts in which it won.
template <class T> DK_INLINE void segment_gradient(const AdamSegments<T>& p, int64_t o, int64_t s, T* g) {
  std::memset(g, 0, p.C * sizeof(T));
  for (int64_t q = 0; q < p.G; q++)
    if (p.winner[q * p.O + o] == s) add_scaled(g, p.context + q * p.C, p.grad[q * p.O + o], p.C);
}

template <class T> void adam_segments(const AdamSegments<T>& p) {
  const int64_t C = p.C, S = p.S, row_size = round_up(C, lanes<T>) + lanes<T>;
  const Buffer<T> gradients(p.threads * row_size);
#pragma omp parallel num_threads(p.threads)
  {
    const FlushDenormals flushed;
    T* g = gradients + thread_number() * row_size;
#pragma omp for schedule(static)
    for (int64_t t = 0; t < p.count; t++) {
      const int64_t row = p.rows[t], o = row / S, s = row % S;
      const uint8_t* keep = p.keep ? p.keep + row * C : nullptr;
      T* weights = p.segments + row * C;
      if (p.rank1) {  // one context
        const T grad = p.winner[o] == s ? p.grad[o] : T(0);
        p.m[t] += p.rule.one_minus_beta1 * (grad - p.m[t]);
        p.v[t] = p.rule.beta2 * p.v[t] + p.rule.one_minus_beta2 * grad * grad;
        const T product = adam_rank1_row(p.rule, p.m[t], p.v[t], p.context, keep, weights, C);
        if (p.activations) p.activations[row] = product;
      } else {
        segment_gradient(p, o, s, g);
        if (keep)
          for (int64_t c = 0; c < C; c++) g[c] = keep[c] ? g[c] : T(0);
        adam_row(p.rule, (const T*)g, p.m + t * C, p.v + t * C, weights, C);
        if (p.activations) dot_block<T, 1, 1>(weights, p.context, C, p.activations + row, 1);
      }
    }
  }
}
