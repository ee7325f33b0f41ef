// What the CUDA runtime's errors mean here, in sentences.
#include <stdexcept>

#include "cuda/launch.h"
#include "cuda/kernels.h"

#ifndef DK_CUDA_ARCHS
#define DK_CUDA_ARCHS "unknown"
#endif

namespace dk {

static std::string version(int number) {
  return std::to_string(number / 1000) + "." + std::to_string(number % 1000 / 10);
}

static std::string driver() {
  int number = 0;
  if (cudaDriverGetVersion(&number) != cudaSuccess || number == 0) return "no CUDA driver is installed here";
  return "the CUDA driver is too old: it supports CUDA " + version(number) + ", and these kernels were built with CUDA " +
         version(CUDART_VERSION) + "; update the driver, or reinstall with an older nvcc";
}

std::string explain(cudaError_t error) {
  const std::string name = std::string(cudaGetErrorString(error)) + " (" + cudaGetErrorName(error) + ")";
  switch (error) {
    case cudaErrorInsufficientDriver:
    case cudaErrorStubLibrary:
      return driver();
    case cudaErrorNoDevice:
      return "the CUDA driver finds no GPU";
    case cudaErrorNoKernelImageForDevice:
    case cudaErrorInvalidDeviceFunction:
    case cudaErrorUnsupportedPtxVersion:
    case cudaErrorInvalidPtx:
    case cudaErrorJitCompilerNotFound:
      return "these kernels were built for " DK_CUDA_ARCHS ", which this GPU and driver can't run; reinstall with nvcc "
             "and DENDRITE_CUDA_ARCHS set to the GPU's compute capability (90 for 9.0)";
    case cudaErrorMemoryAllocation:
      return "the GPU is out of memory; " + name;
    case cudaErrorLaunchOutOfResources:
    case cudaErrorInvalidConfiguration:
    case cudaErrorInvalidValue:
      return "the GPU can't launch it with these sizes; " + name;
    case cudaErrorIllegalAddress:
    case cudaErrorMisalignedAddress:
    case cudaErrorIllegalInstruction:
    case cudaErrorLaunchFailure:
    case cudaErrorAssert:
      return name + "; CUDA can't go on in this process (an index out of range?)";
    default:
      return name;
  }
}

void check_launch(const char* name) {
  const cudaError_t error = cudaGetLastError();  // which forgets it
  if (error != cudaSuccess) throw std::runtime_error("dendrite_kernels._cuda: " + std::string(name) + ": " + explain(error));
}

std::string why_not(int device) {
  int count = 0;
  cudaError_t error = cudaGetDeviceCount(&count);
  if (error == cudaSuccess && device >= count) error = cudaErrorInvalidDevice;
  int before = 0;
  if (error == cudaSuccess) error = cudaGetDevice(&before);
  const bool other = error == cudaSuccess && device != before;
  if (other) error = cudaSetDevice(device);
  if (error == cudaSuccess) error = has_code();
  if (other) cudaSetDevice(before);
  cudaGetLastError();  // which forgets it
  return error == cudaSuccess ? "" : explain(error);
}

}  // namespace dk
