// Eight lanes of fp32. Included only by *_avx2.cpp files, which are compiled for AVX2, FMA and F16C.
#pragma once
#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "cpu/simd/digits_x86.h"

namespace q4 {

struct Avx2 {
  static constexpr int width = 8;
  static constexpr int tile_rows = 6, tile_vectors = 2;  // matrix product: 12 accumulators of 16 registers
  static constexpr const char* name = "avx2";
  using F = __m256;
  using I = __m256i;
  using M = __m256;

  static I first(int64_t n) { return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(n)), lanes()); }
  static F zero() { return _mm256_setzero_ps(); }
  static F set(float x) { return _mm256_set1_ps(x); }
  static F load(const float* p) { return _mm256_loadu_ps(p); }
  static F load_n(const float* p, int64_t n) { return _mm256_maskload_ps(p, first(n)); }
  static void store(float* p, F x) { _mm256_storeu_ps(p, x); }
  static void store_n(float* p, F x, int64_t n) { _mm256_maskstore_ps(p, first(n), x); }

  static F add(F a, F b) { return _mm256_add_ps(a, b); }
  static F sub(F a, F b) { return _mm256_sub_ps(a, b); }
  static F mul(F a, F b) { return _mm256_mul_ps(a, b); }
  static F div(F a, F b) { return _mm256_div_ps(a, b); }
  static F sqrt(F a) { return _mm256_sqrt_ps(a); }
  static F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }    // a·b + c
  static F fnma(F a, F b, F c) { return _mm256_fnmadd_ps(a, b, c); }  // c − a·b
  // When either is NaN the second operand is the result.
  static F max(F a, F b) { return _mm256_max_ps(a, b); }
  static F min(F a, F b) { return _mm256_min_ps(a, b); }
  static M less(F a, F b) { return _mm256_cmp_ps(a, b, _CMP_LT_OQ); }
  static M less_equal(F a, F b) { return _mm256_cmp_ps(a, b, _CMP_LE_OQ); }
  static M unordered(F a) { return _mm256_cmp_ps(a, a, _CMP_UNORD_Q); }
  static M either(M a, M b) { return _mm256_or_ps(a, b); }
  static bool any(M m) { return _mm256_movemask_ps(m) != 0; }
  static F select(M m, F yes, F no) { return _mm256_blendv_ps(no, yes, m); }
  static I select_int(M m, I yes, I no) { return bits(select(m, from_bits(yes), from_bits(no))); }

  static I set_int(int32_t x) { return _mm256_set1_epi32(x); }
  static I lanes() { return _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7); }
  static I bits(F x) { return _mm256_castps_si256(x); }
  static F from_bits(I x) { return _mm256_castsi256_ps(x); }
  static I round_to_int(F x) { return _mm256_cvtps_epi32(x); }
  static F to_float(I x) { return _mm256_cvtepi32_ps(x); }
  static I add_int(I a, I b) { return _mm256_add_epi32(a, b); }
  static I sub_int(I a, I b) { return _mm256_sub_epi32(a, b); }
  static I and_int(I a, I b) { return _mm256_and_si256(a, b); }
  static I or_int(I a, I b) { return _mm256_or_si256(a, b); }
  static I xor_int(I a, I b) { return _mm256_xor_si256(a, b); }
  template <int n>
  static I left(I a) {
    return _mm256_slli_epi32(a, n);
  }
  template <int n>
  static I right(I a) {
    return _mm256_srli_epi32(a, n);
  }
  template <int n>
  static I right_signed(I a) {
    return _mm256_srai_epi32(a, n);
  }
  static M equal_int(I a, I b) { return from_bits(_mm256_cmpeq_epi32(a, b)); }
  // Low and high words of the 32 × 32 bit products.
  static void multiply_wide(I a, I b, I& low, I& high) {
    low = _mm256_mullo_epi32(a, b);
    const I even = _mm256_mul_epu32(a, b);
    const I odd = _mm256_mul_epu32(_mm256_srli_epi64(a, 32), _mm256_srli_epi64(b, 32));
    high = _mm256_blend_epi32(_mm256_srli_epi64(even, 32), odd, 0xaa);
  }
  static I load_int(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
  static I load_int_n(const void* p, int64_t n) { return _mm256_maskload_epi32(static_cast<const int*>(p), first(n)); }
  static void store_int(void* p, I x) { _mm256_storeu_si256(static_cast<__m256i*>(p), x); }

  // Sixteen-bit floats.
  static __m128i load_u16_n(const uint16_t* p, int64_t n) {
    alignas(16) uint16_t part[8] = {};
    std::memcpy(part, p, static_cast<size_t>(n) * 2);
    return _mm_load_si128(reinterpret_cast<const __m128i*>(part));
  }
  static F load_bf16(const uint16_t* p) {
    return from_bits(left<16>(_mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))));
  }
  static F load_bf16_n(const uint16_t* p, int64_t n) {
    return from_bits(left<16>(_mm256_cvtepu16_epi32(load_u16_n(p, n))));
  }
  static F load_f16(const uint16_t* p) { return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))); }
  static F load_f16_n(const uint16_t* p, int64_t n) { return _mm256_cvtph_ps(load_u16_n(p, n)); }
  // The low 16 bits of each lane.
  static void store_u16_n(uint16_t* p, I x, int64_t n) {
    const I low = and_int(x, set_int(0xffff));
    const __m128i packed = _mm_packus_epi32(_mm256_castsi256_si128(low), _mm256_extracti128_si256(low, 1));
    if (n == 8) {
      _mm_storeu_si128(reinterpret_cast<__m128i*>(p), packed);
    } else {
      alignas(16) uint16_t part[8];
      _mm_store_si128(reinterpret_cast<__m128i*>(part), packed);
      std::memcpy(p, part, static_cast<size_t>(n) * 2);
    }
  }
  static I f16_bits(F x) {
    return _mm256_cvtepu16_epi32(_mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  }

  // NVFP4: the value of the code in the low 4 bits of each lane, whatever stands above them.
  static F e2m1(I code) {
    const F table = _mm256_setr_ps(0.0f, 0.5f, 1.0f, 1.5f, 2.0f, 3.0f, 4.0f, 6.0f);
    const F magnitude = _mm256_permutevar8x32_ps(table, code);  // looks at 3 bits only
    return _mm256_or_ps(magnitude, from_bits(left<31>(right<3>(code))));
  }
  static I bytes_to_int(const uint8_t* p) {
    return _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
  }
  // Lanes 2i and 2i+1 take byte i; n of the 4 bytes exist, the rest are 0.
  static I bytes_twice(const uint8_t* p, int64_t n) {
    uint32_t word = 0;
    if (n == 4)
      std::memcpy(&word, p, 4);
    else
      for (int64_t i = 0; i < n; ++i) word |= uint32_t{p[i]} << (8 * i);
    const __m128i bytes = _mm_cvtsi32_si128(static_cast<int>(word));
    return _mm256_cvtepu8_epi32(_mm_unpacklo_epi8(bytes, bytes));
  }
  static void store_bytes_n(uint8_t* p, I x, int64_t n) {
    alignas(32) uint32_t lane[8];
    _mm256_store_si256(reinterpret_cast<__m256i*>(lane), x);
    for (int64_t i = 0; i < n; ++i) p[i] = static_cast<uint8_t>(lane[i]);
  }
  // Lane i takes nibble i of the 4 bytes at p, in its low 4 bits.
  static I nibbles(const uint8_t* p) {
    int word;
    std::memcpy(&word, p, 4);
    return _mm256_srlv_epi32(_mm256_set1_epi32(word), _mm256_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28));
  }
  // Sixteen codes, in lanes → 8 bytes, the first in the low nibble.
  static uint64_t pack_nibbles(const I* codes) {
    const __m128i low = _mm_packs_epi32(_mm256_castsi256_si128(codes[0]), _mm256_extracti128_si256(codes[0], 1));
    const __m128i high = _mm_packs_epi32(_mm256_castsi256_si128(codes[1]), _mm256_extracti128_si256(codes[1], 1));
    const __m128i bytes = _mm_packus_epi16(low, high);
    const __m128i pairs = _mm_and_si128(_mm_or_si128(bytes, _mm_srli_epi16(bytes, 4)), _mm_set1_epi16(0xff));
    return static_cast<uint64_t>(_mm_cvtsi128_si64(_mm_packus_epi16(pairs, pairs)));
  }
  static I max_int(I a, I b) { return _mm256_max_epi32(a, b); }
  static int32_t sum_int(I x) {
    __m128i half = _mm_add_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
    half = _mm_add_epi32(half, _mm_shuffle_epi32(half, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(half, _mm_shuffle_epi32(half, 0xb1)));
  }
  static int32_t largest_int(I x) {
    __m128i half = _mm_max_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
    half = _mm_max_epi32(half, _mm_shuffle_epi32(half, 0x4e));
    return _mm_cvtsi128_si32(_mm_max_epi32(half, _mm_shuffle_epi32(half, 0xb1)));
  }
  // Lane i takes the 32-bit word at base + i·stride.
  static I gather_words(const uint8_t* base, int64_t stride) {
    return _mm256_i32gather_epi32(reinterpret_cast<const int*>(base),
                                  _mm256_mullo_epi32(lanes(), set_int(static_cast<int32_t>(stride))), 1);
  }

  // Byte products (simd/gemv_nvfp4.h). Σ over the four bytes of each lane and the four vectors of codes·digits, codes
  // 0..24 unsigned, digits signed: pairs of 16-bit sums stay below 4 · 2 · 24 · 128.
  static constexpr bool byte_products = true;
  static I dot_bytes(const I* codes, const int8_t* digits) {
    I sum = _mm256_maddubs_epi16(codes[0], load_int(digits));
    for (int i = 1; i < 4; ++i) sum = _mm256_add_epi16(sum, _mm256_maddubs_epi16(codes[i], load_int(digits + 32 * i)));
    return _mm256_madd_epi16(sum, _mm256_set1_epi16(1));
  }
  // Codes in the low or high nibble of each byte → 12 + twice their value.
  static I biased_low(I words) {
    const I table =
        _mm256_broadcastsi128_si256(_mm_setr_epi8(12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0));
    return _mm256_shuffle_epi8(table, and_int(words, _mm256_set1_epi8(15)));
  }
  static I biased_high(I words) { return biased_low(_mm256_srli_epi16(words, 4)); }
  // Of two vectors of words: those that start a block, and those that end one; their order is block_of_lane's.
  static I even_words(I a, I b) { return bits(_mm256_shuffle_ps(from_bits(a), from_bits(b), 0x88)); }
  static I odd_words(I a, I b) { return bits(_mm256_shuffle_ps(from_bits(a), from_bits(b), 0xdd)); }
  static constexpr int block_of_lane(int lane) { return (lane % 4 / 2) * 4 + lane / 4 * 2 + lane % 2; }
  // Sixteen values that fit a byte: those of the low nibbles of a block's first 8 codes go to `to`, of the high nibbles
  // to to + stride, of the last 8 codes' the same behind them; four bytes each.
  static void store_digits(const I* values, char* to, int64_t stride) {
    const __m128i low = _mm_packs_epi32(_mm256_castsi256_si128(values[0]), _mm256_extracti128_si256(values[0], 1));
    const __m128i high = _mm_packs_epi32(_mm256_castsi256_si128(values[1]), _mm256_extracti128_si256(values[1], 1));
    store_digit_words<Avx2>(_mm_packs_epi16(low, high), to, stride);
  }
  // Eight signed bytes in the order of block_of_lane; n of them exist, the rest are 0.
  static I scale_bytes(const uint8_t* p, int64_t n) {
    uint64_t word = 0;
    if (n >= 8)
      std::memcpy(&word, p, 8);
    else
      for (int64_t i = 0; i < n; ++i) word |= uint64_t{p[i]} << (8 * i);
    const __m128i order = _mm_setr_epi8(0, 1, 4, 5, 2, 3, 6, 7, -1, -1, -1, -1, -1, -1, -1, -1);
    return _mm256_cvtepi8_epi32(_mm_shuffle_epi8(_mm_cvtsi64_si128(static_cast<int64_t>(word)), order));
  }

  static float sum(F x) {
    __m128 half = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    half = _mm_add_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_add_ss(half, _mm_movehdup_ps(half)));
  }
  static double sum_double(F x) {
    const __m256d pairs =
        _mm256_add_pd(_mm256_cvtps_pd(_mm256_castps256_ps128(x)), _mm256_cvtps_pd(_mm256_extractf128_ps(x, 1)));
    const __m128d half = _mm_add_pd(_mm256_castpd256_pd128(pairs), _mm256_extractf128_pd(pairs, 1));
    return _mm_cvtsd_f64(_mm_add_sd(half, _mm_unpackhi_pd(half, half)));
  }

  // rows[i] lane j ↔ rows[j] lane i.
  static void transpose(F* rows) {
    F t[8];
    for (int i = 0; i < 8; i += 4) {
      const F a = _mm256_unpacklo_ps(rows[i], rows[i + 1]), b = _mm256_unpackhi_ps(rows[i], rows[i + 1]);
      const F c = _mm256_unpacklo_ps(rows[i + 2], rows[i + 3]), d = _mm256_unpackhi_ps(rows[i + 2], rows[i + 3]);
      t[i] = _mm256_shuffle_ps(a, c, 0x44);
      t[i + 1] = _mm256_shuffle_ps(a, c, 0xee);
      t[i + 2] = _mm256_shuffle_ps(b, d, 0x44);
      t[i + 3] = _mm256_shuffle_ps(b, d, 0xee);
    }
    for (int i = 0; i < 4; ++i) {
      rows[i] = _mm256_permute2f128_ps(t[i], t[i + 4], 0x20);
      rows[i + 4] = _mm256_permute2f128_ps(t[i], t[i + 4], 0x31);
    }
  }
};

}  // namespace q4
