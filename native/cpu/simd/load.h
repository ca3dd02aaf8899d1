// Loads and stores of f32, bf16 and f16 as fp32 lanes.
#pragma once
#include <cstdint>

#include "core/dtype.h"

namespace q4::simd {

// Lanes [0, n) from element `at` of x; the rest are 0. n = width is the fast case.
template <typename V, DType dtype>
typename V::F load_as(const void* x, int64_t at, int64_t n) {
  if constexpr (dtype == DType::f32) {
    const float* p = static_cast<const float*>(x) + at;
    return n >= V::width ? V::load(p) : V::load_n(p, n);
  } else if constexpr (dtype == DType::bf16) {
    const uint16_t* p = static_cast<const uint16_t*>(x) + at;
    return n >= V::width ? V::load_bf16(p) : V::load_bf16_n(p, n);
  } else {
    const uint16_t* p = static_cast<const uint16_t*>(x) + at;
    return n >= V::width ? V::load_f16(p) : V::load_f16_n(p, n);
  }
}

// bf16 bits, rounded to nearest even, NaN kept quiet (core/half.h).
template <typename V>
typename V::I bf16_bits(typename V::F x) {
  const typename V::I bits = V::bits(x);
  const typename V::I odd = V::and_int(V::template right<16>(bits), V::set_int(1));
  const typename V::I rounded = V::template right<16>(V::add_int(V::add_int(bits, V::set_int(0x7fff)), odd));
  return V::select_int(V::unordered(x), V::or_int(V::template right<16>(bits), V::set_int(0x40)), rounded);
}

template <typename V, DType dtype>
void store_as(void* y, int64_t at, typename V::F x, int64_t n) {
  const int64_t count = n < V::width ? n : V::width;
  if constexpr (dtype == DType::f32) {
    float* p = static_cast<float*>(y) + at;
    if (n >= V::width)
      V::store(p, x);
    else
      V::store_n(p, x, count);
  } else if constexpr (dtype == DType::bf16) {
    V::store_u16_n(static_cast<uint16_t*>(y) + at, bf16_bits<V>(x), count);
  } else {
    V::store_u16_n(static_cast<uint16_t*>(y) + at, V::f16_bits(x), count);
  }
}

// Calls body.template operator()<dtype>() for a run-time f32, bf16 or f16.
template <typename Body>
auto with_dtype(DType dtype, Body&& body) {
  if (dtype == DType::bf16) return body.template operator()<DType::bf16>();
  if (dtype == DType::f16) return body.template operator()<DType::f16>();
  return body.template operator()<DType::f32>();
}

}  // namespace q4::simd
