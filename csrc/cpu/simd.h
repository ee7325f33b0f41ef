// 64-byte vectors in GCC's vector extension (narrower chips split them), scratch memory and the thread number.

template <class T> struct Vec;
template <> struct Vec<float> {
  typedef float type __attribute__((vector_size(64)));
  typedef float loose __attribute__((vector_size(64), aligned(4), may_alias));
  static constexpr int lanes = 16;
};
template <> struct Vec<double> {
  typedef double type __attribute__((vector_size(64)));
  typedef double loose __attribute__((vector_size(64), aligned(8), may_alias));
  static constexpr int lanes = 8;
};
template <class T> using vec = typename Vec<T>::type;
template <class T> static constexpr int lanes = Vec<T>::lanes;

#define DK_INLINE static inline __attribute__((always_inline))

template <class T> DK_INLINE vec<T> load(const T* p) { return *(const typename Vec<T>::loose*)p; }
template <class T> DK_INLINE void store(T* p, vec<T> v) { *(typename Vec<T>::loose*)p = v; }
template <class T> DK_INLINE vec<T> load_some(const T* p, int64_t n) {
  vec<T> v{};
  std::memcpy(&v, p, n * sizeof(T));
  return v;
}
template <class T> DK_INLINE T sum(vec<T> v) {  // by halves: one order on every chip
  for (int width = lanes<T> / 2; width; width /= 2)
    for (int i = 0; i < width; i++) v[i] += v[i + width];
  return v[0];
}
DK_INLINE int64_t lower(int64_t a, int64_t b) { return a < b ? a : b; }
DK_INLINE int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

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
