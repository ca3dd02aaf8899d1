// Loops over whole tensors: sums, SwiGLU, conversions.
#pragma once
#include "cpu/simd/exp.h"
#include "cpu/simd/load.h"
#include "cpu/simd/rows.h"

namespace q4::simd {

template <typename V>
void add(const float* a, const float* b, int64_t n, float* y) {
  each<V>(n, [&](int64_t i, int64_t lanes) {
    write<V>(y + i, V::add(read<V>(a + i, lanes), read<V>(b + i, lanes)), lanes);
  });
}

template <typename V>
typename V::F sigmoid(typename V::F x) {
  const typename V::F one = V::set(1.0f);
  return V::div(one, V::add(one, exp<V>(V::sub(V::zero(), x))));
}

template <typename V>
void swiglu(const float* gate, const float* up, int64_t n, float* y) {
  using F = typename V::F;
  each<V>(n, [&](int64_t i, int64_t lanes) {
    const F g = read<V>(gate + i, lanes);
    write<V>(y + i, V::mul(V::mul(g, sigmoid<V>(g)), read<V>(up + i, lanes)), lanes);
  });
}

template <typename V>
void swiglu_backward(const float* dy, const float* gate, const float* up, int64_t n, float* dgate, float* dup) {
  using F = typename V::F;
  const F one = V::set(1.0f);
  each<V>(n, [&](int64_t i, int64_t lanes) {
    const F d = read<V>(dy + i, lanes), g = read<V>(gate + i, lanes), u = read<V>(up + i, lanes), s = sigmoid<V>(g);
    write<V>(dup + i, V::mul(V::mul(d, g), s), lanes);
    const F slope = V::mul(s, V::fma(g, V::sub(one, s), one));
    write<V>(dgate + i, V::mul(V::mul(d, u), slope), lanes);
  });
}

template <typename V>
void convert(DType from, const void* x, DType to, void* y, int64_t n) {
  with_dtype(from, [&]<DType source>() {
    with_dtype(to, [&]<DType target>() {
      each<V>(n, [&](int64_t i, int64_t lanes) { store_as<V, target>(y, i, load_as<V, source>(x, i, lanes), lanes); });
    });
  });
}

}  // namespace q4::simd
