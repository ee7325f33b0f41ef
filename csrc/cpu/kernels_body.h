// Included once for each instruction set, inside its namespace; hence no include guard.
#include "cpu/simd.h"

#include "cpu/segment_gate.h"
#include "cpu/kwinners.h"
#include "cpu/kwinners2d.h"
#include "cpu/ksparse.h"
#include "cpu/adam.h"

template <class T> Kernels<T> table() {
  return {segment_gate<T>, segment_gate_backward<T>, kwinners<T>, kwinners_backward<T>, winners_backward<T>,
          kwinners2d<T>, kwinners2d_backward<T>,
          ksparse_matmul<T>, mostly_constant_matmul<T>, unit_lists<T>, ksparse_outer<T>, densify<T>, duty_cycle<T>, rezero<T>, adam_outer<T>,
          adam_segments<T>, adam_dense<T>};
}
template Kernels<float> table<float>();
template Kernels<double> table<double>();
