// Python's view of the CPU kernels: tensors, sizes and a thread count. ops/ has checked shapes and dtypes, and
// backends/cpu/ has made everything contiguous: all that is asked here is how wide a tensor's entries are.
#include <pybind11/pybind11.h>

#include <cmath>
#include <string>

#include "cpu/kernels.h"
#include "cpu/pool.h"
#include "tensor.h"

namespace py = pybind11;
using namespace dk;

template <class T> static RowGate<T> row_gate(Tensor<T> bias, Tensor<T> gate, Tensor<T> boost, Tensor<int32_t> index,
                                              int64_t G, bool add) {
  return {bias, gate, boost, index, G, add};
}

// Kingma & Ba 2015, section 2: what step `now` (from 1) multiplies by.
template <class T>
static AdamRule<T> adam_rule(double beta1, double beta2, double lr, double eps, int32_t now, bool may_rest) {
  const double correction1 = 1 - std::pow(beta1, now), correction2 = 1 - std::pow(beta2, now);
  return {(T)(1 - beta1), (T)beta2, (T)(1 - beta2), (T)(1 / std::sqrt(correction2)), (T)(lr / correction1), (T)eps,
          beta1, beta2, now, may_rest};
}

template <class T> static void define(py::module_& m, const std::string& suffix) {
  using Released = py::call_guard<py::gil_scoped_release>;
  auto def = [&](const char* op, auto f) { m.def((op + suffix).c_str(), f, Released()); };

  def("segment_gate", [](Tensor<T> context, Tensor<T> segments, Tensor<T> bias, int64_t G, int64_t O, int64_t S,
                         int64_t C, bool abs_max, bool sigmoid, Tensor<T> gate, Tensor<int32_t> winner, Tensor<T> known,
                         Tensor<T> activations, int threads) {
    kernels<T>().segment_gate({context, segments, bias, G, O, S, C, abs_max, sigmoid, gate, winner, known, activations,
                               threads});
  });
  def("segment_gate_backward", [](Tensor<T> grad_gate, Tensor<T> context, Tensor<T> segments, Tensor<T> gate,
                                  Tensor<int32_t> winner, int64_t G, int64_t O, int64_t S, int64_t C, bool sigmoid,
                                  Tensor<T> grad_context, Tensor<T> grad_segments, Tensor<T> grad_bias, int threads) {
    kernels<T>().segment_gate_backward({grad_gate, context, segments, gate, winner, G, O, S, C, sigmoid, grad_context,
                                        grad_segments, grad_bias, threads});
  });
  def("kwinners", [](Tensor<T> y, Tensor<T> bias, Tensor<T> gate, Tensor<T> boost, Tensor<int32_t> index, int64_t G,
                     bool add, int64_t B, int64_t O, int64_t k, bool relu, bool keep_ties, Tensor<T> z,
                     Tensor<uint8_t> kept, Tensor<T> values, Tensor<T> pre, Tensor<int32_t> indices, int threads) {
    kernels<T>().kwinners({y, row_gate<T>(bias, gate, boost, index, G, add), B, O, k, relu, keep_ties, z, kept, values,
                           pre, indices, threads});
  });
  def("kwinners_backward", [](Tensor<T> grad_z, Tensor<T> y, Tensor<uint8_t> kept, Tensor<T> bias, Tensor<T> gate,
                              Tensor<int32_t> index, int64_t G, bool add, int64_t B, int64_t O, Tensor<T> grad_y,
                              Tensor<T> grad_gate, Tensor<T> grad_bias, int threads) {
    kernels<T>().kwinners_backward({grad_z, y, kept, row_gate<T>(bias, gate, {}, index, G, add), B, O, grad_y,
                                    grad_gate, grad_bias, threads});
  });
  def("winners_backward", [](Tensor<T> grad_values, Tensor<T> values, Tensor<T> pre, Tensor<int32_t> indices,
                             Tensor<T> gate, Tensor<int32_t> index, int64_t G, bool add, int64_t B, int64_t O,
                             int64_t k, bool relu, Tensor<T> grad_y, Tensor<T> grad_gate, Tensor<T> grad_bias,
                             int threads) {
    return kernels<T>().winners_backward({grad_values, values, pre, indices, row_gate<T>({}, gate, {}, index, G, add),
                                          B, O, k, relu, grad_y, grad_gate, grad_bias, threads});
  });
  def("kwinners2d", [](Tensor<T> y, Tensor<T> gate, Tensor<T> boost, Tensor<int32_t> index, int64_t G, bool add,
                       int64_t B, int64_t C, int64_t A, int64_t k, bool local, bool relu, bool keep_ties, Tensor<T> z,
                       Tensor<uint8_t> kept, int threads) {
    kernels<T>().kwinners2d({y, row_gate<T>({}, gate, boost, index, G, add), B, C, A, k, local, relu, keep_ties, z,
                             kept, threads});
  });
  def("kwinners2d_backward", [](Tensor<T> grad_z, Tensor<T> y, Tensor<uint8_t> kept, Tensor<T> gate,
                                Tensor<int32_t> index, int64_t G, bool add, int64_t B, int64_t C, int64_t A,
                                Tensor<T> grad_y, Tensor<T> grad_gate, int threads) {
    kernels<T>().kwinners2d_backward({grad_z, y, kept, row_gate<T>({}, gate, {}, index, G, add), B, C, A, grad_y,
                                      grad_gate, threads});
  });
  def("ksparse_matmul", [](Tensor<T> values, Tensor<int32_t> indices, int64_t B, int64_t k, int64_t I, int64_t O,
                           Tensor<T> weight, int64_t stride_i, int64_t stride_o, Tensor<T> bias, Tensor<T> y,
                           int threads) {
    return kernels<T>().ksparse_matmul({values, indices, B, k, I, O, weight, stride_i, stride_o, bias, y, threads});
  });
  def("mostly_constant_matmul", [](Tensor<T> x, int64_t B, int64_t I, int64_t O, Tensor<T> weight, int64_t stride_i,
                                   int64_t stride_o, double most_others, bool few, Tensor<T> sums, Tensor<T> y,
                                   int threads) {
    return kernels<T>().mostly_constant_matmul({x, B, I, O, weight, stride_i, stride_o, most_others, few, sums, y,
                                                threads});
  });
  def("ksparse_outer", [](Tensor<T> values, Tensor<int32_t> start, Tensor<int32_t> entry, Tensor<int32_t> sample,
                          int64_t B, int64_t k, int64_t I, int64_t O, Tensor<T> r, int64_t n, Tensor<int32_t> cols,
                          Tensor<T> weight, int64_t stride_i, int64_t stride_o, Tensor<T> grad_weight,
                          int64_t grad_stride_i, int64_t grad_stride_o, Tensor<T> grad_values, Tensor<T> sums,
                          int64_t pitch, Tensor<int32_t> place, int threads) {
    kernels<T>().ksparse_outer({values, start, entry, sample, B, k, I, O, r, n, cols, weight, stride_i, stride_o,
                                grad_weight, grad_stride_i, grad_stride_o, grad_values, sums, pitch, place, threads});
  });
  def("adam_outer", [](Tensor<T> values, Tensor<int32_t> lists, Tensor<int32_t> entry, Tensor<int32_t> sample,
                       int64_t B, int64_t k, int64_t I, int64_t O, Tensor<T> r, int64_t n, Tensor<int32_t> cols,
                       Tensor<T> sums, int64_t pitch, Tensor<int32_t> place, double beta1, double beta2, double lr,
                       double eps, int32_t now, bool may_rest, Tensor<T> weight, Tensor<T> m, Tensor<T> v,
                       Tensor<int64_t> start, Tensor<uint16_t> bits, Tensor<int32_t> since, Tensor<T> omega,
                       Tensor<T> importance, Tensor<T> reference, double strength, bool counts_penalty, int threads) {
    const KSparseOuter<T> outer{values, lists, entry, sample, B, k, I, O, r, n, cols, nullptr, 0, 0, nullptr, 0, 0,
                                nullptr, sums, pitch, place, threads};
    kernels<T>().adam_outer({outer, adam_rule<T>(beta1, beta2, lr, eps, now, may_rest), weight, m, v, start, bits,
                             since, {omega, importance, reference, (T)strength, counts_penalty}});
  });
  def("adam_segments", [](Tensor<T> grad, Tensor<T> context, Tensor<int32_t> winner, int64_t G, int64_t O, int64_t S,
                          int64_t C, double beta1, double beta2, double lr, double eps, int32_t now, bool may_rest,
                          Tensor<int32_t> rows, Tensor<int32_t> since, int64_t count, bool rank1, Tensor<T> segments,
                          Tensor<T> m, Tensor<T> v, Tensor<uint8_t> keep, Tensor<T> activations, int threads) {
    kernels<T>().adam_segments({grad, context, winner, G, O, S, C, adam_rule<T>(beta1, beta2, lr, eps, now, may_rest),
                                rows, since, count, rank1, segments, m, v, keep, activations, threads});
  });
  def("adam_dense", [](Tensor<T> p, Tensor<T> m, Tensor<T> v, Tensor<T> grad, int64_t n, double beta1, double beta2,
                       double lr, double eps, int32_t now, int threads) {
    kernels<T>().adam_dense({adam_rule<T>(beta1, beta2, lr, eps, now, false), p, m, v, grad, n, threads});
  });
  // Gives every segment that won with gradient a place among the touched rows; returns their number.
  def("touch_segments", [](Tensor<T> grad, Tensor<int32_t> winner, int64_t G, int64_t O, int64_t S,
                           Tensor<int32_t> place, Tensor<int32_t> rows, Tensor<int32_t> since, int64_t count) {
    for (int64_t q = 0; q < G * O; q++) {
      if (grad[q] == 0) continue;
      const int64_t row = q % O * S + winner[q];
      int32_t& here = place[row];
      if (here >= 0) continue;
      since[count] = -1;  // it moves
      rows[here = (int32_t)count++] = (int32_t)row;
    }
    return count;
  });
  def("densify", [](Tensor<T> values, Tensor<int32_t> indices, Tensor<int32_t> place, int64_t B, int64_t k, int64_t O,
                    Tensor<T> z, bool gather, int threads) {
    return kernels<T>().densify({values, indices, place, B, k, O, z, gather, threads});
  });
  def("duty_cycle", [](Tensor<T> duty, Tensor<T> values, Tensor<int32_t> indices, Tensor<int64_t> seen, int64_t units,
                       int64_t batch, int64_t k, int64_t longest) {
    kernels<T>().duty_cycle({duty, values, indices, seen, units, batch, k, longest});
  });
  def("rezero", [](Tensor<T> weight, Tensor<uint8_t> keep, int64_t n, int threads) {
    kernels<T>().rezero({weight, keep, n, threads});
  });
}

static int64_t unit_lists(Tensor<int32_t> indices, int64_t B, int64_t k, int64_t units, Tensor<int32_t> start,
                          Tensor<int32_t> entry, Tensor<int32_t> sample, Tensor<int32_t> used, Tensor<int32_t> place) {
  return kernels<float>().unit_lists({indices, B, k, units, start, entry, sample, used, place});
}

static Isa isa_named(const std::string& wanted) {
  for (Isa isa : {Isa::portable, Isa::avx2, Isa::avx512})
    if (wanted == name(isa)) return isa;
  throw py::value_error("isa: expected portable, avx2 or avx512, got " + wanted);
}

PYBIND11_MODULE(_cpu, m) {
  m.doc() = "dendrite_kernels' CPU kernels. Use dendrite_kernels.ops, which checks its arguments.";
  define<float>(m, "_f32");
  define<double>(m, "_f64");
  py::class_<Block>(m, "Block", py::buffer_protocol(), "Writable memory from the pool.")
      .def(py::init<size_t>())
      .def_buffer([](Block& b) { return py::buffer_info((uint8_t*)b.data(), (py::ssize_t)b.bytes()); });
  m.def("pool_bytes", pool_bytes);
  m.def("pool_release", pool_release);
  m.def("unit_lists", unit_lists, py::call_guard<py::gil_scoped_release>());
  m.def("isa", [] { return name(current_isa()); }, "The instruction set in use.");
  m.def("set_isa", [](const std::string& wanted) { set_isa(isa_named(wanted)); });
  m.def("supported_isas", [] {
    py::list out;
    for (Isa isa : {Isa::portable, Isa::avx2, Isa::avx512})
      if (supported(isa)) out.append(name(isa));
    return out;
  });
#ifdef _OPENMP
  m.attr("openmp") = true;
#else
  m.attr("openmp") = false;
#endif
}
