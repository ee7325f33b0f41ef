// What csrc/cuda names of the CUDA runtime, for the emulator.
#pragma once

#define CUDART_VERSION 0

using cudaStream_t = void*;
enum cudaError_t { cudaSuccess };
struct cudaFuncAttributes {};
template <class F> cudaError_t cudaFuncGetAttributes(cudaFuncAttributes*, F) { return cudaSuccess; }
