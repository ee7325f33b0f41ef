// Python's view of the CPU kernels: tensors by address, sizes and a thread count. ops/ has checked shapes and dtypes, and
// backends/cpu/ has made everything contiguous.
#include <pybind11/pybind11.h>

#include <cmath>
#include <string>

#include "address.h"
#include "cpu/kernels.h"
#include "cpu/pool.h"

namespace py = pybind11;
using namespace dk;

template <class T> static RowGate<T> row_gate(Address bias, Address gate, Address boost, Address index, int64_t G, bool add) {
  return {at<T>(bias), at<T>(gate), at<T>(boost), at<int32_t>(index), G, add};
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

  def("segment_gate", [](Address context, Address segments, Address bias, int64_t G, int64_t O, int64_t S, int64_t C,
                         bool abs_max, bool sigmoid, Address gate, Address winner, Address known, Address activations,
                         int threads) {
    kernels<T>().segment_gate({at<T>(context), at<T>(segments), at<T>(bias), G, O, S, C, abs_max, sigmoid, at<T>(gate),
                               at<int32_t>(winner), at<T>(known), at<T>(activations), threads});
  });
  def("segment_gate_backward", [](Address grad_gate, Address context, Address segments, Address gate, Address winner,
                                  int64_t G, int64_t O, int64_t S, int64_t C, bool sigmoid, Address grad_context,
                                  Address grad_segments, Address grad_bias, int threads) {
    kernels<T>().segment_gate_backward({at<T>(grad_gate), at<T>(context), at<T>(segments), at<T>(gate),
                                        at<int32_t>(winner), G, O, S, C, sigmoid, at<T>(grad_context),
                                        at<T>(grad_segments), at<T>(grad_bias), threads});
  });
  def("kwinners", [](Address y, Address bias, Address gate, Address boost, Address index, int64_t G, bool add, int64_t B,
                     int64_t O, int64_t k, bool relu, bool keep_ties, Address z, Address kept, Address values,
                     Address pre, Address indices, int threads) {
    kernels<T>().kwinners({at<T>(y), row_gate<T>(bias, gate, boost, index, G, add), B, O, k, relu, keep_ties, at<T>(z),
                           at<uint8_t>(kept), at<T>(values), at<T>(pre), at<int32_t>(indices), threads});
  });
  def("kwinners_backward", [](Address grad_z, Address y, Address kept, Address bias, Address gate, Address index,
                              int64_t G, bool add, int64_t B, int64_t O, Address grad_y, Address grad_gate,
                              Address grad_bias, int threads) {
    kernels<T>().kwinners_backward({at<T>(grad_z), at<T>(y), at<uint8_t>(kept), row_gate<T>(bias, gate, {}, index, G, add),
                                    B, O, at<T>(grad_y), at<T>(grad_gate), at<T>(grad_bias), threads});
  });
  def("winners_backward", [](Address grad_values, Address values, Address pre, Address indices, Address gate,
                             Address index, int64_t G, bool add, int64_t B, int64_t O, int64_t k, bool relu,
                             Address grad_y, Address grad_gate, Address grad_bias, int threads) {
    return kernels<T>().winners_backward({at<T>(grad_values), at<T>(values), at<T>(pre), at<int32_t>(indices),
                                   row_gate<T>({}, gate, {}, index, G, add), B, O, k, relu, at<T>(grad_y),
                                   at<T>(grad_gate), at<T>(grad_bias), threads});
  });
  def("kwinners2d", [](Address y, Address gate, Address boost, Address index, int64_t G, bool add, int64_t B, int64_t C,
                       int64_t A, int64_t k, bool local, bool relu, bool keep_ties, Address z, Address kept, int threads) {
    kernels<T>().kwinners2d({at<T>(y), row_gate<T>({}, gate, boost, index, G, add), B, C, A, k, local, relu, keep_ties,
                             at<T>(z), at<uint8_t>(kept), threads});
  });
  def("kwinners2d_backward", [](Address grad_z, Address y, Address kept, Address gate, Address index, int64_t G, bool add,
                                int64_t B, int64_t C, int64_t A, Address grad_y, Address grad_gate, int threads) {
    kernels<T>().kwinners2d_backward({at<T>(grad_z), at<T>(y), at<uint8_t>(kept), row_gate<T>({}, gate, {}, index, G, add),
                                      B, C, A, at<T>(grad_y), at<T>(grad_gate), threads});
  });
  def("ksparse_matmul", [](Address values, Address indices, int64_t B, int64_t k, int64_t I, int64_t O, Address weight,
                           int64_t stride_i, int64_t stride_o, Address bias, Address y, int threads) {
    return kernels<T>().ksparse_matmul({at<T>(values), at<int32_t>(indices), B, k, I, O, at<T>(weight), stride_i,
                                        stride_o, at<T>(bias), at<T>(y), threads});
  });
  def("mostly_constant_matmul", [](Address x, int64_t B, int64_t I, int64_t O, Address weight, int64_t stride_i,
                                   int64_t stride_o, double most_others, Address sums, Address y,
                                   int threads) {
    return kernels<T>().mostly_constant_matmul({at<T>(x), B, I, O, at<T>(weight), stride_i, stride_o, most_others, at<T>(sums),
                                                at<T>(y), threads});
  });
  def("ksparse_outer", [](Address values, Address start, Address entry, Address sample, int64_t B, int64_t k, int64_t I,
                          int64_t O, Address r, int64_t n, Address cols, Address weight, int64_t stride_i, int64_t stride_o,
                          Address grad_weight, int64_t grad_stride_i, int64_t grad_stride_o, Address grad_values,
                          Address sums, int64_t pitch, Address place, int threads) {
    kernels<T>().ksparse_outer({at<T>(values), at<int32_t>(start), at<int32_t>(entry), at<int32_t>(sample), B, k, I, O,
                                at<T>(r), n, at<int32_t>(cols), at<T>(weight), stride_i, stride_o, at<T>(grad_weight),
                                grad_stride_i, grad_stride_o, at<T>(grad_values), at<T>(sums), pitch, at<int32_t>(place),
                                threads});
  });
  def("adam_outer", [](Address values, Address lists, Address entry, Address sample, int64_t B, int64_t k, int64_t I,
                       int64_t O, Address r, int64_t n, Address cols, Address sums, int64_t pitch, Address place,
                       double beta1, double beta2, double lr, double eps, int32_t now, bool may_rest, Address weight, Address m, Address v, Address start, Address bits,
                       Address since, Address omega, Address importance, Address reference, double strength,
                       bool counts_penalty, int threads) {
    const KSparseOuter<T> outer{at<T>(values), at<int32_t>(lists), at<int32_t>(entry), at<int32_t>(sample), B, k, I, O,
                                at<T>(r), n, at<int32_t>(cols), nullptr, 0, 0, nullptr, 0, 0, nullptr,
                                at<T>(sums), pitch, at<int32_t>(place), threads};
    kernels<T>().adam_outer({outer, adam_rule<T>(beta1, beta2, lr, eps, now, may_rest), at<T>(weight), at<T>(m), at<T>(v),
                             at<int64_t>(start), at<uint16_t>(bits), at<int32_t>(since),
                             {at<T>(omega), at<T>(importance), at<T>(reference), (T)strength, counts_penalty}});
  });
  def("adam_segments", [](Address grad, Address context, Address winner, int64_t G, int64_t O, int64_t S, int64_t C,
                          double beta1, double beta2, double lr, double eps, int32_t now, bool may_rest, Address rows,
                          Address since, int64_t count, bool rank1, Address segments, Address m, Address v, Address keep,
                          Address activations, int threads) {
    kernels<T>().adam_segments({at<T>(grad), at<T>(context), at<int32_t>(winner), G, O, S, C,
                                adam_rule<T>(beta1, beta2, lr, eps, now, may_rest), at<int32_t>(rows), at<int32_t>(since),
                                count, rank1, at<T>(segments), at<T>(m), at<T>(v), at<uint8_t>(keep), at<T>(activations),
                                threads});
  });
  def("adam_dense", [](Address p, Address m, Address v, Address grad, int64_t n, double beta1, double beta2, double lr,
                       double eps, int32_t now, int threads) {
    kernels<T>().adam_dense({adam_rule<T>(beta1, beta2, lr, eps, now, false), at<T>(p), at<T>(m), at<T>(v), at<T>(grad), n,
                             threads});
  });
  // Gives every segment that won with gradient a place among the touched rows; returns their number.
  def("touch_segments", [](Address grad, Address winner, int64_t G, int64_t O, int64_t S, Address place, Address rows,
                           Address since, int64_t count) {
    for (int64_t q = 0; q < G * O; q++) {
      if (at<T>(grad)[q] == 0) continue;
      const int64_t row = q % O * S + at<int32_t>(winner)[q];
      int32_t& here = at<int32_t>(place)[row];
      if (here >= 0) continue;
      at<int32_t>(since)[count] = -1;  // it moves
      at<int32_t>(rows)[here = (int32_t)count++] = (int32_t)row;
    }
    return count;
  });
  def("densify", [](Address values, Address indices, Address place, int64_t B, int64_t k, int64_t O, Address z, bool gather,
                    int threads) {
    return kernels<T>().densify({at<T>(values), at<int32_t>(indices), at<int32_t>(place), B, k, O, at<T>(z), gather, threads});
  });
  def("duty_cycle", [](Address duty, Address values, Address indices, Address seen, int64_t units,
                       int64_t batch, int64_t k, int64_t longest) {
    kernels<T>().duty_cycle({at<T>(duty), at<T>(values), at<int32_t>(indices), at<int64_t>(seen), units, batch, k, longest});
  });
  def("rezero", [](Address weight, Address keep, int64_t n, int threads) {
    kernels<T>().rezero({at<T>(weight), at<uint8_t>(keep), n, threads});
  });
}

static int64_t unit_lists(Address indices, int64_t B, int64_t k, int64_t units, Address start, Address entry,
                          Address sample, Address used, Address place) {
  return kernels<float>().unit_lists({at<int32_t>(indices), B, k, units, at<int32_t>(start), at<int32_t>(entry),
                                      at<int32_t>(sample), at<int32_t>(used), at<int32_t>(place)});
}

static Isa isa_named(const std::string& wanted) {
  for (Isa isa : {Isa::portable, Isa::avx2, Isa::avx512})
    if (wanted == name(isa)) return isa;
  throw py::value_error("isa: expected portable, avx2 or avx512, got " + wanted);
}

PYBIND11_MODULE(_cpu, m) {
  m.doc() = "dendrite_kernels' CPU kernels. Use dendrite_kernels.ops: nothing is checked here.";
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
