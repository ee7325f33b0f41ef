// Everything the kernels include, read before `#pragma GCC target`: a standard header read after it would be compiled
// for that chip, and the linker might then use it for all.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <new>

#ifdef _OPENMP
#include <omp.h>
#endif
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#include <immintrin.h>
#define DK_X86_TARGETS 1  // clang has no `#pragma GCC target`: it gets the portable kernels
#else
#define DK_X86_TARGETS 0
#endif

#include "core/order.h"
#include "cpu/kernels.h"
