// The chip's own vectors in GCC's vector extension, scratch memory and the thread number.
// DK_VECTOR_BYTES is set by the file of the instruction set: GCC splits wider vectors into single numbers.

template <class T> struct Vec {
  typedef T type __attribute__((vector_size(DK_VECTOR_BYTES)));
  typedef T loose __attribute__((vector_size(DK_VECTOR_BYTES), aligned(alignof(T)), may_alias));
  static constexpr int lanes = DK_VECTOR_BYTES / sizeof(T);
};
template <class T> using vec = typename Vec<T>::type;
template <class T> static constexpr int lanes = Vec<T>::lanes;

#define DK_INLINE static inline __attribute__((always_inline))

// As memcpy and memset, but an empty tensor's null is allowed.
DK_INLINE void copy_bytes(void* to, const void* from, size_t n) { if (n) std::memcpy(to, from, n); }
DK_INLINE void set_bytes(void* to, int value, size_t n) { if (n) std::memset(to, value, n); }

template <class T> DK_INLINE vec<T> load(const T* p) { return *(const typename Vec<T>::loose*)p; }
template <class T> DK_INLINE void store(T* p, vec<T> v) { *(typename Vec<T>::loose*)p = v; }
template <class T> DK_INLINE vec<T> load_some(const T* p, int64_t n) {
  vec<T> v{};
  copy_bytes(&v, p, n * sizeof(T));
  return v;
}
template <class T> DK_INLINE T sum(vec<T> v) {  // by halves
  for (int width = lanes<T> / 2; width; width /= 2)
    for (int i = 0; i < width; i++) v[i] += v[i + width];
  return v[0];
}
#ifdef DK_AVX512
template <> inline __attribute__((always_inline)) float sum<float>(vec<float> v) { return _mm512_reduce_add_ps((__m512)v); }  // by halves too
#endif
// a * b + c, rounded once wherever the chip can: where two kernels must agree bit for bit, the compiler may not choose.
template <class T> DK_INLINE vec<T> multiply_add(vec<T> a, vec<T> b, vec<T> c) {
#if defined(DK_AVX512)
  if constexpr (sizeof(T) == 4) return (vec<T>)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
  else return (vec<T>)_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)c);
#elif defined(DK_AVX2)
  if constexpr (sizeof(T) == 4) return (vec<T>)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
  else return (vec<T>)_mm256_fmadd_pd((__m256d)a, (__m256d)b, (__m256d)c);
#else
  const vec<T> product = a * b;
  return product + c;
#endif
}

// A matrix by its strides (in elements).
template <class T> struct Matrix {
  T* data;
  int64_t columns, stride_row, stride_column;
  T* at(int64_t row, int64_t column) const { return data + row * stride_row + column * stride_column; }
};

// to[i, j] = from[j, i] for a square of `lanes` a side; the strides are those of rows.
template <class T> DK_INLINE void transpose_block(const T* from, int64_t from_stride, T* to, int64_t to_stride) {
  for (int j = 0; j < lanes<T>; j++)
    for (int i = 0; i < lanes<T>; i++) to[i * to_stride + j] = from[j * from_stride + i];
}

#ifdef DK_AVX512
DK_INLINE void transpose_block(const float* from, int64_t from_stride, float* to, int64_t to_stride) {
  __m512 r[16], t[16];
  for (int i = 0; i < 16; i++) r[i] = _mm512_loadu_ps(from + i * from_stride);
  for (int i = 0; i < 16; i += 2) t[i] = _mm512_unpacklo_ps(r[i], r[i + 1]), t[i + 1] = _mm512_unpackhi_ps(r[i], r[i + 1]);
  for (int i = 0; i < 16; i += 4)  // r[i + q]: column 4 l + q of rows i .. i + 3, for the four 128-bit lanes l
    for (int q = 0; q < 4; q++) {
      const __m512d a = _mm512_castps_pd(t[i + q / 2]), b = _mm512_castps_pd(t[i + 2 + q / 2]);
      r[i + q] = _mm512_castpd_ps(q % 2 ? _mm512_unpackhi_pd(a, b) : _mm512_unpacklo_pd(a, b));
    }
  for (int q = 0; q < 4; q++) {  // gather lane l of the four quarters of rows into one vector
    const __m512 even[2] = {_mm512_shuffle_f32x4(r[q], r[4 + q], 0x88), _mm512_shuffle_f32x4(r[8 + q], r[12 + q], 0x88)};
    const __m512 odd[2] = {_mm512_shuffle_f32x4(r[q], r[4 + q], 0xdd), _mm512_shuffle_f32x4(r[8 + q], r[12 + q], 0xdd)};
    _mm512_storeu_ps(to + q * to_stride, _mm512_shuffle_f32x4(even[0], even[1], 0x88));
    _mm512_storeu_ps(to + (4 + q) * to_stride, _mm512_shuffle_f32x4(odd[0], odd[1], 0x88));
    _mm512_storeu_ps(to + (8 + q) * to_stride, _mm512_shuffle_f32x4(even[0], even[1], 0xdd));
    _mm512_storeu_ps(to + (12 + q) * to_stride, _mm512_shuffle_f32x4(odd[0], odd[1], 0xdd));
  }
}
#endif

DK_INLINE int64_t lower(int64_t a, int64_t b) { return a < b ? a : b; }
DK_INLINE int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

// The entries of a row of n whose bit is set, side by side; returns their number. May write 16 entries past them.
template <class T> DK_INLINE int64_t squeeze(const T* row, const uint16_t* bits, int64_t n, T* out) {
  int64_t count = 0;
  for (int64_t i = 0; i < n; i++) {
    out[count] = row[i];
    count += bits[i / 16] >> i % 16 & 1;
  }
  return count;
}

// The reverse: zeros where the bit is not set. May read 15 entries past the last.
template <class T> DK_INLINE void spread(const T* in, const uint16_t* bits, int64_t n, T* row) {
  for (int64_t i = 0; i < n; i++) {
    const bool set = bits[i / 16] >> i % 16 & 1;
    row[i] = set ? *in : T(0);
    in += set;
  }
}

// The two after one another: where a row's set `columns` are side by side in `in`, those of its set `bits` into out.
template <class T>
DK_INLINE void spread_and_squeeze(const T* in, const uint16_t* columns, const uint16_t* bits, int64_t n, T* out) {
  for (int64_t i = 0; i < n; i++) {
    const bool set = columns[i / 16] >> i % 16 & 1;
    *out = set ? *in : T(0);
    in += set;
    out += bits[i / 16] >> i % 16 & 1;
  }
}

#if defined(DK_AVX512)
DK_INLINE void spread_and_squeeze(const float* in, const uint16_t* columns, const uint16_t* bits, int64_t n, float* out) {
  for (int64_t i = 0; i < n; i += 16) {
    const __mmask16 in_row = n - i >= 16 ? 0xffff : (1u << (n - i)) - 1;
    const __mmask16 column = columns[i / 16] & in_row, bit = bits[i / 16] & in_row;
    const __m512 here = _mm512_maskz_expand_ps(column, _mm512_loadu_ps(in));
    _mm512_storeu_ps(out, _mm512_maskz_compress_ps(bit, here));
    in += __builtin_popcount(column), out += __builtin_popcount(bit);
  }
}
DK_INLINE int64_t squeeze(const float* row, const uint16_t* bits, int64_t n, float* out) {
  float* end = out;
  for (int64_t i = 0; i < n; i += 16) {
    const __mmask16 in_row = n - i >= 16 ? 0xffff : (1u << (n - i)) - 1, set = bits[i / 16] & in_row;
    _mm512_storeu_ps(end, _mm512_maskz_compress_ps(set, _mm512_maskz_loadu_ps(in_row, row + i)));
    end += __builtin_popcount(set);
  }
  return end - out;
}
DK_INLINE void spread(const float* in, const uint16_t* bits, int64_t n, float* row) {
  for (int64_t i = 0; i < n; i += 16) {
    const __mmask16 in_row = n - i >= 16 ? 0xffff : (1u << (n - i)) - 1, set = bits[i / 16] & in_row;
    _mm512_mask_storeu_ps(row + i, in_row, _mm512_maskz_expand_ps(set, _mm512_loadu_ps(in)));
    in += __builtin_popcount(set);
  }
}
#elif defined(DK_AVX2)
// Bytes 0xff for the set bits; then pext picks, and pdep numbers, the lanes that are set.
DK_INLINE uint64_t byte_mask(unsigned bits) { return _pdep_u64(bits, 0x0101010101010101) * 0xff; }
DK_INLINE __m256i byte_lanes(uint64_t bytes) { return _mm256_cvtepu8_epi32(_mm_cvtsi64_si128((int64_t)bytes)); }
constexpr uint64_t lane_numbers = 0x0706050403020100;

DK_INLINE int64_t squeeze(const float* row, const uint16_t* bits, int64_t n, float* out) {
  const uint8_t* set = (const uint8_t*)bits;
  int64_t i = 0, count = 0;
  for (; i + 8 <= n; i += 8) {
    const __m256i pick = byte_lanes(_pext_u64(lane_numbers, byte_mask(set[i / 8])));
    _mm256_storeu_ps(out + count, _mm256_permutevar8x32_ps(_mm256_loadu_ps(row + i), pick));
    count += __builtin_popcount(set[i / 8]);
  }
  for (; i < n; i++) out[count] = row[i], count += set[i / 8] >> i % 8 & 1;
  return count;
}
DK_INLINE void spread(const float* in, const uint16_t* bits, int64_t n, float* row) {
  const uint8_t* set = (const uint8_t*)bits;
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    const uint64_t bytes = byte_mask(set[i / 8]);
    const __m256i mask = _mm256_cvtepi8_epi32(_mm_cvtsi64_si128((int64_t)bytes));
    const __m256 spaced = _mm256_permutevar8x32_ps(_mm256_loadu_ps(in), byte_lanes(_pdep_u64(lane_numbers, bytes)));
    _mm256_storeu_ps(row + i, _mm256_and_ps(spaced, _mm256_castsi256_ps(mask)));
    in += __builtin_popcount(set[i / 8]);
  }
  for (; i < n; i++) {
    const bool is_set = set[i / 8] >> i % 8 & 1;
    row[i] = is_set ? *in : 0.0f;
    in += is_set;
  }
}
#endif

// Flat position of the first index outside [0, size), or -1.
DK_INLINE int64_t first_bad_index(const int32_t* indices, int64_t n, int64_t size) {
  for (int64_t q = 0; q < n; q++)
    if ((uint32_t)indices[q] >= (uint64_t)size) return q;
  return -1;
}

DK_INLINE int thread_number() {
#ifdef _OPENMP
  return omp_get_thread_num();
#else
  return 0;
#endif
}

// Aligned scratch, allocated outside the parallel regions so that running out of memory can be reported.
template <class T> class Buffer {
 public:
  explicit Buffer(int64_t n) : data_((T*)std::aligned_alloc(64, round_up(n * sizeof(T) + 64, 64))) {
    if (!data_) throw std::bad_alloc();
  }
  ~Buffer() { std::free(data_); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  operator T*() const { return data_; }

 private:
  T* data_;
};
