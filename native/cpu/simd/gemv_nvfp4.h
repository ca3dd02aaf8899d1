// An NVFP4 matrix times a few rows of activations, in integers: bound by reading codes and scales once.
//
// Doubled, an E2M1 value is a small whole number, so a block's sum can be exact. Each block of 16 activations is carried
// as 24-bit integers and a power of two: what fp32 itself keeps of the block's largest, so the result is as good as an
// fp32 product (the sums are exact, only their scaling rounds). The integers are split into three signed bytes for
// byte products. Codes get a bias of 12 to be unsigned; its share, −12·Σ of the block's integers, is added back.
#pragma once
#include <cstdint>

#include "core/tensor.h"
#include "cpu/kernels.h"
#include "cpu/simd/rows.h"

namespace q4::simd {

// A chunk is two vectors of codes, width blocks; lane i of what is made of it belongs to block V::block_of_lane(i).
// Arranged, a chunk holds 3 × 4 vectors of digits (highest first; low and high nibbles of a block's first 8 codes, then of
// its last 8), a vector of biases and one of powers of two.
template <typename V>
inline constexpr int64_t kChunkVectors = 14;

template <typename V>
void arrange_block(const float* x, int64_t count, int lane, char* chunk) {
  using F = typename V::F;
  using I = typename V::I;
  constexpr int width = V::width, vectors = 16 / V::width;
  F value[vectors];
  I largest_bits = V::set_int(0);
  for (int i = 0; i < vectors; ++i) {
    const int64_t left = count - i * width;
    value[i] = left >= width ? V::load(x + i * width) : left > 0 ? V::load_n(x + i * width, left) : V::zero();
    largest_bits = V::max_int(largest_bits, V::bits(magnitude<V>(value[i])));
  }
  const auto bits = static_cast<uint32_t>(V::largest_int(largest_bits));
  float factor = 0, power = 0;
  if (bits >= 0x7f800000u) {  // infinite or NaN
    power = __builtin_nanf("");
  } else if (bits > 0) {
    // 2^shift brings the largest to [2^22, 2^23), or half of that where the highest digit would not fit a byte.
    int shift = 22 + 127 - static_cast<int>(bits >> 23);
    shift = shift > 126 ? 126 : shift;
    factor = __builtin_bit_cast(float, static_cast<uint32_t>(shift + 127) << 23);
    if (__builtin_bit_cast(float, bits) * factor > 8355711.0f) factor *= 0.5f;
    power = 0.5f / factor;  // the codes are doubled
  }
  I digit[3][vectors], sum = V::set_int(0);
  for (int i = 0; i < vectors; ++i) {
    // Nothing of a poisoned block but its NaN power is used: its factor 0 would make integers of NaN.
    const I whole = power == power ? V::round_to_int(V::mul(value[i], V::set(factor))) : V::set_int(0);
    digit[2][i] = V::template right_signed<24>(V::template left<24>(whole));
    const I rest = V::template right_signed<8>(V::sub_int(whole, digit[2][i]));
    digit[1][i] = V::template right_signed<24>(V::template left<24>(rest));
    digit[0][i] = V::template right_signed<8>(V::sub_int(rest, digit[1][i]));
    sum = V::add_int(sum, whole);
  }
  for (int d = 0; d < 3; ++d) V::store_digits(digit[d], chunk + (d * 4 * width + lane) * 4, width * 4);
  reinterpret_cast<int32_t*>(chunk)[12 * width + lane] = -12 * V::sum_int(sum);
  reinterpret_cast<float*>(chunk)[13 * width + lane] = power;
}

template <typename V>
void arrange_integers(const float* x, int64_t k, float* out) {
  constexpr int64_t chunk_cols = V::width * kBlock;
  for (int64_t p = 0; p < k; p += chunk_cols) {
    char* chunk = reinterpret_cast<char*>(out + p / chunk_cols * kChunkVectors<V> * V::width);
    for (int lane = 0; lane < V::width; ++lane) {
      const int64_t at = p + V::block_of_lane(lane) * kBlock, left = k - at;
      arrange_block<V>(x + (left > 0 ? at : 0), left <= 0 ? 0 : left < kBlock ? left : kBlock, lane, chunk);
    }
  }
}

// Signed E4M3 bytes, sign-extended to lanes → fp32; NaN for 0x7f (a NaN of either sign stays one).
template <typename V>
typename V::F signed_e4m3(typename V::I bytes) {
  const typename V::I placed = V::and_int(V::template left<20>(bytes), V::set_int(static_cast<int32_t>(0x87f00000u)));
  const typename V::F value = V::mul(V::from_bits(placed), V::set(0x1p120f));
  return V::select(V::less(V::set(464.0f), magnitude<V>(value)), V::set(__builtin_nanf("")), value);
}

// Rows o .. o + group of W against `rows` rows of x.
template <typename V, int group, int rows>
void gemv_group(const MatrixView& w, int64_t o, const float* x, int64_t x_stride, float alpha, float* y, int64_t ldy) {
  using F = typename V::F;
  using I = typename V::I;
  constexpr int width = V::width;
  constexpr int64_t chunk_cols = V::width * kBlock, half_bytes = chunk_cols / 4,
                    chunk_floats = kChunkVectors<V> * width;
  // How far ahead codes are fetched.
  constexpr int64_t ahead_bytes = 4096;
  const int64_t row_bytes = w.cols / 2, row_blocks = w.cols / kBlock;
  const uint8_t* codes = static_cast<const uint8_t*>(w.data) + o * row_bytes;
  const uint8_t* scales = w.scale + o * row_blocks;
  F total[group][rows];
#pragma GCC unroll 2
  for (int g = 0; g < group; ++g)
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r) total[g][r] = V::zero();
  for (int64_t p = 0; p < w.cols; p += chunk_cols, x += chunk_floats) {
    const int64_t left = w.cols - p;
    I biased[group][4];
    F scale[group];
#pragma GCC unroll 2
    for (int g = 0; g < group; ++g) {
      const uint8_t* at = codes + g * row_bytes + p / 2;
      __builtin_prefetch(at + ahead_bytes);
      __builtin_prefetch(at + ahead_bytes + half_bytes);
      __builtin_prefetch(scales + g * row_blocks + p / kBlock + ahead_bytes / 8);
      I a, b;
      if (left >= chunk_cols) {
        a = V::load_int(at);
        b = V::load_int(at + half_bytes);
      } else {
        const int64_t words = left / 8;
        a = V::load_int_n(at, words < width ? words : width);
        b = words > width ? V::load_int_n(at + half_bytes, words - width) : V::set_int(0);
      }
      const I even = V::even_words(a, b), odd = V::odd_words(a, b);
      biased[g][0] = V::biased_low(even);
      biased[g][1] = V::biased_high(even);
      biased[g][2] = V::biased_low(odd);
      biased[g][3] = V::biased_high(odd);
      scale[g] = signed_e4m3<V>(V::scale_bytes(scales + g * row_blocks + p / kBlock, left / kBlock));
    }
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r) {
      const float* from = x + r * x_stride;
      const auto* digits = reinterpret_cast<const int8_t*>(from);
#pragma GCC unroll 2
      for (int g = 0; g < group; ++g) {
        const I high = V::dot_bytes(biased[g], digits), middle = V::dot_bytes(biased[g], digits + 16 * width);
        const I low = V::dot_bytes(biased[g], digits + 32 * width);
        // Modulo 2^32 on the way; the true sum is below 2^31.
        const I sum = V::add_int(V::add_int(V::template left<16>(high), V::template left<8>(middle)),
                                 V::add_int(low, V::load_int(from + 12 * width)));
        total[g][r] = V::fma(V::to_float(sum), V::mul(scale[g], V::load(from + 13 * width)), total[g][r]);
      }
    }
  }
#pragma GCC unroll 2
  for (int g = 0; g < group; ++g)
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r) y[r * ldy + o + g] = alpha * V::sum(total[g][r]);
}

// Rows [begin, end) of W. For few rows of x one row of W at a time, a single stream of memory that the hardware
// prefetches well; for more, the products are what takes time, and two rows of W share the loads of x.
template <typename V, int rows>
void gemv_integers(const MatrixView& w, int64_t begin, int64_t end, const float* x, int64_t x_stride, float alpha,
                   float* y, int64_t ldy) {
  constexpr int group = rows <= 2 ? 1 : 2;
  int64_t o = begin;
  for (; o + group <= end; o += group) gemv_group<V, group, rows>(w, o, x, x_stride, alpha, y, ldy);
  for (; o < end; ++o) gemv_group<V, 1, rows>(w, o, x, x_stride, alpha, y, ldy);
}

}  // namespace q4::simd
