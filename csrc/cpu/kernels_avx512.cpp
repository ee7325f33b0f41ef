// The kernels for x86-64 with AVX-512 (F, BW, DQ, VL).
#include "cpu/preamble.h"

#if DK_X86_TARGETS
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,bmi,bmi2,lzcnt,popcnt")
#define DK_AVX512 1
#define DK_VECTOR_BYTES 64

namespace dk::avx512 {
#include "cpu/kernels_body.h"
}  // namespace dk::avx512

#else
namespace dk::avx512 {
template <class T> Kernels<T> table() { return portable::table<T>(); }
template Kernels<float> table<float>();
template Kernels<double> table<double>();
}  // namespace dk::avx512
#endif
