// Python's view of the CUDA kernels: tensors by address, sizes and a stream. A launch that fails raises RuntimeError with
// the cause; nothing here waits for the device.
#include <pybind11/pybind11.h>

#include <stdexcept>
#include <string>
#include <type_traits>

#include "address.h"
#include "cuda/kernels.h"
#include "cuda/launch.h"

namespace py = pybind11;
using namespace dk;

template <class T>
static RowGate<T> row_gate(Address y, Address bias, Address gate, Address boost, Address index, int kind,
                           bool wide_index, bool add) {
  return {at<T>(y), at<T>(bias), at<Wide<T>>(gate), at<Wide<T>>(boost), at<void>(index), kind, wide_index, add};
}

template <class T>
static Outer<T> outer_of(Address values, Address indices, int B, int k, int rows, Address other, Address columns, int n,
                         int m, Address out) {
  return {at<T>(values), at<int32_t>(indices), B, k, rows, at<T>(other), at<int32_t>(columns), n, m, at<T>(out)};
}

template <class T> static void define(py::module_& m, const std::string& suffix) {
  auto def = [&](const char* op, auto f) { m.def((op + suffix).c_str(), f, py::call_guard<py::gil_scoped_release>()); };

  // how: "warp" (size: entries a lane), "block" or "split" (size: units a tile); memory: split_bytes of zeros.
  def("kwinners", [](Address y, Address bias, Address gate, Address boost, Address index, int kind, bool wide_index,
                     bool add, int B, int O, int k, bool relu, bool keep_ties, Address z, Address kept, Address values,
                     Address pre, Address indices, const std::string& how, int size, int warps, Address memory,
                     uintptr_t stream) {
    const KWinners<T> p{row_gate<T>(y, bias, gate, boost, index, kind, wide_index, add), B, O, k, relu, keep_ties,
                        at<T>(z), at<uint8_t>(kept), at<T>(values), at<Wide<T>>(pre), at<int32_t>(indices)};
    const auto on = (cudaStream_t)stream;
    if (how == "warp") kwinners_by_warp(p, size, warps, on);
    else if (how == "block") kwinners_by_block(p, on);
    else if (how == "split") kwinners_split(p, size, at<void>(memory), on);
    else throw std::invalid_argument("kwinners: no kernel is called " + how);
  });
  def("split_bytes", split_bytes<T>);
  def("gather_product", [](Address values, Address indices, int B, int k, int O, Address weight, int64_t stride_o,
                           int64_t stride_i, Address bias, Address y, uintptr_t stream) {
    gather_product<T>({at<T>(values), at<int32_t>(indices), B, k, O, at<T>(weight), stride_o, stride_i, at<T>(bias),
                       at<T>(y)}, (cudaStream_t)stream);
  });
  def("outer", [](Address values, Address indices, int B, int k, int rows, Address other, Address columns, int n, int m,
                  Address out, int warps, uintptr_t stream) {
    outer(outer_of<T>(values, indices, B, k, rows, other, columns, n, m, out), warps, (cudaStream_t)stream);
  });
  if constexpr (std::is_same_v<T, Wide<T>>) {  // no weight in half is stepped
    def("adam_outer", [](Address values, Address indices, int B, int k, int rows, Address other, Address columns, int n,
                         int m, Address p, Address moments, Address squares, Address keep, Address rule, Address hyper,
                         Address omega, Address importance, Address reference, double strength, bool counts_penalty,
                         int warps, uintptr_t stream) {
      const AdamStep<T> step{at<T>(p), at<T>(moments), at<T>(squares), at<uint8_t>(keep), at<double>(rule),
                             at<double>(hyper), at<T>(omega), at<T>(importance), at<T>(reference), strength,
                             counts_penalty};
      adam_outer(outer_of<T>(values, indices, B, k, rows, other, columns, n, m, {}), step, warps, (cudaStream_t)stream);
    });
  }
}

PYBIND11_MODULE(_cuda, m) {
  m.doc() = "dendrite_kernels' CUDA kernels. Use dendrite_kernels.ops: nothing is checked here.";
  define<float>(m, "_f32");
  define<double>(m, "_f64");
  define<bf16>(m, "_bf16");
  define<fp16>(m, "_f16");
  m.def("why_not", why_not, "Why kernels can't run on this device; empty: they can.");
  m.def("explain", [](int error) { return explain((cudaError_t)error); }, "A sentence about an error of CUDA's.");
  m.attr("archs") = DK_CUDA_ARCHS;
  m.attr("cuda") = std::to_string(CUDART_VERSION / 1000) + "." + std::to_string(CUDART_VERSION % 1000 / 10);
}
