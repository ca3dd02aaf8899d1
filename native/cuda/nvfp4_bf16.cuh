// NVFP4 to bf16 in registers. A code times its block scale needs at most six significant bits, so it is exactly a bf16
// number; only the global scale is left for the product's epilogue.
#pragma once
#include "cuda/device.cuh"

namespace q4::gpu {

// a·b in bf16, both halves. fma with −0 rather than mul, which needs 9.0.
__device__ inline uint32_t mul_bf16x2(uint32_t a, uint32_t b) {
  uint32_t d;
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(0x80008000u));
  return d;
}

// Both halves of a times one half of b: the upper, where `upper`, which must be known to the compiler. The multiplication
// itself picks the half.
__device__ inline uint32_t mul_bf16x2_by(uint32_t a, uint32_t b, bool upper) {
  uint32_t d;
  if (upper)
    asm("{ .reg .b16 l, h; .reg .b32 hh; mov.b32 {l, h}, %2; mov.b32 hh, {h, h}; fma.rn.bf16x2 %0, %1, hh, %3; }"
        : "=r"(d)
        : "r"(a), "r"(b), "r"(0x80008000u));
  else
    asm("{ .reg .b16 l, h; .reg .b32 ll; mov.b32 {l, h}, %2; mov.b32 ll, {l, l}; fma.rn.bf16x2 %0, %1, ll, %3; }"
        : "=r"(d)
        : "r"(a), "r"(b), "r"(0x80008000u));
  return d;
}

constexpr uint32_t bf16_pair_power(int exponent) {
  const uint32_t half = static_cast<uint32_t>(exponent + 127) << 7;
  return half << 16 | half;
}

// Two E4M3 bytes (in bits 0–7 and 16–23) → bf16 pair of scale · 2^118. The bytes' exponent and mantissa fields, put
// where bf16 has its own, read 2^-120 too small, subnormals included; the two exact products bring that to 2^118.
__device__ inline uint32_t scale_pair(uint32_t bytes) {
  return mul_bf16x2(mul_bf16x2(bytes << 4, bf16_pair_power(120)), bf16_pair_power(118));
}

// Eight codes (element j in bits 4j..4j+3) → four pairs of code · 2^-126: pair p holds elements p (low) and p + 4.
// The three magnitude bits, put at bits 6–8, read as a bf16 of that value, 0.5 as a subnormal.
__device__ inline void code_pairs(uint32_t codes, uint32_t (&pairs)[4]) {
  // One product puts a nibble's sign at bit 15 and its magnitude at bits 6–8: two shifts and an or in one.
  const uint32_t upper = codes >> 8;
  pairs[0] = ((codes & 0x000f000fu) * 0x1040u) & 0x81c081c0u;
  pairs[1] = ((codes & 0x00f000f0u) * 0x0104u) & 0x81c081c0u;
  pairs[2] = ((upper & 0x000f000fu) * 0x1040u) & 0x81c081c0u;
  pairs[3] = ((upper & 0x00f000f0u) * 0x0104u) & 0x81c081c0u;
}

// What codes · scale_pair still has to be multiplied by.
constexpr float kPairEpilogue = 256.0f;

}  // namespace q4::gpu
