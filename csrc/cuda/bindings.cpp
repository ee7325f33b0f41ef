// Python's view of the CUDA kernels: tensors, sizes and a stream. A launch that fails raises RuntimeError with
// the cause; nothing here waits for the device.
#include <pybind11/pybind11.h>

#include <stdexcept>
#include <string>
#include <type_traits>

#include "cuda/kernels.h"
#include "cuda/launch.h"
#include "tensor.h"

namespace py = pybind11;
using namespace dk;

template <class T>
static RowGate<T> row_gate(Tensor<T> y, Tensor<T> bias, Tensor<Wide<T>> gate, Tensor<Wide<T>> boost, Tensor<void> index,
                           int kind, bool wide_index, bool add) {
  return {y, bias, gate, boost, index, kind, wide_index, add};
}

template <class T>
static Outer<T> outer_of(Tensor<T> values, Tensor<int32_t> indices, int B, int k, int rows, Tensor<T> other,
                         Tensor<int32_t> columns, int n, int m, Tensor<T> out) {
  return {values, indices, B, k, rows, other, columns, n, m, out};
}

template <class T> static void define(py::module_& m, const std::string& suffix) {
  auto def = [&](const char* op, auto f) { m.def((op + suffix).c_str(), f, py::call_guard<py::gil_scoped_release>()); };

  // how: "warp" (size: entries a lane), "block" or "split" (size: units a tile); memory: split_bytes of zeros.
  def("kwinners", [](Tensor<T> y, Tensor<T> bias, Tensor<Wide<T>> gate, Tensor<Wide<T>> boost, Tensor<void> index,
                     int kind, bool wide_index, bool add, int B, int O, int k, bool relu, bool keep_ties, Tensor<T> z,
                     Tensor<uint8_t> kept, Tensor<T> values, Tensor<Wide<T>> pre, Tensor<int32_t> indices,
                     const std::string& how, int size, int warps, Tensor<void> memory, uintptr_t stream) {
    const KWinners<T> p{row_gate<T>(y, bias, gate, boost, index, kind, wide_index, add), B, O, k, relu, keep_ties, z,
                        kept, values, pre, indices};
    const auto on = (cudaStream_t)stream;
    if (how == "warp") kwinners_by_warp(p, size, warps, on);
    else if (how == "block") kwinners_by_block(p, on);
    else if (how == "split") kwinners_split(p, size, memory, on);
    else throw std::invalid_argument("kwinners: no kernel is called " + how);
  });
  def("split_bytes", split_bytes<T>);
  def("gather_product", [](Tensor<T> values, Tensor<int32_t> indices, int B, int k, int O, Tensor<T> weight,
                           int64_t stride_o, int64_t stride_i, Tensor<T> bias, Tensor<T> y, uintptr_t stream) {
    gather_product<T>({values, indices, B, k, O, weight, stride_o, stride_i, bias, y}, (cudaStream_t)stream);
  });
  def("outer", [](Tensor<T> values, Tensor<int32_t> indices, int B, int k, int rows, Tensor<T> other,
                  Tensor<int32_t> columns, int n, int m, Tensor<T> out, int warps, uintptr_t stream) {
    outer(outer_of<T>(values, indices, B, k, rows, other, columns, n, m, out), warps, (cudaStream_t)stream);
  });
  if constexpr (std::is_same_v<T, Wide<T>>) {  // no weight in half is stepped
    def("adam_outer", [](Tensor<T> values, Tensor<int32_t> indices, int B, int k, int rows, Tensor<T> other,
                         Tensor<int32_t> columns, int n, int m, Tensor<T> p, Tensor<T> moments, Tensor<T> squares,
                         Tensor<uint8_t> keep, Tensor<double> rule, Tensor<double> hyper, Tensor<T> omega,
                         Tensor<T> importance, Tensor<T> reference, double strength, bool counts_penalty, int warps,
                         uintptr_t stream) {
      const AdamStep<T> step{p, moments, squares, keep, rule, hyper, omega, importance, reference, strength,
                             counts_penalty};
      adam_outer(outer_of<T>(values, indices, B, k, rows, other, columns, n, m, {}), step, warps, (cudaStream_t)stream);
    });
  }
}

PYBIND11_MODULE(_cuda, m) {
  m.doc() = "dendrite_kernels' CUDA kernels. Use dendrite_kernels.ops, which checks its arguments.";
  define<float>(m, "_f32");
  define<double>(m, "_f64");
  define<bf16>(m, "_bf16");
  define<fp16>(m, "_f16");
  m.def("why_not", why_not, "Why kernels can't run on this device; empty: they can.");
  m.def("explain", [](int error) { return explain((cudaError_t)error); }, "A sentence about an error of CUDA's.");
  m.attr("archs") = DK_CUDA_ARCHS;
  m.attr("cuda") = std::to_string(CUDART_VERSION / 1000) + "." + std::to_string(CUDART_VERSION % 1000 / 10);
}
