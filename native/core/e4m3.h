// E4M3FN: 1 sign, 4 exponent (bias 7) and 3 mantissa bits; no infinities, S.1111.111 is NaN, the largest value is 448.
// Source: OCP 8-bit Floating Point Specification (OFP8), revision 1.0.
#pragma once
#include <cstdint>

#include "core/half.h"

namespace q4 {

constexpr float kE4m3Max = 448.0f;
constexpr uint8_t kE4m3MaxBits = 0x7e;
constexpr uint8_t kE4m3Nan = 0x7f;

Q4_HOST_DEVICE inline float e4m3_to_f32(uint8_t bits) {
  const uint32_t sign = uint32_t{bits & 0x80u} << 24;
  const uint32_t magnitude = bits & 0x7fu;
  if (magnitude == kE4m3Nan) return bits_f32(sign | 0x7fc00000u);
  // Exponent biases differ by 120; the product also normalises subnormals, exactly.
  return bits_f32(f32_bits(bits_f32(magnitude << 20) * 0x1p120f) | sign);
}

// Round to nearest, ties to even, saturated at ±448 (infinities too); NaN stays NaN.
Q4_HOST_DEVICE inline uint8_t f32_to_e4m3(float value) {
  const uint32_t bits = f32_bits(value);
  const uint8_t sign = static_cast<uint8_t>((bits >> 24) & 0x80u);
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return static_cast<uint8_t>(sign | kE4m3Nan);
  if (magnitude >= 0x43e00000u) return static_cast<uint8_t>(sign | kE4m3MaxBits);  // ≥ 448
  if (magnitude < 0x3c800000u) {
    // Below 2^-6: adding 2^14 leaves round-to-nearest-even of value/2^-9 in the low bits.
    return static_cast<uint8_t>(sign | (f32_bits(bits_f32(magnitude) + 16384.0f) - 0x46800000u));
  }
  const uint32_t rounded = magnitude + 0x7ffffu + ((magnitude >> 20) & 1u);
  return static_cast<uint8_t>(sign | ((rounded - 0x3c000000u) >> 20));
}

}  // namespace q4
