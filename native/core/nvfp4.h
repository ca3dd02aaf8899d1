// NVFP4: E2M1 codes in blocks of 16 along the inputs, an E4M3 scale a block, an fp32 global (decode) scale a matrix.
// The scalar codec that the CPU and CUDA backends share; formats.md §2 is the specification.
#pragma once
#include <cstdint>

#include "core/e4m3.h"

namespace q4 {

constexpr float kE2m1Max = 6.0f;
// Largest magnitude of code · block scale; global_scale = amax / kNvfp4Max.
constexpr float kNvfp4Max = kE4m3Max * kE2m1Max;

// Code 0..15 → +0 .5 1 1.5 2 3 4 6 and the same negated.
Q4_HOST_DEVICE inline float e2m1_to_f32(uint32_t code) {
  // Two exponent bits (bias 1) and one mantissa bit, moved to their place in fp32; the product normalises 0.5 exactly.
  const float magnitude = bits_f32((code & 7u) << 22) * 0x1p126f;
  return bits_f32(f32_bits(magnitude) | ((code & 8u) << 28));
}

// Round to nearest, ties to even, saturated at ±6 (NaN too, as the hardware's saturating conversion); keeps the sign of
// zero.
Q4_HOST_DEVICE inline uint32_t f32_to_e2m1(float value) {
  const uint32_t bits = f32_bits(value);
  const uint32_t sign = (bits >> 28) & 8u;
  const float a = bits_f32(bits & 0x7fffffffu);
  if (!(a <= 5.0f)) return sign | 7u;
  if (a <= 0.25f) return sign;
  if (a < 0.75f) return sign | 1u;
  if (a <= 1.25f) return sign | 2u;
  if (a < 1.75f) return sign | 3u;
  if (a <= 2.5f) return sign | 4u;
  if (a < 3.5f) return sign | 5u;
  return sign | 6u;
}

// max(m, |x|) that keeps NaN once it has seen one: how every amax is accumulated.
Q4_HOST_DEVICE inline float amax_step(float m, float x) {
  const float a = bits_f32(f32_bits(x) & 0x7fffffffu);
  return a > m || a != a ? a : m;
}

// The global (decode) scale of a two-level matrix from its amax.
Q4_HOST_DEVICE inline float nvfp4_global_scale(float amax) {
  const float scale = amax / kNvfp4Max;
  return scale == 0.0f ? 1.0f : scale;
}

// The E4M3 bits of a block's scale from the block's amax.
Q4_HOST_DEVICE inline uint8_t nvfp4_block_scale(float block_amax, float global_scale) {
  return f32_to_e4m3(block_amax / kE2m1Max / global_scale);
}

// The code of one element; `step` = block scale · global scale, rounded to fp32. A block whose step is 0 has codes 0.
Q4_HOST_DEVICE inline uint32_t nvfp4_code(float value, float step) {
  return step == 0.0f ? 0u : f32_to_e2m1(value / step);
}

// One bit for each of eight packed codes that differ; its population count is what `changed` counts.
Q4_HOST_DEVICE inline uint32_t nvfp4_differing_codes(uint32_t a, uint32_t b) {
  uint32_t difference = a ^ b;
  difference |= difference >> 1;
  difference |= difference >> 2;
  return difference & 0x11111111u;
}

// code · block scale needs at most 6 significant bits, so only the product with the global scale rounds.
Q4_HOST_DEVICE inline float nvfp4_value(uint32_t code, uint8_t block_scale, float global_scale) {
  return e2m1_to_f32(code) * e4m3_to_f32(block_scale) * global_scale;
}

}  // namespace q4
