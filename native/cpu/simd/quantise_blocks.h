// Quantising blocks of 16 to NVFP4 with a search for their scales. A lane takes a block: the 16 elements of `width` blocks
// are transposed, so that scales, errors and codes of all of them come out of plain vertical arithmetic.
#pragma once
#include <cstring>

#include "core/weight_kernels.h"
#include "cpu/simd/load.h"
#include "cpu/simd/optimizer.h"
#include "cpu/simd/scale.h"

namespace q4::simd {

constexpr int kElements = 16;  // of a block

// Round to nearest even among 0 .5 1 1.5 2 3 4 6, of magnitudes up to 6: adding a number whose last bit is worth as much as
// the step between neighbours (half a power of two) rounds to that step.
constexpr float kRounding = 0x1.8p22f;
template <typename V>
typename V::F rounding_term(typename V::F a) {
  const typename V::F power = V::max(V::from_bits(V::and_int(V::bits(a), V::set_int(0x7f800000))), V::set(1.0f));
  return V::mul(power, V::set(kRounding));
}
template <typename V>
typename V::F round_e2m1(typename V::F a) {
  const typename V::F magic = rounding_term<V>(a);
  return V::sub(V::add(a, magic), magic);
}

// 0 … 7 of a magnitude, from its rounding term and their sum: how many steps were added to the term's last bit, which are
// codes below 2, two less than codes up to 4, and four less from there.
template <typename V>
typename V::I code_of(typename V::F sum, typename V::F magic) {
  const typename V::I bits = V::bits(magic);
  const typename V::I base = V::sub_int(bits, V::set_int(__builtin_bit_cast(int32_t, kRounding)));
  return V::add_int(V::sub_int(V::bits(sum), bits), V::template right<22>(base));
}

// weight_kernels.h. Two bf16 values are the halves of a word, and magnitudes order as whole numbers, NaN above infinity.
template <typename V>
float weight_amax(DType type, const void* x, int64_t n) {
  if (type != DType::bf16) return amax<V>(type, x, n);
  const auto* values = static_cast<const uint16_t*>(x);
  constexpr int64_t step = 2 * V::width;
  const typename V::I mask = V::set_int(0x7fff0000);
  typename V::I high = V::set_int(0), low = V::set_int(0);
  const int64_t whole = n - n % step;
  for (int64_t i = 0; i < whole; i += step) {
    const typename V::I words = V::load_int(values + i);
    high = V::max_int(high, V::and_int(words, mask));
    low = V::max_int(low, V::and_int(V::template left<16>(words), mask));
  }
  int32_t largest = V::largest_int(V::max_int(high, low));
  for (int64_t i = whole; i < n; ++i) {
    const int32_t magnitude = (values[i] & 0x7fff) << 16;
    if (magnitude > largest) largest = magnitude;
  }
  return __builtin_bit_cast(float, largest);
}

// f32 → E4M3 bits of a number that is not negative and not NaN (core/e4m3.h).
template <typename V>
typename V::I e4m3_bits(typename V::F value) {
  using I = typename V::I;
  const I bits = V::bits(value);
  const I odd = V::and_int(V::template right<20>(bits), V::set_int(1));
  const I rounded = V::add_int(V::add_int(bits, V::set_int(0x7ffff)), odd);
  const I normal = V::template right<20>(V::sub_int(rounded, V::set_int(0x3c000000)));
  const I small = V::sub_int(V::bits(V::add(value, V::set(16384.0f))), V::set_int(0x46800000));
  const I finite = V::select_int(V::less(value, V::set(0x1p-6f)), small, normal);
  return V::select_int(V::less_equal(V::set(448.0f), value), V::set_int(0x7e), finite);
}

template <typename V>
struct BlockLanes {
  using F = typename V::F;
  using I = typename V::I;
  F value[kElements], magnitude[kElements];
  F amax, global;

  // The squared error of a scale, as core/weight_kernels.h defines it.
  F error(I scale_bits) const {
    const F scale = e4m3<V>(scale_bits);
    const F inverse = V::div(V::set(1.0f), V::mul(scale, global));
    F sum = V::zero();
    for (int i = 0; i < kElements; ++i) {
      const F q = round_e2m1<V>(V::min(V::mul(magnitude[i], inverse), V::set(6.0f)));
      const F off = V::sub(magnitude[i], V::mul(V::mul(q, scale), global));
      sum = V::add(sum, V::mul(off, off));
    }
    return sum;
  }

  I choose(ScaleSearch search) const {
    const I six = e4m3_bits<V>(V::div(V::div(amax, V::set(6.0f)), global));
    if (search == ScaleSearch::amax) return six;
    if (search == ScaleSearch::four_over_six) {
      const I four = e4m3_bits<V>(V::div(V::div(amax, V::set(4.0f)), global));
      return V::select_int(V::less(error(four), error(six)), four, six);
    }
    I best = six;
    F least = V::zero();
    for (int offset = -kSearchBelow; offset <= kSearchAbove; ++offset) {
      // Small whole numbers: kept in range as floats, which every vector type can compare.
      const F wanted = V::add(V::to_float(six), V::set(static_cast<float>(offset)));
      const I candidate = V::round_to_int(V::min(V::max(wanted, V::set(1.0f)), V::set(126.0f)));
      const F found = error(candidate);
      if (offset == -kSearchBelow) {
        best = candidate, least = found;
        continue;
      }
      const typename V::M better = V::less(found, least);
      best = V::select_int(better, candidate, best);
      least = V::select(better, found, least);
    }
    return V::select_int(V::less(V::zero(), amax), best, V::set_int(0));
  }
};

// Counts of a stretch of blocks, a lane each.
template <typename V>
struct LaneCounts {
  static constexpr int64_t kBlocks = 1 << 20;  // after so many the counts are still far within a lane
  typename V::I zeros = V::set_int(0), saturated = V::set_int(0), at_floor = V::set_int(0);

  void add_to(QuantiseSums& sums) {
    alignas(64) int32_t lanes[3][V::width];
    V::store_int(lanes[0], zeros), V::store_int(lanes[1], saturated), V::store_int(lanes[2], at_floor);
    for (int i = 0; i < V::width; ++i)
      sums.zero_codes += lanes[0][i], sums.saturated += lanes[1][i], sums.floor_blocks += lanes[2][i];
    *this = LaneCounts();
  }
};

// `width` blocks from element `first` of x.
template <typename V, DType source>
void quantise_lanes(const void* x, int64_t first, float global, ScaleSearch search, uint8_t* codes, uint8_t* scales,
                    QuantiseSums& sums, LaneCounts<V>& counts) {
  using F = typename V::F;
  using I = typename V::I;
  constexpr int width = V::width;
  BlockLanes<V> lanes;
  lanes.global = V::set(global);
  lanes.amax = V::zero();
  for (int part = 0; part < kElements; part += width) {
    for (int block = 0; block < width; ++block)
      lanes.value[part + block] = load_as<V, source>(x, first + block * kElements + part, width);
    V::transpose(lanes.value + part);
  }
  F signal = V::zero();
  for (int i = 0; i < kElements; ++i) {
    lanes.magnitude[i] = magnitude<V>(lanes.value[i]);
    lanes.amax = V::max(lanes.amax, lanes.magnitude[i]);
    signal = V::add(signal, V::mul(lanes.value[i], lanes.value[i]));
  }
  const I scale_bits = lanes.choose(search);
  const F scale = e4m3<V>(scale_bits);
  const I one = V::set_int(1), none = V::set_int(0);
  // A step that underflows makes every code 0, without a sign: values divided by infinity.
  F step = V::mul(scale, lanes.global);
  const typename V::M dead = V::less_equal(step, V::zero());
  step = V::select(dead, V::from_bits(V::set_int(0x7f800000)), step);
  const I sign_bit = V::select_int(dead, none, V::set_int(8));
  const F six = V::set(6.0f);
  F noise = V::zero();
  I code[kElements];
  for (int i = 0; i < kElements; ++i) {
    const F quotient = V::div(lanes.magnitude[i], step);
    counts.saturated = V::add_int(counts.saturated, V::select_int(V::less(six, quotient), one, none));
    const F clamped = V::min(quotient, six);
    const F magic = rounding_term<V>(clamped);
    const F sum = V::add(clamped, magic);
    const F rounded = V::sub(sum, magic);
    counts.zeros = V::add_int(counts.zeros, V::select_int(V::less_equal(rounded, V::zero()), one, none));
    const I sign = V::and_int(V::template right<28>(V::bits(lanes.value[i])), sign_bit);
    code[i] = V::or_int(code_of<V>(sum, magic), sign);
    const F off = V::sub(lanes.magnitude[i], V::mul(V::mul(rounded, scale), lanes.global));
    noise = V::add(noise, V::mul(off, off));
  }
  sums.signal += V::sum_double(signal);
  sums.noise += V::sum_double(noise);
  const typename V::M low = V::less_equal(scale, V::set(0x1p-9f));
  const I at_floor = V::select_int(V::less(V::zero(), lanes.amax), V::select_int(low, one, none), none);
  counts.at_floor = V::add_int(counts.at_floor, at_floor);

  alignas(64) uint32_t words[2][width];
  for (int half = 0; half < 2; ++half) {
    I word = code[half * 8 + 7];
    for (int i = 6; i >= 0; --i) word = V::or_int(V::template left<4>(word), code[half * 8 + i]);
    V::store_int(words[half], word);
  }
  for (int block = 0; block < width; ++block) {
    std::memcpy(codes + block * 8, &words[0][block], 4);
    std::memcpy(codes + block * 8 + 4, &words[1][block], 4);
  }
  V::store_bytes_n(scales, scale_bits, width);
}

template <typename V>
void quantise_blocks(DType type, const void* x, int64_t blocks, float global, ScaleSearch search, uint8_t* codes,
                     uint8_t* scales, QuantiseSums& sums) {
  constexpr int width = V::width;
  with_dtype(type, [&]<DType source>() {
    const int64_t whole = blocks - blocks % width;
    LaneCounts<V> counts;
    for (int64_t block = 0; block < whole; block += width) {
      quantise_lanes<V, source>(x, block * kElements, global, search, codes + block * 8, scales + block, sums, counts);
      if ((block + width) % LaneCounts<V>::kBlocks == 0) counts.add_to(sums);
    }
    counts.add_to(sums);
    const int64_t rest = blocks - whole;
    if (rest == 0) return;
    // Zeros fill the lanes that have no block; they count as zero codes and nothing else.
    const int64_t bytes = element_bytes(type) * kElements;
    alignas(64) uint8_t padded[width * kElements * 4] = {}, some_codes[width * 8], some_scales[width];
    std::memcpy(padded, static_cast<const uint8_t*>(x) + whole * bytes, static_cast<size_t>(rest * bytes));
    quantise_lanes<V, source>(padded, 0, global, search, some_codes, some_scales, sums, counts);
    counts.add_to(sums);
    sums.zero_codes -= (width - rest) * kElements;
    std::memcpy(codes + whole * 8, some_codes, static_cast<size_t>(rest) * 8);
    std::memcpy(scales + whole, some_scales, static_cast<size_t>(rest));
  });
}

template <typename V>
void dequantise_blocks(const uint8_t* codes, const uint8_t* scales, int64_t blocks, float global, float* out) {
  constexpr int width = V::width;
  for (int64_t block = 0; block < blocks; ++block) {
    const int32_t bits = scales[block];
    const typename V::F scale = e4m3<V>(V::set_int(bits)), factor = V::set(global);
    for (int part = 0; part < kElements; part += width) {
      const typename V::F code = V::e2m1(V::nibbles(codes + block * 8 + part / 2));
      V::store(out + block * kElements + part, V::mul(V::mul(code, scale), factor));
    }
  }
}

template <typename V>
WeightKernels make_weight_kernels() {
  return {V::name, weight_amax<V>, quantise_blocks<V>, dequantise_blocks<V>};
}

}  // namespace q4::simd
