// The kernels for x86-64 with AVX2 and FMA.
#include "cpu/preamble.h"

#if DK_X86_TARGETS
#pragma GCC target("avx2,fma,bmi,bmi2,lzcnt,popcnt")

#define DK_AVX2 1
#define DK_VECTOR_BYTES 32

namespace dk::avx2 {
#include "cpu/kernels_body.h"
}  // namespace dk::avx2

#else
namespace dk::avx2 {
template <class T> Kernels<T> table() { return portable::table<T>(); }
template Kernels<float> table<float>();
template Kernels<double> table<double>();
}  // namespace dk::avx2
#endif
