// float16, for the emulator: rounded to nearest, ties to even.
#pragma once
#include <cmath>
#include <cstdint>

struct __half {
  uint16_t bits;
};

static inline float __half2float(__half a) {
  const int exponent = a.bits >> 10 & 31, fraction = a.bits & 1023;
  float out = exponent == 31 ? (fraction ? NAN : INFINITY) : std::ldexp((exponent ? 1024 : 0) + fraction, (exponent ? exponent : 1) - 25);
  return a.bits >> 15 ? -out : out;
}
static inline __half __float2half_rn(float a) {
  const uint16_t sign = std::signbit(a) ? 0x8000 : 0;
  if (a != a) return {0x7fff};
  const double size = std::fabs((double)a);
  if (size >= 65520) return {(uint16_t)(sign | 0x7c00)};
  int exponent = -13;  // of the spacing that denormals have
  if (size >= 0x1p-14) std::frexp(size, &exponent);
  const int steps = (int)std::nearbyint(std::ldexp(size, 11 - exponent));  // of the last place; 2048 carries over
  return {(uint16_t)(sign | (steps + (size >= 0x1p-14 ? (exponent + 13) << 10 : 0)))};
}
