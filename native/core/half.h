// 16-bit floats as bits. Conversions to 16 bits round to nearest, ties to even.
#pragma once
#include <cstdint>
#include <cstring>

#if defined(__CUDACC__)
#define Q4_HOST_DEVICE __host__ __device__
#else
#define Q4_HOST_DEVICE
#endif

namespace q4 {

Q4_HOST_DEVICE inline uint32_t f32_bits(float value) {
#if defined(__CUDA_ARCH__)
  return __float_as_uint(value);
#else
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
#endif
}
Q4_HOST_DEVICE inline float bits_f32(uint32_t bits) {
#if defined(__CUDA_ARCH__)
  return __uint_as_float(bits);
#else
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
#endif
}

Q4_HOST_DEVICE inline float bf16_to_f32(uint16_t bits) { return bits_f32(uint32_t{bits} << 16); }

Q4_HOST_DEVICE inline uint16_t f32_to_bf16(float value) {
  uint32_t bits = f32_bits(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((bits >> 16) | 0x40u);  // quiet NaN
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

Q4_HOST_DEVICE inline float f16_to_f32(uint16_t half) {
  const uint32_t sign = uint32_t{half & 0x8000u} << 16;
  const uint32_t magnitude = half & 0x7fffu;
  if (magnitude >= 0x7c00u) return bits_f32(sign | 0x7f800000u | ((magnitude & 0x3ffu) << 13));
  // Exponents of f16 and f32 differ by 112; the product also normalises subnormals, exactly.
  const float scaled = bits_f32(magnitude << 13) * 0x1p112f;
  return bits_f32(f32_bits(scaled) | sign);
}

Q4_HOST_DEVICE inline uint16_t f32_to_f16(float value) {
  const uint32_t bits = f32_bits(value);
  const uint16_t sign = static_cast<uint16_t>((bits >> 16) & 0x8000u);
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return static_cast<uint16_t>(sign | 0x7e00u);
  if (magnitude >= 0x47800000u) return static_cast<uint16_t>(sign | 0x7c00u);  // ≥ 65536: infinity
  if (magnitude < 0x38800000u) {
    // Subnormal or zero: adding 0.5 leaves round-to-nearest-even of value/2^-24 in the low bits.
    return static_cast<uint16_t>(sign | (f32_bits(bits_f32(magnitude) + 0.5f) - 0x3f000000u));
  }
  const uint32_t rounded = magnitude + 0xfffu + ((magnitude >> 13) & 1u);
  return static_cast<uint16_t>(sign | ((rounded - 0x38000000u) >> 13));
}

}  // namespace q4
