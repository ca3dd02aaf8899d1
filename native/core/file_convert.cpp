#include "core/file_convert.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>

#include "core/e4m3.h"
#include "core/error.h"
#include "core/half.h"

namespace q4 {

namespace {

constexpr uint8_t kFloorScale = 0x08;  // 2^-6
constexpr int64_t kChunk = 4096;       // elements looked at before asking whether one of them is bad

// Bit patterns whose exponent is all ones are NaN or infinite.
template <typename Bits, Bits kExponent>
int64_t first_special(const void* data, int64_t n) {
  const auto* values = static_cast<const Bits*>(data);
  for (int64_t begin = 0; begin < n; begin += kChunk) {
    const int64_t end = std::min(n, begin + kChunk);
    Bits special = 0;
    for (int64_t i = begin; i < end; ++i) special |= static_cast<Bits>((values[i] & kExponent) == kExponent);
    if (!special) continue;
    for (int64_t i = begin; i < end; ++i)
      if ((values[i] & kExponent) == kExponent) return i;
  }
  return -1;
}

bool is_float(FileType type) {
  return type == FileType::f16 || type == FileType::bf16 || type == FileType::f32 || type == FileType::f64;
}

// Whole number types by the range they hold, so that `from` fits `to` when its rank is not higher.
int whole_rank(FileType type) {
  switch (type) {
    case FileType::boolean:
      return 0;
    case FileType::u8:
      return 1;
    case FileType::i8:
      return 1;
    case FileType::i16:
      return 2;
    case FileType::i32:
      return 3;
    case FileType::i64:
      return 4;
    default:
      return -1;
  }
}

struct F16 {
  uint16_t bits;
};
struct Bf16 {
  uint16_t bits;
};

// half.h's conversions with masks instead of branches: the same bits, but compilers vectorise them.
uint32_t choose(bool first, uint32_t a, uint32_t b) {
  const uint32_t mask = 0u - static_cast<uint32_t>(first);
  return (a & mask) | (b & ~mask);
}
float decode(F16 value) {
  const uint32_t sign = uint32_t{value.bits & 0x8000u} << 16, magnitude = value.bits & 0x7fffu;
  const uint32_t finite = f32_bits(bits_f32(magnitude << 13) * 0x1p112f);
  const uint32_t special = 0x7f800000u | ((magnitude & 0x3ffu) << 13);
  return bits_f32(sign | choose(magnitude >= 0x7c00u, special, finite));
}
F16 encode_f16(float value) {
  const uint32_t bits = f32_bits(value), magnitude = bits & 0x7fffffffu;
  const uint32_t normal = (magnitude + 0xfffu + ((magnitude >> 13) & 1u) - 0x38000000u) >> 13;
  const uint32_t subnormal = f32_bits(bits_f32(magnitude) + 0.5f) - 0x3f000000u;
  uint32_t half = choose(magnitude < 0x38800000u, subnormal, normal);
  half = choose(magnitude >= 0x47800000u, 0x7c00u, half);
  half = choose(magnitude > 0x7f800000u, 0x7e00u, half);
  return {static_cast<uint16_t>((bits >> 16 & 0x8000u) | half)};
}
float decode(Bf16 value) { return bf16_to_f32(value.bits); }
float decode(float value) { return value; }
double decode(double value) { return value; }

// f64 → f32 rounded to odd: a second rounding to 16 bits is then the same as rounding once.
float narrow_to_odd(double value) {
  const float nearest = static_cast<float>(value);
  if (std::isnan(value) || static_cast<double>(nearest) == value) return nearest;
  uint32_t bits = f32_bits(nearest);
  if (std::fabs(static_cast<double>(nearest)) > std::fabs(value)) --bits;
  return bits_f32(bits | 1u);
}
float narrow_to_odd(float value) { return value; }

template <typename To, typename From>
To encode(From value) {
  if constexpr (std::is_same_v<To, F16>)
    return encode_f16(narrow_to_odd(value));
  else if constexpr (std::is_same_v<To, Bf16>)
    return {f32_to_bf16(narrow_to_odd(value))};
  else
    return static_cast<To>(value);
}

template <typename From, typename To>
void convert_floats(const void* source, void* target, int64_t n) {
  const auto* in = static_cast<const From*>(source);
  auto* out = static_cast<To*>(target);
  for (int64_t i = 0; i < n; ++i) out[i] = encode<To>(decode(in[i]));
}

template <typename From>
void convert_floats_to(const void* source, FileType to, void* target, int64_t n) {
  if (to == FileType::f16)
    convert_floats<From, F16>(source, target, n);
  else if (to == FileType::bf16)
    convert_floats<From, Bf16>(source, target, n);
  else if (to == FileType::f32)
    convert_floats<From, float>(source, target, n);
  else
    convert_floats<From, double>(source, target, n);
}

template <typename From, typename To>
int64_t convert_wholes(const void* source, void* target, int64_t n) {
  const auto* in = static_cast<const From*>(source);
  auto* out = static_cast<To*>(target);
  for (int64_t i = 0; i < n; ++i) {
    if (!std::in_range<To>(in[i])) return i;
    out[i] = static_cast<To>(in[i]);
  }
  return -1;
}

template <typename From>
int64_t convert_wholes_to(const void* source, FileType to, void* target, int64_t n) {
  switch (to) {
    case FileType::u8:
      return convert_wholes<From, uint8_t>(source, target, n);
    case FileType::i8:
      return convert_wholes<From, int8_t>(source, target, n);
    case FileType::i16:
      return convert_wholes<From, int16_t>(source, target, n);
    case FileType::i32:
      return convert_wholes<From, int32_t>(source, target, n);
    default:
      return convert_wholes<From, int64_t>(source, target, n);
  }
}

bool finite_at(FileType type, const void* data, int64_t i) {
  const auto* bytes = static_cast<const uint8_t*>(data) + i * file_type_bytes(type);
  return first_non_finite(type, bytes, 1) < 0;
}

}  // namespace

FileType file_type_of(DType dtype) {
  switch (dtype) {
    case DType::f32:
      return FileType::f32;
    case DType::bf16:
      return FileType::bf16;
    case DType::f16:
      return FileType::f16;
    case DType::i32:
      return FileType::i32;
    case DType::u8:
      return FileType::u8;
    case DType::nvfp4:
      break;
  }
  throw Error("Q4227", "an nvfp4 tensor is stored in files by its parts");
}

bool can_convert(FileType from, FileType to) {
  if (from == to) return true;
  if (is_float(from) && is_float(to)) return true;
  const int from_rank = whole_rank(from), to_rank = whole_rank(to);
  if (from_rank < 0 || to_rank < 1) return false;
  return from_rank < to_rank || (from == FileType::i64 && to == FileType::i32);
}

int64_t convert_elements(FileType from, const void* source, FileType to, void* target, int64_t n) {
  if (!can_convert(from, to))
    throw Error("Q4227", std::string("no conversion from ") + file_type_name(from) + " to " + file_type_name(to));
  if (from == to) {
    if (n > 0) std::memcpy(target, source, static_cast<size_t>(n * file_type_bytes(from)));
    return -1;
  }
  switch (from) {
    case FileType::boolean:
    case FileType::u8:
      return convert_wholes_to<uint8_t>(source, to, target, n);
    case FileType::i8:
      return convert_wholes_to<int8_t>(source, to, target, n);
    case FileType::i16:
      return convert_wholes_to<int16_t>(source, to, target, n);
    case FileType::i32:
      return convert_wholes_to<int32_t>(source, to, target, n);
    case FileType::i64:
      return convert_wholes_to<int64_t>(source, to, target, n);
    case FileType::f16:
      convert_floats_to<F16>(source, to, target, n);
      break;
    case FileType::bf16:
      convert_floats_to<Bf16>(source, to, target, n);
      break;
    case FileType::f32:
      convert_floats_to<float>(source, to, target, n);
      break;
    default:
      convert_floats_to<double>(source, to, target, n);
      break;
  }
  // A value that is special now but was finite before overflowed.
  const auto* out = static_cast<const uint8_t*>(target);
  for (int64_t i = 0; i < n; ++i) {
    const int64_t next = first_non_finite(to, out + i * file_type_bytes(to), n - i);
    if (next < 0) return -1;
    i += next;
    if (finite_at(from, source, i)) return i;
  }
  return -1;
}

int64_t first_non_finite(FileType type, const void* data, int64_t n) {
  switch (type) {
    case FileType::f16:
      return first_special<uint16_t, 0x7c00>(data, n);
    case FileType::bf16:
      return first_special<uint16_t, 0x7f80>(data, n);
    case FileType::f32:
      return first_special<uint32_t, 0x7f800000>(data, n);
    case FileType::f64:
      return first_special<uint64_t, 0x7ff0000000000000>(data, n);
    default:
      return -1;
  }
}

int64_t first_bad_scale(const uint8_t* scales, int64_t n, int64_t& floor) {
  for (int64_t begin = 0; begin < n; begin += kChunk) {
    const int64_t end = std::min(n, begin + kChunk);
    uint8_t largest = 0;
    int32_t at_floor = 0;
    for (int64_t i = begin; i < end; ++i) {
      largest = std::max(largest, scales[i]);
      at_floor += scales[i] == kFloorScale;
    }
    floor += at_floor;
    if (largest <= kE4m3MaxBits) continue;
    for (int64_t i = begin; i < end; ++i)
      if (scales[i] > kE4m3MaxBits) return i;
  }
  return -1;
}

}  // namespace q4
