// Launching, and saying what went wrong.
#pragma once
#include <cuda_runtime_api.h>

#include <string>

namespace dk {

// A sentence about an error of the CUDA runtime: what it means here, and what to do.
std::string explain(cudaError_t error);

// Why kernels can't run on this device; empty: they can.
std::string why_not(int device);

// Whether this module has code for the current device.
cudaError_t has_code();

// After a launch: throws std::runtime_error where it failed, and clears the error so that the next may succeed.
void check_launch(const char* name);

}  // namespace dk

#if defined(__CUDACC__) && !defined(DK_LAUNCH)
#define DK_LAUNCH(KERNEL, GRID, THREADS, SHARED, STREAM, ...)        \
  do {                                                               \
    KERNEL<<<GRID, THREADS, SHARED, STREAM>>>(__VA_ARGS__);          \
    check_launch(__func__);                                          \
  } while (0)
// The block's memory of a size that its launch gives.
#define DK_SHARED_MEMORY(NAME) extern __shared__ double NAME[]
#endif

// X(T) for every dtype: with X an explicit instance of a function template.
#define DK_FOR_EACH_DTYPE(X) X(float) X(double) X(bf16) X(fp16)
