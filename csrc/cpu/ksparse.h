// Matrix products with k-sparse rows: two primitives serve the layer's forward pass and every gradient.

// The entries (b, j) sorted by the unit that they name, in batch order.
template <class T> int64_t unit_lists(const MakeUnitLists& p) {
  const int64_t n = p.B * p.k, bad = first_bad_index(p.indices, n, p.units);
  if (bad >= 0) return -1 - bad;
  const Buffer<int32_t> next(p.units + 1);
  set_bytes(next, 0, (p.units + 1) * sizeof(int32_t));
  for (int64_t q = 0; q < n; q++) next[p.indices[q] + 1]++;
  for (int64_t u = 0; u < p.units; u++) next[u + 1] += next[u];
  copy_bytes(p.start, next, (p.units + 1) * sizeof(int32_t));
  for (int64_t b = 0, q = 0; b < p.B; b++)
    for (int64_t j = 0; j < p.k; j++, q++) {
      const int32_t place = next[p.indices[q]]++;
      p.entry[place] = (int32_t)q;
      p.sample[place] = (int32_t)b;
    }
  int32_t count = 0;
  for (int64_t u = 0; u < p.units; u++)
    if (p.start[u + 1] > p.start[u]) p.place[u] = count, p.used[count++] = (int32_t)u;
  return count;
}

#ifdef DK_AVX512
constexpr int registers = 32;
#else
constexpr int registers = 16;
#endif
constexpr int panel_vectors = registers / 8, fetched_ahead = 8;
template <class T> constexpr int64_t panel_width = panel_vectors * lanes<T>;  // columns that are multiplied together

// N vectors of columns: out[:] = bias + sum_j values[j] * rows[offsets[j] ...], in A sums that are added up at the end.
// ahead: how many entries ahead rows are fetched, so that as many offsets follow the last; 0 where they are in cache.
template <int N, int A, int ahead, class T>
DK_INLINE void panel_product(const T* values, const int64_t* offsets, int64_t k, const T* rows, const T* bias, T* out) {
  constexpr int L = lanes<T>;
  vec<T> acc[A][N] = {};
  for (int v = 0; v < N; v++) acc[0][v] = load(bias + v * L);
  int64_t j = 0;
  for (; j + A <= k; j += A)
    for (int q = 0; q < A; q++) {
#pragma GCC unroll 16
      for (int v = 0; v < N; v++) {
        if (ahead) __builtin_prefetch(rows + offsets[j + q + ahead] + v * L);
        acc[q][v] += values[j + q] * load(rows + offsets[j + q] + v * L);
      }
    }
  for (; j < k; j++)
    for (int v = 0; v < N; v++) acc[0][v] += values[j] * load(rows + offsets[j] + v * L);
  for (int q = A / 2; q; q /= 2)
    for (int p = 0; p < q; p++)
      for (int v = 0; v < N; v++) acc[p][v] += acc[p + q][v];
  for (int v = 0; v < N; v++) store(out + v * L, acc[0][v]);
}

// The columns [o, o + width) of rows of m, packed side by side; columns past O are zero. rows: which (null: the first n).
template <class T>
DK_INLINE void pack_panel(const Matrix<const T>& m, const int32_t* rows, int64_t n, int64_t o, T* panel) {
  constexpr int64_t L = lanes<T>, width = panel_width<T>;
  const int64_t here = lower(width, m.columns - o);
  if (m.stride_column == 1 && here == width) {
    for (int64_t r = 0; r < n; r++) copy_bytes(panel + r * width, m.at(rows ? rows[r] : r, o), width * sizeof(T));
    return;
  }
  int64_t r = 0;
  if (m.stride_row == 1 && here == width && !rows)
    for (; r + L <= n; r += L)
      for (int64_t c = 0; c < width; c += L) transpose_block(m.at(r, o + c), m.stride_column, panel + r * width + c, width);
  for (; r < n; r++) {
    const int64_t row = rows ? rows[r] : r;
    for (int64_t c = 0; c < width; c++) panel[r * width + c] = c < here ? *m.at(row, o + c) : T(0);
  }
}

// The rows of a sparse matrix. Its entries say where the matrix, or a packed panel of it, holds the row that they
// multiply.
template <class T> struct PanelRows {
  const T* values;
  const int64_t *offsets, *first;  // entries of row b: [first[b], first[b + 1])
  int64_t B;
};

// The sum of a panel's n rows.
template <class T> DK_INLINE void sum_rows(const T* panel, int64_t n, T* out) {
  constexpr int64_t L = lanes<T>;
  vec<T> sums[panel_vectors] = {};
  for (int64_t i = 0; i < n; i++)
    for (int v = 0; v < panel_vectors; v++) sums[v] += load(panel + (panel_vectors * i + v) * L);
  for (int v = 0; v < panel_vectors; v++) store(out + v * L, sums[v]);
}

// y[:, o .. o + width) = base + x times the panel. A: how many sums a whole panel's products are added up in.
template <int A, class T>
DK_INLINE void multiply_panel(const PanelRows<T>& x, const T* panel, const T* base, int64_t o, int64_t O, T* y) {
  constexpr int64_t width = panel_width<T>;
  const int64_t here = lower(width, O - o);
  alignas(64) T row[width];
  for (int64_t b = 0; b < x.B; b++) {
    const int64_t q = x.first[b], k = x.first[b + 1] - q;
    T* out = y + b * O + o;
    if (here == width) panel_product<panel_vectors, A, 0>(x.values + q, x.offsets + q, k, panel, base, out);
    else if (here <= lanes<T>) panel_product<1, 4, 0>(x.values + q, x.offsets + q, k, panel, base, row);
    else if (here <= 2 * lanes<T>) panel_product<2, 4, 0>(x.values + q, x.offsets + q, k, panel, base, row);
    else panel_product<panel_vectors, 4, 0>(x.values + q, x.offsets + q, k, panel, base, row);
    if (here < width) copy_bytes(out, row, here * sizeof(T));
  }
}

// Where packed rows would be used few times, rows whose columns lie side by side are read where they are instead. Rows
// that a shared cache holds may be read more often (measured with 4 to 64 MB of them; the second number is for those).
constexpr int64_t few_uses = 4, few_cached_uses = 9, cached_bytes = 16 << 20;

inline bool is_few(int64_t entries, int64_t rows, int64_t row_bytes) {
  return entries < (rows * row_bytes <= cached_bytes ? few_cached_uses : few_uses) * rows;
}

// The first panels of y = base + x m, sample by sample: a sample's rows are read from end to end. x's offsets are m's,
// and fetched_ahead more follow them.
template <class T>
void multiply_in_place(const PanelRows<T>& x, const T* m, const T* base, int64_t panels, int64_t O, T* y, int threads) {
  constexpr int vectors = registers / 2;
  constexpr int64_t width = panel_width<T>, wide = vectors * lanes<T>;
  const int64_t end = panels * width;
  const int64_t piece = x.B * (end / wide) < threads ? width : wide;  // something for each thread
  const int64_t pieces = (end + piece - 1) / piece;
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t t = 0; t < x.B * pieces; t++) {
    const int64_t b = t / pieces, q = x.first[b], k = x.first[b + 1] - q;
    const T* values = x.values + q;
    const int64_t *offsets = x.offsets + q, last = lower(t % pieces * piece + piece, end);
    int64_t o = t % pieces * piece;
    if (o + wide <= last) {
      panel_product<vectors, 1, fetched_ahead>(values, offsets, k, m + o, base + o, y + b * O + o);
      o += wide;
    }
    for (; o < last; o += width)
      panel_product<panel_vectors, 1, fetched_ahead>(values, offsets, k, m + o, base + o, y + b * O + o);
  }
}

template <class T> void ksparse_in_place(const KSparseMatmul<T>& p, const int64_t* first, int64_t panels) {
  const int64_t n = p.B * p.k;
  const Buffer<int64_t> offsets(n + fetched_ahead);
  const Buffer<T> zeros(p.bias ? 0 : p.O);
  for (int64_t q = 0; q < n; q++) offsets[q] = p.indices[q] * p.stride_i;
  set_bytes(offsets + n, 0, fetched_ahead * sizeof(int64_t));
  if (!p.bias) set_bytes(zeros, 0, p.O * sizeof(T));
  const PanelRows<T> x{p.values, offsets, first, p.B};
  multiply_in_place<T>(x, p.m, p.bias ? p.bias : (const T*)zeros, panels, p.O, p.y, p.threads);
}

template <class T> int64_t ksparse_matmul(const KSparseMatmul<T>& p) {
  const int64_t n = p.B * p.k, width = panel_width<T>, panels = (p.O + width - 1) / width;
  const int64_t bad = first_bad_index(p.indices, n, p.I);
  if (bad >= 0) return bad;
  const Matrix<const T> m{p.m, p.O, p.stride_i, p.stride_o};
  // The rows in use get numbers in order, and each panel a packed copy of its columns of them, which stays in cache.
  const Buffer<int32_t> number(p.I), used(p.I);
  const Buffer<int64_t> packed(n), first(p.B + 1);
  int64_t active = 0;
  set_bytes(number, 0xff, p.I * sizeof(int32_t));
  for (int64_t b = 0; b <= p.B; b++) first[b] = b * p.k;
  for (int64_t q = 0; q < n; q++) {
    int32_t& r = number[p.indices[q]];
    if (r < 0) used[active] = p.indices[q], r = (int32_t)active++;
    packed[q] = r * width;
  }
  const int64_t in_place = p.stride_o == 1 && is_few(n, active, p.O * sizeof(T)) ? p.O / width : 0;  // panels
  if (in_place) ksparse_in_place(p, first, in_place);
  if (in_place == panels) return -1;
  const Buffer<T> scratch(p.threads * (active * width + width));
#pragma omp parallel for num_threads(p.threads) schedule(dynamic)
  for (int64_t t = in_place; t < panels; t++) {
    const int64_t o = t * width;
    T* panel = scratch + thread_number() * (active * width + width);
    alignas(64) T bias[panel_width<T>] = {};
    if (p.bias) copy_bytes(bias, p.bias + o, lower(width, p.O - o) * sizeof(T));
    pack_panel(m, (const int32_t*)used, active, o, panel);
    multiply_panel<4>(PanelRows<T>{p.values, packed, first, p.B}, (const T*)panel, bias, o, p.O, p.y);
  }
  return -1;
}

// The one number that more than half of the entries equal, if any does (Boyer and Moore's vote).
template <class T> DK_INLINE T majority(const T* x, int64_t n) {
  T candidate = 0;
  int64_t votes = 0;
  for (int64_t i = 0; i < n; i++) {
    if (!votes) candidate = x[i];
    votes += x[i] == candidate ? 1 : -1;
  }
  return candidate;
}

template <class T> DK_INLINE int64_t count_other(const T* x, int64_t n, T common) {
  int64_t count = 0;
  for (int64_t i = 0; i < n; i++) count += x[i] != common;
  return count;
}

// x m = common * (sums of m's columns) + (x - common) m, where x - common has few entries that are not zero.
// False, with y undefined, where x is not such a matrix or a sum is not finite.
template <class T> bool mostly_constant_matmul(const MostlyConstantMatmul<T>& p) {
  constexpr int64_t width = panel_width<T>;
  const int64_t panels = (p.O + width - 1) / width;
  if (!p.B || !p.I) return false;
  const T common = majority(p.x, p.I);
  const int64_t most = (int64_t)(p.most_others * p.I);
  if (!(std::fabs(common) <= T(1e9)) || count_other(p.x, p.I, common) > most) return false;
  const Buffer<int64_t> first(p.B + 1);
#pragma omp parallel for num_threads(p.threads) schedule(static)
  for (int64_t b = 0; b < p.B; b++) first[b + 1] = count_other(p.x + b * p.I, p.I, common);
  first[0] = 0;
  for (int64_t b = 0; b < p.B; b++) first[b + 1] += first[b];
  if (first[p.B] > most * p.B) return false;
  const Buffer<T> values(first[p.B] + 1);
  const Buffer<int64_t> offsets(first[p.B] + 1 + fetched_ahead);
  set_bytes(offsets + first[p.B], 0, (1 + fetched_ahead) * sizeof(int64_t));
  const Matrix<const T> m{p.m, p.O, p.stride_i, p.stride_o};
  const PanelRows<T> others{values, offsets, first, p.B};
  const bool in_place = p.few && p.sums && p.stride_o == 1 && p.O % width == 0;
  bool finite = true;
#pragma omp parallel for num_threads(p.threads) schedule(static)
  for (int64_t b = 0; b < p.B; b++)
    for (int64_t i = 0, q = first[b]; q < first[b + 1]; i++) {
      const T x = p.x[b * p.I + i];
      values[q] = x - common, offsets[q] = i * (in_place ? p.stride_i : width);
      q += x != common;
    }
  if (in_place) {
    const Buffer<T> base(p.O);
    for (int64_t o = 0; o < p.O; o++) base[o] = p.sums[o] * common, finite = finite && std::isfinite(base[o]);
    if (finite) multiply_in_place<T>(others, p.m, base, panels, p.O, p.y, p.threads);
    return finite;
  }
  const Buffer<T> scratch(p.threads * p.I * width);
#pragma omp parallel for num_threads(p.threads) schedule(dynamic) reduction(&& : finite)
  for (int64_t t = 0; t < panels; t++) {
    const int64_t o = t * width;
    T* panel = scratch + thread_number() * p.I * width;
    alignas(64) T base[width] = {};
    pack_panel(m, (const int32_t*)nullptr, p.I, o, panel);
    if (p.sums) copy_bytes(base, p.sums + o, lower(width, p.O - o) * sizeof(T));
    else sum_rows(panel, p.I, base);
    for (T& sum : base) sum *= common, finite = finite && std::isfinite(sum);
    if (p.few) multiply_panel<1>(others, (const T*)panel, base, o, p.O, p.y);
    else multiply_panel<4>(others, (const T*)panel, base, o, p.O, p.y);
  }
  return finite;
}

// The entries of one unit, and what they are summed into: out = sum of value * r's row, and each entry's product with
// w, kept as a vector in dots.
template <class T> struct UnitBlock {
  const int32_t *entry, *sample;
  int64_t entries;
  const T *values, *r;
  int64_t pitch;
  const T* w;
  T* out;
  vec<T>* dots;
  bool first;
};

// For N vectors of columns; all of its arrays are meant for registers.
template <bool sums, bool products, int N, class T> DK_INLINE void unit_block(const UnitBlock<T>& p) {
  constexpr int L = lanes<T>;
  vec<T> acc[N] = {}, w[N];
#pragma GCC unroll 16
  for (int v = 0; products && v < N; v++) w[v] = load(p.w + v * L);
  for (int64_t e = 0; e < p.entries; e++) {
    const T* row = p.r + p.sample[e] * p.pitch;
    const T value = sums ? p.values[p.entry[e]] : T(0);
    vec<T> dot[2] = {};  // chains of sums short enough to overlap
#pragma GCC unroll 16
    for (int v = 0; v < N; v++) {
      const vec<T> x = load(row + v * L);
      if (sums) acc[v] += value * x;
      if (products) dot[v % 2] += x * w[v];
    }
    if (!products) continue;
    const vec<T> whole = dot[0] + dot[1];
    p.dots[e] = p.first ? whole : p.dots[e] + whole;
  }
  if (sums)
#pragma GCC unroll 16
    for (int v = 0; v < N; v++) store(p.out + v * L, acc[v]);
}

// Vectors of columns at a time: what sums, products or both leave room for.
template <bool sums, bool products> constexpr int most_vectors = (sums && products) ? registers / 2 - 3 : registers / 2;

template <bool sums, bool products, int N, class T> DK_INLINE void unit_block_of(int vectors, const UnitBlock<T>& p) {
  if (vectors == N) unit_block<sums, products, N>(p);
  else if constexpr (N > 1) unit_block_of<sums, products, N - 1>(vectors, p);
}

// Rows of x^T r, one unit at a time, and the products of r with the rows of m, for k-sparse x. The scratch is shared out
// to threads; a unit's row is summed over its entries in batch order.
template <class T> class OuterRows {
 public:
  explicit OuterRows(const KSparseOuter<T>& p)
      : p_(p),
        pitch_(round_up(p.n, lanes<T>)),
        padded_(p.r && pitch_ != p.n ? p.B * pitch_ : 0),
        weights_(p.threads * (pitch_ + 16)),
        sums_(p.threads * (pitch_ + lanes<T>)),
        dots_(p.grad_values ? p.threads * (p.B * p.k + 1) : 0),
        columns_(p.cols ? round_up(p.O, 16) / 16 : 0) {
    if (p.cols) set_bytes(columns_, 0, round_up(p.O, 16) / 8);
    for (int64_t j = 0; p.cols && j < p.n; j++) columns_[p.cols[j] / 16] |= (uint16_t)(1 << p.cols[j] % 16);
    if (!p.r || pitch_ == p.n) return;
    set_bytes(padded_, 0, p.B * pitch_ * sizeof(T));  // whole vectors: the inner loops have no tails
    for (int64_t b = 0; b < p.B; b++) copy_bytes(padded_ + b * pitch_, p.r + b * p.n, p.n * sizeof(T));
  }

  bool used(int64_t unit) const { return p_.start[unit + 1] > p_.start[unit]; }

  const uint16_t* columns() const { return columns_; }  // a bit for each of cols

  // Row `unit` of the product, O wide, into out.
  void sum_into(int64_t unit, T* out) const {
    T* sums = sums_ + thread_number() * (pitch_ + lanes<T>);
    set_bytes(out, 0, p_.O * sizeof(T));
    if (!used(unit)) return;
    run<true, false>(unit, nullptr, p_.cols ? sums : out, nullptr);
    for (int64_t j = 0; p_.cols && j < p_.n; j++) out[p_.cols[j]] = sums[j];
  }

  // The row over just the columns cols, into p.sums.
  void sum_only(int64_t unit) const { run<true, false>(unit, nullptr, p_.sums + p_.place[unit] * p_.pitch, nullptr); }

  // The products of the unit's row of m with r's rows, into grad_values; and, where wanted, its sums.
  void multiply(int64_t unit, T* out) const {
    const int64_t me = thread_number(), size = pitch_ + lanes<T>;
    T *w = weights_ + me * (pitch_ + 16), *sums = sums_ + me * size;
    vec<T>* dots = dots_ + me * (p_.B * p_.k + 1);
    if (out) set_bytes(out, 0, p_.O * sizeof(T));
    if (!used(unit)) return;
    const T* row = p_.m + unit * p_.stride_i;
    if (p_.stride_o != 1)
      for (int64_t c = 0; c < p_.n; c++) w[c] = row[(p_.cols ? p_.cols[c] : c) * p_.stride_o];
    else if (p_.cols) squeeze(row, (const uint16_t*)columns_, p_.O, w);
    else copy_bytes(w, row, p_.n * sizeof(T));
    for (int64_t c = p_.n; c < pitch_; c++) w[c] = 0;
    if (p_.sums) run<true, true>(unit, w, p_.sums + p_.place[unit] * p_.pitch, dots);
    else if (out) run<true, true>(unit, w, sums, dots);
    else run<false, true>(unit, w, sums, dots);
    for (int64_t q = p_.start[unit]; q < p_.start[unit + 1]; q++)
      p_.grad_values[p_.entry[q]] = pitch_ ? sum<T>(dots[q - p_.start[unit]]) : T(0);
    for (int64_t j = 0; out && j < p_.n; j++) out[p_.cols ? p_.cols[j] : j] = sums[j];
  }

 private:
  template <bool sums, bool products> void run(int64_t unit, const T* w, T* out, vec<T>* dots) const {
    const int64_t begin = p_.start[unit], vectors = pitch_ / lanes<T>;
    const T* r = pitch_ == p_.n ? p_.r : (const T*)padded_;
    constexpr int most = most_vectors<sums, products>;
    int64_t blocks = (vectors + most - 1) / most;
    for (int64_t v = 0; v < vectors; blocks--) {  // of as equal a width as can be
      const int64_t width = (vectors - v + blocks - 1) / blocks, c = v * lanes<T>;
      const UnitBlock<T> block{p_.entry + begin, p_.sample + begin, p_.start[unit + 1] - begin, p_.values, r + c, pitch_,
                               w + c, out + c, dots, v == 0};
      unit_block_of<sums, products, most>((int)width, block);
      v += width;
    }
  }

  const KSparseOuter<T>& p_;
  int64_t pitch_;
  Buffer<T> padded_, weights_, sums_;
  Buffer<vec<T>> dots_;
  Buffer<uint16_t> columns_;
};

template <class T> void ksparse_outer(const KSparseOuter<T>& p) {
  const OuterRows<T> rows(p);
  const int64_t group = 16, row_size = round_up(p.O, lanes<T>) + lanes<T>;  // 16 rows are written side by side
  const Buffer<T> tiles(p.grad_m ? p.threads * group * row_size : 0);
#pragma omp parallel for num_threads(p.threads) schedule(dynamic, 2)
  for (int64_t i0 = 0; i0 < p.I; i0 += group) {
    const int64_t here = lower(group, p.I - i0);
    T* tile = p.grad_m ? tiles + thread_number() * group * row_size : nullptr;
    for (int64_t u = 0; u < here; u++) {
      T* out = tile ? tile + u * row_size : nullptr;
      if (p.grad_values) rows.multiply(i0 + u, out);
      else if (tile) rows.sum_into(i0 + u, out);
      else if (rows.used(i0 + u)) rows.sum_only(i0 + u);
    }
    if (!tile) continue;
    T* grad = p.grad_m + i0 * p.grad_stride_i;
    if (p.grad_stride_o == 1)
      for (int64_t u = 0; u < here; u++) copy_bytes(grad + u * p.grad_stride_i, tile + u * row_size, p.O * sizeof(T));
    else
      for (int64_t o = 0; o < p.O; o++)
        for (int64_t u = 0; u < here; u++) grad[o * p.grad_stride_o + u * p.grad_stride_i] = tile[u * row_size + o];
  }
}

template <class T> int64_t densify(const Densify<T>& p) {
  const int64_t bad = p.place ? -1 : first_bad_index(p.indices, p.B * p.k, p.O);
  if (bad >= 0) return bad;
#pragma omp parallel for num_threads(p.threads) schedule(static)
  for (int64_t b = 0; b < p.B; b++) {
    T* z = p.z + b * p.O;
    if (!p.gather) set_bytes(z, 0, p.O * sizeof(T));
    for (int64_t q = b * p.k; q < (b + 1) * p.k; q++) {
      T& here = z[p.place ? p.place[p.indices[q]] : p.indices[q]];
      if (p.gather) p.values[q] = here;
      else here += p.values[q];
    }
  }
  return -1;
}

template <class T> void rezero(const Rezero<T>& p) {
#pragma omp parallel for num_threads(p.threads) schedule(static)
  for (int64_t i = 0; i < p.n; i++) p.weight[i] = p.keep[i] ? p.weight[i] : T(0);
}
