// Segment activations, their winner and the gate, in one pass over the segments; and the gradients.

// R segment rows times Q contexts. Each product is one vector accumulator run along C, whatever R and Q are, so
// that a gate has the same bits in any batch.
template <class T, int R, int Q>
DK_INLINE void dot_block(const T* u, const T* c, int64_t C, T* out, int64_t out_stride) {
  constexpr int L = lanes<T>;
  vec<T> acc[R][Q] = {};
  int64_t i = 0;
  for (; i + L <= C; i += L)
    for (int q = 0; q < Q; q++) {
      vec<T> cv = load(c + q * C + i);
      for (int r = 0; r < R; r++) acc[r][q] = multiply_add<T>(load(u + r * C + i), cv, acc[r][q]);
    }
  if (i < C)
    for (int q = 0; q < Q; q++) {
      vec<T> cv = load_some(c + q * C + i, C - i);
      for (int r = 0; r < R; r++) acc[r][q] = multiply_add<T>(load_some(u + r * C + i, C - i), cv, acc[r][q]);
    }
  for (int q = 0; q < Q; q++)
    for (int r = 0; r < R; r++) out[q * out_stride + r] = sum<T>(acc[r][q]);
}

template <class T, int Q> DK_INLINE void unit_dots(const T* u, const T* c, int64_t S, int64_t C, T* out) {
  int64_t s = 0;
  for (; s + 4 <= S; s += 4) dot_block<T, 4, Q>(u + s * C, c, C, out + s, S);
  for (; s < S; s++) dot_block<T, 1, Q>(u + s * C, c, C, out + s, S);
}

template <class T> DK_INLINE int32_t strongest(const T* a, int64_t S, bool abs_max) {
  int64_t best = 0;
  Key<T> top = ordered_key(abs_max ? std::fabs(a[0]) : a[0]);
  for (int64_t s = 1; s < S; s++) {
    Key<T> key = ordered_key(abs_max ? std::fabs(a[s]) : a[s]);
    if (key > top) top = key, best = s;
  }
  return (int32_t)best;
}

template <class T> void segment_gate(const SegmentGate<T>& p) {
  const int64_t S = p.S, C = p.C, O = p.O;
  const Buffer<T> scratch(p.threads * 4 * S);
#pragma omp parallel for num_threads(p.threads) schedule(static)
  for (int64_t o = 0; o < O; o++) {
    T* a = scratch + thread_number() * 4 * S;
    const T* u = p.segments + o * S * C;
    for (int64_t g = 0; g < p.G;) {
      const int q = p.G - g >= 4 ? 4 : 1;
      if (p.known) copy_bytes(a, p.known + o * S, S * sizeof(T));
      else if (q == 4) unit_dots<T, 4>(u, p.context + g * C, S, C, a);
      else unit_dots<T, 1>(u, p.context + g * C, S, C, a);
      if (p.activations) copy_bytes(p.activations + o * S, a, S * sizeof(T));
      for (int j = 0; j < q; j++, g++) {
        T* row = a + j * S;
        if (p.bias)
          for (int64_t s = 0; s < S; s++) row[s] += p.bias[o * S + s];
        const int32_t w = strongest(row, S, p.abs_max);
        p.winner[g * O + o] = w;
        p.gate[g * O + o] = p.sigmoid ? T(1) / (T(1) + std::exp(-row[w])) : row[w];
      }
    }
  }
}

template <class T> DK_INLINE void add_scaled(T* out, const T* in, T scale, int64_t n) {
  for (int64_t i = 0; i < n; i++) out[i] += scale * in[i];
}

template <class T> void segment_gate_backward(const SegmentGateBackward<T>& p) {
  const int64_t S = p.S, C = p.C, O = p.O, G = p.G;
  const Buffer<T> grad(G * O);  // of the winning activation
#pragma omp parallel for num_threads(p.threads) schedule(static)
  for (int64_t q = 0; q < G * O; q++) {
    const T gate = p.gate[q];
    grad[q] = p.sigmoid ? p.grad_gate[q] * gate * (T(1) - gate) : p.grad_gate[q];
  }
#pragma omp parallel for num_threads(p.threads) schedule(static)
  for (int64_t o = 0; o < O; o++) {
    if (p.grad_segments) set_bytes(p.grad_segments + o * S * C, 0, S * C * sizeof(T));
    if (p.grad_bias) set_bytes(p.grad_bias + o * S, 0, S * sizeof(T));
    for (int64_t g = 0; g < G; g++) {
      const int64_t q = g * O + o, row = o * S + p.winner[q];
      if (p.grad_segments) add_scaled(p.grad_segments + row * C, p.context + g * C, grad[q], C);
      if (p.grad_bias) p.grad_bias[row] += grad[q];
    }
  }
  if (!p.grad_context) return;
  const int64_t tile = 256, tiles = (C + tile - 1) / tile;  // a tile of one context's gradient stays in cache
#pragma omp parallel for num_threads(p.threads) schedule(static)
  for (int64_t t = 0; t < G * tiles; t++) {
    const int64_t g = t / tiles, c = t % tiles * tile, n = lower(tile, C - c);
    T* out = p.grad_context + g * C + c;
    set_bytes(out, 0, n * sizeof(T));
    for (int64_t o = 0; o < O; o++)
      add_scaled(out, p.segments + (o * S + p.winner[g * O + o]) * C + c, grad[g * O + o], n);
  }
}
