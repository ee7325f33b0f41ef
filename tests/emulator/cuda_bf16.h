// bfloat16, for the emulator: rounded to nearest, ties to even.
#pragma once
#include <cstdint>
#include <cstring>

struct __nv_bfloat16 {
  uint16_t bits;
};

static inline float __bfloat162float(__nv_bfloat16 a) {
  const uint32_t bits = (uint32_t)a.bits << 16;
  float out;
  std::memcpy(&out, &bits, 4);
  return out;
}
static inline __nv_bfloat16 __float2bfloat16_rn(float a) {
  uint32_t bits;
  std::memcpy(&bits, &a, 4);
  if (a != a) return {0x7fff};
  return {(uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}
