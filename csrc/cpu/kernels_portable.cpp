// The kernels for any processor (and, on x86-64, for any of its chips).
#include "cpu/preamble.h"

namespace dk::portable {
#include "cpu/kernels_body.h"
}  // namespace dk::portable
