// Four lanes of fp32 in the compiler's vector extension: SSE2, NEON or whatever the machine has. A product and a sum
// round separately here, since not every such machine has a fused multiply-add.
#pragma once
#include <cstdint>
#include <cstring>

#include "core/half.h"

namespace q4 {

struct Portable {
  static constexpr int width = 4;
  static constexpr int tile_rows = 4, tile_vectors = 2;  // matrix product: 8 accumulators of 16 registers
  static constexpr const char* name = "portable";
  typedef float F __attribute__((vector_size(16)));
  typedef int32_t I __attribute__((vector_size(16)));
  typedef uint32_t U __attribute__((vector_size(16)));
  using M = I;

  static F zero() { return F{}; }
  static F set(float x) { return F{x, x, x, x}; }
  static F load(const float* p) { return load_n(p, width); }
  static F load_n(const float* p, int64_t n) {
    F x{};
    std::memcpy(&x, p, static_cast<size_t>(n) * 4);
    return x;
  }
  static void store(float* p, F x) { store_n(p, x, width); }
  static void store_n(float* p, F x, int64_t n) { std::memcpy(p, &x, static_cast<size_t>(n) * 4); }

  static F add(F a, F b) { return a + b; }
  static F sub(F a, F b) { return a - b; }
  static F mul(F a, F b) { return a * b; }
  static F div(F a, F b) { return a / b; }
  static F sqrt(F a) {
    for (int i = 0; i < width; ++i) a[i] = __builtin_sqrtf(a[i]);
    return a;
  }
  static F fma(F a, F b, F c) { return a * b + c; }
  static F fnma(F a, F b, F c) { return c - a * b; }
  // When either is NaN the second operand is the result.
  static F max(F a, F b) { return select(a > b, a, b); }
  static F min(F a, F b) { return select(a < b, a, b); }
  static M less(F a, F b) { return a < b; }
  static M less_equal(F a, F b) { return a <= b; }
  static M unordered(F a) { return a != a; }
  static M either(M a, M b) { return a | b; }
  static bool any(M m) { return (m[0] | m[1] | m[2] | m[3]) != 0; }
  static F select(M m, F yes, F no) { return from_bits((bits(yes) & m) | (bits(no) & ~m)); }
  static I select_int(M m, I yes, I no) { return (yes & m) | (no & ~m); }

  static I set_int(int32_t x) { return I{x, x, x, x}; }
  static I lanes() { return I{0, 1, 2, 3}; }
  static I bits(F x) { return reinterpret_cast<I>(x); }
  static F from_bits(I x) { return reinterpret_cast<F>(x); }
  static I round_to_int(F x) {
    I result{};
    for (int i = 0; i < width; ++i) result[i] = static_cast<int32_t>(__builtin_rintf(x[i]));
    return result;
  }
  static F to_float(I x) { return __builtin_convertvector(x, F); }
  static I add_int(I a, I b) { return reinterpret_cast<I>(reinterpret_cast<U>(a) + reinterpret_cast<U>(b)); }
  static I sub_int(I a, I b) { return reinterpret_cast<I>(reinterpret_cast<U>(a) - reinterpret_cast<U>(b)); }
  static I and_int(I a, I b) { return a & b; }
  static I or_int(I a, I b) { return a | b; }
  static I xor_int(I a, I b) { return a ^ b; }
  template <int n>
  static I left(I a) {
    return reinterpret_cast<I>(reinterpret_cast<U>(a) << n);
  }
  template <int n>
  static I right(I a) {
    return reinterpret_cast<I>(reinterpret_cast<U>(a) >> n);
  }
  template <int n>
  static I right_signed(I a) {
    return a >> n;
  }
  static M equal_int(I a, I b) { return a == b; }
  // Low and high words of the 32 × 32 bit products.
  static void multiply_wide(I a, I b, I& low, I& high) {
    for (int i = 0; i < width; ++i) {
      const uint64_t product = uint64_t{static_cast<uint32_t>(a[i])} * static_cast<uint32_t>(b[i]);
      low[i] = static_cast<int32_t>(product);
      high[i] = static_cast<int32_t>(product >> 32);
    }
  }
  static I load_int(const void* p) { return load_int_n(p, width); }
  static I load_int_n(const void* p, int64_t n) {
    I x{};
    std::memcpy(&x, p, static_cast<size_t>(n) * 4);
    return x;
  }
  static void store_int(void* p, I x) { std::memcpy(p, &x, sizeof x); }

  // Sixteen-bit floats.
  static F load_bf16(const uint16_t* p) { return load_bf16_n(p, width); }
  static F load_bf16_n(const uint16_t* p, int64_t n) {
    F x{};
    for (int64_t i = 0; i < n; ++i) x[i] = bf16_to_f32(p[i]);
    return x;
  }
  static F load_f16(const uint16_t* p) { return load_f16_n(p, width); }
  static F load_f16_n(const uint16_t* p, int64_t n) {
    F x{};
    for (int64_t i = 0; i < n; ++i) x[i] = f16_to_f32(p[i]);
    return x;
  }
  // The low 16 bits of each lane.
  static void store_u16_n(uint16_t* p, I x, int64_t n) {
    for (int64_t i = 0; i < n; ++i) p[i] = static_cast<uint16_t>(x[i]);
  }
  static I f16_bits(F x) {
    I result{};
    for (int i = 0; i < width; ++i) result[i] = f32_to_f16(x[i]);
    return result;
  }

  // NVFP4: the value of the code in the low 4 bits of each lane, whatever stands above them.
  static F e2m1(I code) {
    // Exponent and mantissa moved to their place in fp32; the product shifts the exponent and normalises 0.5.
    const F magnitude = from_bits(left<22>(code & 7)) * set(0x1p126f);
    return from_bits(bits(magnitude) | left<31>(right<3>(code)));
  }
  static I bytes_to_int(const uint8_t* p) { return I{p[0], p[1], p[2], p[3]}; }
  // Lanes 2i and 2i+1 take byte i; n of the 2 bytes exist, the rest are 0.
  static I bytes_twice(const uint8_t* p, int64_t n) {
    const int32_t a = n > 0 ? p[0] : 0, b = n > 1 ? p[1] : 0;
    return I{a, a, b, b};
  }
  static void store_bytes_n(uint8_t* p, I x, int64_t n) {
    for (int64_t i = 0; i < n; ++i) p[i] = static_cast<uint8_t>(x[i]);
  }
  // Lane i takes nibble i of the 2 bytes at p, in its low 4 bits.
  static I nibbles(const uint8_t* p) { return I{p[0], p[0] >> 4, p[1], p[1] >> 4}; }
  // Sixteen codes, in lanes → 8 bytes, the first in the low nibble.
  static uint64_t pack_nibbles(const I* codes) {
    uint8_t bytes[8];
    for (int i = 0; i < 8; ++i)
      bytes[i] = static_cast<uint8_t>(codes[i / 2][i % 2 * 2] | codes[i / 2][i % 2 * 2 + 1] << 4);
    uint64_t packed;
    std::memcpy(&packed, bytes, 8);
    return packed;
  }
  static I max_int(I a, I b) { return select_int(a > b, a, b); }
  static int32_t largest_int(I x) {
    int32_t largest = x[0];
    for (int i = 1; i < width; ++i) largest = x[i] > largest ? x[i] : largest;
    return largest;
  }
  // Lane i takes the 32-bit word at base + i·stride.
  static I gather_words(const uint8_t* base, int64_t stride) {
    I x{};
    for (int i = 0; i < width; ++i) {
      int32_t word;
      std::memcpy(&word, base + i * stride, 4);
      x[i] = word;
    }
    return x;
  }

  static constexpr bool byte_products = false;  // the matrix-vector product runs in fp32 lanes

  static float sum(F x) { return (x[0] + x[2]) + (x[1] + x[3]); }
  static double sum_double(F x) { return (double{x[0]} + x[2]) + (double{x[1]} + x[3]); }

  // rows[i] lane j ↔ rows[j] lane i.
  static void transpose(F* rows) {
    for (int i = 0; i < width; ++i)
      for (int j = 0; j < i; ++j) {
        const float held = rows[i][j];
        rows[i][j] = rows[j][i];
        rows[j][i] = held;
      }
  }
};

}  // namespace q4
