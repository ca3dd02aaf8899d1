// Gradient statistics, AdamW and NVFP4 quantisation. adamw and quantize give the bits of the scalar formulas in
// cpu/reference: the same operations in the same order, nothing fused.
#pragma once
#include "core/tensor.h"
#include "cpu/kernels.h"
#include "cpu/simd/load.h"
#include "cpu/simd/rows.h"
#include "cpu/simd/scale.h"

namespace q4::simd {

template <typename V>
double sum_squares(DType dtype, const void* x, int64_t n) {
  double total = 0;
  with_dtype(dtype, [&]<DType source>() {
    for (int64_t begin = 0; begin < n; begin += 64 * V::width) {
      const int64_t count = n - begin < 64 * V::width ? n - begin : 64 * V::width;
      typename V::F sum = V::zero();
      each<V>(count, [&](int64_t i, int64_t lanes) {
        const typename V::F value = load_as<V, source>(x, begin + i, lanes);
        sum = V::fma(value, value, sum);
      });
      total += V::sum_double(sum);
    }
  });
  return total;
}

// max(largest, |x|); a NaN wins and stays (core/nvfp4.h, amax_step).
template <typename V>
typename V::F larger_magnitude(typename V::F largest, typename V::F x) {
  const typename V::F a = magnitude<V>(x);
  return V::select(V::either(V::unordered(a), V::less(largest, a)), a, largest);
}
// Of magnitudes; a NaN wins. Their bits order as integers, NaN above infinity, so an integer maximum does it.
template <typename V>
float largest_lane(typename V::F x) {
  return __builtin_bit_cast(float, V::largest_int(V::bits(x)));
}

template <typename V>
float amax(DType dtype, const void* x, int64_t n) {
  return with_dtype(dtype, [&]<DType source>() {
    typename V::F largest = V::zero();
    each<V>(n,
            [&](int64_t i, int64_t lanes) { largest = larger_magnitude<V>(largest, load_as<V, source>(x, i, lanes)); });
    return largest_lane<V>(largest);
  });
}

// Philox4x32-10 for `width` counters at once: lane i draws group + i (core/philox.h, Draw::rounding = 1).
template <typename V>
void philox(const AdamwStep& step, uint64_t group, typename V::I* word) {
  using I = typename V::I;
  // Groups of one call share the high half of the counter: calls start at multiples of 16 groups.
  I c0 = V::add_int(V::set_int(static_cast<int32_t>(group)), V::lanes());
  I c1 = V::set_int(static_cast<int32_t>((static_cast<uint32_t>(group >> 32) & 0xffffffu) | 1u << 24));
  I c2 = V::set_int(static_cast<int32_t>(step.stream)), c3 = V::set_int(static_cast<int32_t>(step.step));
  uint32_t key0 = step.seed_lo, key1 = step.seed_hi;
  const I multiplier0 = V::set_int(static_cast<int32_t>(0xd2511f53u)),
          multiplier1 = V::set_int(static_cast<int32_t>(0xcd9e8d57u));
  for (int round = 0; round < 10; ++round) {
    I low0, high0, low1, high1;
    V::multiply_wide(multiplier0, c0, low0, high0);
    V::multiply_wide(multiplier1, c2, low1, high1);
    c0 = V::xor_int(V::xor_int(high1, c1), V::set_int(static_cast<int32_t>(key0)));
    c2 = V::xor_int(V::xor_int(high0, c3), V::set_int(static_cast<int32_t>(key1)));
    c1 = low1;
    c3 = low0;
    key0 += 0x9e3779b9u;
    key1 += 0xbb67ae85u;
  }
  word[0] = c0, word[1] = c1, word[2] = c2, word[3] = c3;
}

template <typename V, DType grad_type, bool stochastic>
void adamw_range(const AdamwStep& step, const void* grad, void* master, float* m, float* v, int64_t first, int64_t n) {
  using F = typename V::F;
  using I = typename V::I;
  const F clip = V::set(step.clip), lr = V::set(step.lr), eps = V::set(step.eps), shrink = V::set(step.shrink);
  const F beta1 = V::set(step.beta1), beta2 = V::set(step.beta2);
  const F rest1 = V::set(1.0f - step.beta1), rest2 = V::set(1.0f - step.beta2);
  const F correction1 = V::set(step.correction1), correction2 = V::set(step.correction2);
  constexpr DType master_type = stochastic ? DType::bf16 : DType::f32;
  // Random words of the next 4·width elements, in element order.
  alignas(64) uint32_t words[4 * V::width];
  each<V>(n, [&](int64_t i, int64_t lanes) {
    const F g = V::mul(load_as<V, grad_type>(grad, i, lanes), clip);
    const F m_i = V::add(V::mul(beta1, read<V>(m + i, lanes)), V::mul(rest1, g));
    const F v_i = V::add(V::mul(beta2, read<V>(v + i, lanes)), V::mul(rest2, V::mul(g, g)));
    F w = load_as<V, master_type>(master, i, lanes);
    w = V::sub(w, V::mul(shrink, w));
    w = V::sub(w, V::div(V::mul(lr, V::div(m_i, correction1)), V::add(V::sqrt(V::div(v_i, correction2)), eps)));
    write<V>(m + i, m_i, lanes);
    write<V>(v + i, v_i, lanes);
    if constexpr (stochastic) {
      const int64_t phase = i % (4 * V::width);
      if (phase == 0) {
        I word[4];
        philox<V>(step, static_cast<uint64_t>(first + i) / 4, word);
        alignas(64) uint32_t lane[4][V::width];
        for (int c = 0; c < 4; ++c) V::store_int(lane[c], word[c]);
        for (int k = 0; k < V::width; ++k)
          for (int c = 0; c < 4; ++c) words[4 * k + c] = lane[c][k];
      }
      const I noise = V::and_int(V::load_int(words + phase), V::set_int(0xffff));
      const I exponent = V::and_int(V::bits(w), V::set_int(0x7f800000));
      const I rounded = V::template right<16>(V::add_int(V::bits(w), noise));
      const I bits = V::select_int(V::equal_int(exponent, V::set_int(0x7f800000)), bf16_bits<V>(w), rounded);
      V::store_u16_n(static_cast<uint16_t*>(master) + i, bits, lanes);
    } else {
      write<V>(static_cast<float*>(master) + i, w, lanes);
    }
  });
}

template <typename V>
void adamw(const AdamwStep& step, DType grad_dtype, const void* grad, DType master_dtype, void* master, float* m,
           float* v, int64_t first, int64_t n) {
  const auto run = [&]<DType grad_type>() {
    if (master_dtype == DType::bf16)
      adamw_range<V, grad_type, true>(step, grad, master, m, v, first, n);
    else
      adamw_range<V, grad_type, false>(step, grad, master, m, v, first, n);
  };
  if (grad_dtype == DType::bf16)
    run.template operator()<DType::bf16>();
  else
    run.template operator()<DType::f32>();
}

// Codes of value / step, ties to even, saturated; NaN saturates with its sign (core/nvfp4.h).
template <typename V>
typename V::I e2m1_codes(typename V::F quotient) {
  using F = typename V::F;
  using I = typename V::I;
  const F a = magnitude<V>(quotient);
  const I one = V::set_int(1), none = V::set_int(0);
  I code = V::set_int(7);
  // Counts down from 7 for every threshold that a does not pass; "≤" where the tie goes to the smaller, even code.
  const auto drop = [&](typename V::M below) { code = V::sub_int(code, V::select_int(below, one, none)); };
  drop(V::less_equal(a, V::set(5.0f)));
  drop(V::less(a, V::set(3.5f)));
  drop(V::less_equal(a, V::set(2.5f)));
  drop(V::less(a, V::set(1.75f)));
  drop(V::less_equal(a, V::set(1.25f)));
  drop(V::less(a, V::set(0.75f)));
  drop(V::less_equal(a, V::set(0.25f)));
  return V::or_int(code, V::template left<3>(V::template right<31>(V::bits(quotient))));
}

// f32 → E4M3 of one magnitude (core/e4m3.h); amax / 6 / global is never negative.
inline uint8_t scale_bits(float value, uint32_t bits) {
  if (bits > 0x7f800000u) return 0x7f;
  if (bits >= 0x43e00000u) return 0x7e;
  if (bits < 0x3c800000u) return static_cast<uint8_t>(__builtin_bit_cast(uint32_t, value + 16384.0f) - 0x46800000u);
  return static_cast<uint8_t>((bits + 0x7ffffu + ((bits >> 20) & 1u) - 0x3c000000u) >> 20);
}

template <typename V>
int64_t quantize(DType dtype, const void* x, int64_t n, float global, uint8_t* codes, uint8_t* scales) {
  using F = typename V::F;
  constexpr int vectors = 16 / V::width;
  return with_dtype(dtype, [&]<DType source>() {
    int64_t changed = 0;
    for (int64_t block = 0; block < n / kBlock; ++block) {
      F value[vectors];
      F largest = V::zero();
      for (int i = 0; i < vectors; ++i) {
        value[i] = load_as<V, source>(x, block * kBlock + i * V::width, V::width);
        largest = larger_magnitude<V>(largest, value[i]);
      }
      const float scale = largest_lane<V>(largest) / 6.0f / global;
      const uint32_t positive = __builtin_bit_cast(uint32_t, scale) & 0x7fffffffu;
      const uint8_t bits = scale_bits(__builtin_bit_cast(float, positive), positive);
      scales[block] = bits;
      const float step = kE4m3Values[bits] * global;
      typename V::I code[vectors];
      for (int i = 0; i < vectors; ++i)
        code[i] = step == 0.0f ? V::set_int(0) : e2m1_codes<V>(V::div(value[i], V::set(step)));
      const uint64_t packed = V::pack_nibbles(code);
      uint8_t* out = codes + block * (kBlock / 2);
      uint64_t before;
      __builtin_memcpy(&before, out, 8);
      __builtin_memcpy(out, &packed, 8);
      // One bit for every nibble that differs.
      uint64_t different = packed ^ before;
      different |= different >> 2;
      different |= different >> 1;
      changed += __builtin_popcountll(different & 0x1111111111111111u);
    }
    return changed;
  });
}

}  // namespace q4::simd
