// The kernels for any processor (and, on x86-64, for any of its chips).
#include "cpu/preamble.h"

#define DK_VECTOR_BYTES 16

namespace dk::portable {
#include "cpu/kernels_body.h"
}  // namespace dk::portable
