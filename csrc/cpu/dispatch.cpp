// Which instruction set the kernels run in: the best that the chip has, or what the caller set.
#include <stdexcept>
#include <string>

#include "cpu/kernels.h"

namespace dk {

const char* name(Isa isa) { return isa == Isa::avx512 ? "avx512" : isa == Isa::avx2 ? "avx2" : "portable"; }

bool supported(Isa isa) {
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
  __builtin_cpu_init();
  if (isa == Isa::avx2) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
  if (isa == Isa::avx512)
    return supported(Isa::avx2) && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
#endif
  return isa == Isa::portable;
}

static Isa best() {
  return supported(Isa::avx512) ? Isa::avx512 : supported(Isa::avx2) ? Isa::avx2 : Isa::portable;
}

static Isa& current() {
  static Isa isa = best();
  return isa;
}

Isa current_isa() { return current(); }

void set_isa(Isa isa) {
  if (!supported(isa)) throw std::invalid_argument(std::string("this processor has no ") + name(isa));
  current() = isa;
}

template <class T> const Kernels<T>& kernels() {
  static const Kernels<T> tables[] = {portable::table<T>(), avx2::table<T>(), avx512::table<T>()};
  return tables[(int)current()];
}
template const Kernels<float>& kernels<float>();
template const Kernels<double>& kernels<double>();

}  // namespace dk
