// Sixteen lanes of fp32. Included only by *_avx512.cpp files, which are compiled for AVX-512 F, BW, VL and DQ.
#pragma once
#include <immintrin.h>

#include <cstdint>

#include "cpu/simd/digits_x86.h"

namespace q4 {

struct Avx512 {
  static constexpr int width = 16;
  static constexpr int tile_rows = 14, tile_vectors = 2;  // matrix product: 28 accumulators of 32 registers
  static constexpr const char* name = "avx512";
  using F = __m512;
  using I = __m512i;
  using M = __mmask16;

  static M first(int64_t n) { return static_cast<M>((1u << n) - 1u); }  // n in 0..16
  static F zero() { return _mm512_setzero_ps(); }
  static F set(float x) { return _mm512_set1_ps(x); }
  static F load(const float* p) { return _mm512_loadu_ps(p); }
  static F load_n(const float* p, int64_t n) { return _mm512_maskz_loadu_ps(first(n), p); }
  static void store(float* p, F x) { _mm512_storeu_ps(p, x); }
  static void store_n(float* p, F x, int64_t n) { _mm512_mask_storeu_ps(p, first(n), x); }

  static F add(F a, F b) { return _mm512_add_ps(a, b); }
  static F sub(F a, F b) { return _mm512_sub_ps(a, b); }
  static F mul(F a, F b) { return _mm512_mul_ps(a, b); }
  static F div(F a, F b) { return _mm512_div_ps(a, b); }
  static F sqrt(F a) { return _mm512_sqrt_ps(a); }
  static F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }    // a·b + c
  static F fnma(F a, F b, F c) { return _mm512_fnmadd_ps(a, b, c); }  // c − a·b
  // When either is NaN the second operand is the result.
  static F max(F a, F b) { return _mm512_max_ps(a, b); }
  static F min(F a, F b) { return _mm512_min_ps(a, b); }
  static M less(F a, F b) { return _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ); }
  static M less_equal(F a, F b) { return _mm512_cmp_ps_mask(a, b, _CMP_LE_OQ); }
  static M unordered(F a) { return _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q); }
  static M either(M a, M b) { return static_cast<M>(a | b); }
  static bool any(M m) { return m != 0; }
  static F select(M m, F yes, F no) { return _mm512_mask_blend_ps(m, no, yes); }
  static I select_int(M m, I yes, I no) { return _mm512_mask_blend_epi32(m, no, yes); }

  static I set_int(int32_t x) { return _mm512_set1_epi32(x); }
  static I lanes() { return _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15); }
  static I bits(F x) { return _mm512_castps_si512(x); }
  static F from_bits(I x) { return _mm512_castsi512_ps(x); }
  static I round_to_int(F x) { return _mm512_cvtps_epi32(x); }
  static F to_float(I x) { return _mm512_cvtepi32_ps(x); }
  static I add_int(I a, I b) { return _mm512_add_epi32(a, b); }
  static I sub_int(I a, I b) { return _mm512_sub_epi32(a, b); }
  static I and_int(I a, I b) { return _mm512_and_si512(a, b); }
  static I or_int(I a, I b) { return _mm512_or_si512(a, b); }
  static I xor_int(I a, I b) { return _mm512_xor_si512(a, b); }
  template <int n>
  static I left(I a) {
    return _mm512_slli_epi32(a, n);
  }
  template <int n>
  static I right(I a) {
    return _mm512_srli_epi32(a, n);
  }
  template <int n>
  static I right_signed(I a) {
    return _mm512_srai_epi32(a, n);
  }
  static M equal_int(I a, I b) { return _mm512_cmpeq_epi32_mask(a, b); }
  // Low and high words of the 32 × 32 bit products.
  static void multiply_wide(I a, I b, I& low, I& high) {
    low = _mm512_mullo_epi32(a, b);
    const I even = _mm512_mul_epu32(a, b);
    const I odd = _mm512_mul_epu32(_mm512_srli_epi64(a, 32), _mm512_srli_epi64(b, 32));
    high = _mm512_mask_mov_epi32(_mm512_srli_epi64(even, 32), 0xaaaa, odd);
  }
  static I load_int(const void* p) { return _mm512_loadu_si512(p); }
  static I load_int_n(const void* p, int64_t n) { return _mm512_maskz_loadu_epi32(first(n), p); }
  static void store_int(void* p, I x) { _mm512_storeu_si512(p, x); }

  // Sixteen-bit floats.
  static F load_bf16(const uint16_t* p) {
    return from_bits(left<16>(_mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))));
  }
  static F load_bf16_n(const uint16_t* p, int64_t n) {
    return from_bits(left<16>(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(first(n), p))));
  }
  static F load_f16(const uint16_t* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  static F load_f16_n(const uint16_t* p, int64_t n) { return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(first(n), p)); }
  // The low 16 bits of each lane.
  static void store_u16_n(uint16_t* p, I x, int64_t n) {
    _mm256_mask_storeu_epi16(p, first(n), _mm512_cvtepi32_epi16(x));
  }
  static I f16_bits(F x) {
    return _mm512_cvtepu16_epi32(_mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  }

  // NVFP4: the value of the code in the low 4 bits of each lane, whatever stands above them.
  static F e2m1(I code) {
    const F table = _mm512_setr_ps(0.0f, 0.5f, 1.0f, 1.5f, 2.0f, 3.0f, 4.0f, 6.0f, -0.0f, -0.5f, -1.0f, -1.5f, -2.0f,
                                   -3.0f, -4.0f, -6.0f);
    return _mm512_permutexvar_ps(code, table);
  }
  static I bytes_to_int(const uint8_t* p) {
    return _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  // Lanes 2i and 2i+1 take byte i; n of the 8 bytes exist, the rest are 0.
  static I bytes_twice(const uint8_t* p, int64_t n) {
    const __m128i bytes = _mm_maskz_loadu_epi8(static_cast<__mmask16>((1u << n) - 1u), p);
    return _mm512_cvtepu8_epi32(_mm_unpacklo_epi8(bytes, bytes));
  }
  static void store_bytes_n(uint8_t* p, I x, int64_t n) { _mm_mask_storeu_epi8(p, first(n), _mm512_cvtepi32_epi8(x)); }
  // Lane i takes nibble i of the 8 bytes at p, in its low 4 bits.
  static I nibbles(const uint8_t* p) {
    const I words = _mm512_castsi128_si512(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
    const I which = _mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1);
    const I shift = _mm512_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28, 0, 4, 8, 12, 16, 20, 24, 28);
    return _mm512_srlv_epi32(_mm512_permutexvar_epi32(which, words), shift);
  }
  // Sixteen codes, in lanes → 8 bytes, the first in the low nibble.
  static uint64_t pack_nibbles(const I* codes) {
    const __m128i bytes = _mm512_cvtepi32_epi8(codes[0]);
    const __m128i pairs = _mm_and_si128(_mm_or_si128(bytes, _mm_srli_epi16(bytes, 4)), _mm_set1_epi16(0xff));
    return static_cast<uint64_t>(_mm_cvtsi128_si64(_mm_packus_epi16(pairs, pairs)));
  }
  static I max_int(I a, I b) { return _mm512_max_epi32(a, b); }
  static int32_t largest_int(I x) { return _mm512_reduce_max_epi32(x); }
  static int32_t sum_int(I x) { return _mm512_reduce_add_epi32(x); }
  // Lane i takes the 32-bit word at base + i·stride.
  static I gather_words(const uint8_t* base, int64_t stride) {
    return _mm512_i32gather_epi32(_mm512_mullo_epi32(lanes(), set_int(static_cast<int32_t>(stride))), base, 1);
  }

  // Byte products (simd/gemv_nvfp4.h). Σ over the four bytes of each lane and the four vectors of codes·digits, codes
  // 0..24 unsigned, digits signed: pairs of 16-bit sums stay below 4 · 2 · 24 · 128.
  static constexpr bool byte_products = true;
  static I dot_bytes(const I* codes, const int8_t* digits) {
    I sum = _mm512_maddubs_epi16(codes[0], load_int(digits));
    for (int i = 1; i < 4; ++i) sum = _mm512_add_epi16(sum, _mm512_maddubs_epi16(codes[i], load_int(digits + 64 * i)));
    return _mm512_madd_epi16(sum, _mm512_set1_epi16(1));
  }
  // Codes in the low or high nibble of each byte → 12 + twice their value.
  static I biased_low(I words) {
    const I table = _mm512_broadcast_i32x4(_mm_setr_epi8(12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0));
    return _mm512_shuffle_epi8(table, and_int(words, _mm512_set1_epi8(15)));
  }
  static I biased_high(I words) { return biased_low(_mm512_srli_epi16(words, 4)); }
  // Of two vectors of words: those that start a block, and those that end one; their order is block_of_lane's.
  static I even_words(I a, I b) {
    return _mm512_castps_si512(_mm512_shuffle_ps(_mm512_castsi512_ps(a), _mm512_castsi512_ps(b), 0x88));
  }
  static I odd_words(I a, I b) {
    return _mm512_castps_si512(_mm512_shuffle_ps(_mm512_castsi512_ps(a), _mm512_castsi512_ps(b), 0xdd));
  }
  static constexpr int block_of_lane(int lane) { return (lane % 4 / 2) * 8 + lane / 4 * 2 + lane % 2; }
  // Sixteen values that fit a byte: those of the low nibbles of a block's first 8 codes go to `to`, of the high nibbles
  // to to + stride, of the last 8 codes' the same behind them; four bytes each.
  static void store_digits(const I* values, char* to, int64_t stride) {
    store_digit_words<Avx512>(_mm512_cvtepi32_epi8(values[0]), to, stride);
  }
  // Sixteen signed bytes in the order of block_of_lane; n of them exist, the rest are 0.
  static I scale_bytes(const uint8_t* p, int64_t n) {
    const __m128i bytes =
        n >= 16 ? _mm_loadu_si128(reinterpret_cast<const __m128i*>(p)) : _mm_maskz_loadu_epi8(first(n), p);
    const __m128i order = _mm_setr_epi8(0, 1, 8, 9, 2, 3, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15);
    return _mm512_cvtepi8_epi32(_mm_shuffle_epi8(bytes, order));
  }

  static float sum(F x) {
    const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps(x, 1));
    __m128 quarter = _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
    quarter = _mm_add_ps(quarter, _mm_movehl_ps(quarter, quarter));
    return _mm_cvtss_f32(_mm_add_ss(quarter, _mm_movehdup_ps(quarter)));
  }
  static double sum_double(F x) {
    return _mm512_reduce_add_pd(
        _mm512_add_pd(_mm512_cvtps_pd(_mm512_castps512_ps256(x)), _mm512_cvtps_pd(_mm512_extractf32x8_ps(x, 1))));
  }

  // rows[i] lane j ↔ rows[j] lane i.
  static void transpose(F* rows) {
    F t[16];
    for (int i = 0; i < 16; i += 4) {
      const F a = _mm512_unpacklo_ps(rows[i], rows[i + 1]), b = _mm512_unpackhi_ps(rows[i], rows[i + 1]);
      const F c = _mm512_unpacklo_ps(rows[i + 2], rows[i + 3]), d = _mm512_unpackhi_ps(rows[i + 2], rows[i + 3]);
      t[i] = _mm512_shuffle_ps(a, c, 0x44);
      t[i + 1] = _mm512_shuffle_ps(a, c, 0xee);
      t[i + 2] = _mm512_shuffle_ps(b, d, 0x44);
      t[i + 3] = _mm512_shuffle_ps(b, d, 0xee);
    }
    for (int i = 0; i < 4; ++i) {
      const F a = _mm512_shuffle_f32x4(t[i], t[i + 4], 0x88), b = _mm512_shuffle_f32x4(t[i], t[i + 4], 0xdd);
      const F c = _mm512_shuffle_f32x4(t[i + 8], t[i + 12], 0x88), d = _mm512_shuffle_f32x4(t[i + 8], t[i + 12], 0xdd);
      rows[i] = _mm512_shuffle_f32x4(a, c, 0x88);
      rows[i + 8] = _mm512_shuffle_f32x4(a, c, 0xdd);
      rows[i + 4] = _mm512_shuffle_f32x4(b, d, 0x88);
      rows[i + 12] = _mm512_shuffle_f32x4(b, d, 0xdd);
    }
  }
};

}  // namespace q4
