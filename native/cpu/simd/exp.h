// exp in lanes, to about one unit in the last place over the whole range; NaN stays NaN, −∞ gives 0, overflow ∞.
#pragma once

namespace q4::simd {

// Range reduction by ln 2 in two parts, then a polynomial on [−ln2/2, ln2/2] (Cephes expf's coefficients).
template <typename V>
typename V::F exp(typename V::F x) {
  using F = typename V::F;
  using I = typename V::I;
  // The bound stands first, so that a NaN in x comes through.
  x = V::min(V::set(89.0f), V::max(V::set(-105.0f), x));
  const I n = V::round_to_int(V::mul(x, V::set(1.44269504088896341f)));
  const F whole = V::to_float(n);
  F r = V::fnma(whole, V::set(0.693359375f), x);
  r = V::fnma(whole, V::set(-2.12194440e-4f), r);
  F p = V::set(1.9875691500e-4f);
  p = V::fma(p, r, V::set(1.3981999507e-3f));
  p = V::fma(p, r, V::set(8.3334519073e-3f));
  p = V::fma(p, r, V::set(4.1665795894e-2f));
  p = V::fma(p, r, V::set(1.6666665459e-1f));
  p = V::fma(p, r, V::set(5.0000001201e-1f));
  p = V::add(V::fma(p, V::mul(r, r), r), V::set(1.0f));
  // 2^n in two steps: n reaches below the exponents of normal numbers.
  const I half = V::template right_signed<1>(n), rest = V::sub_int(n, half);
  const F low = V::from_bits(V::template left<23>(V::add_int(half, V::set_int(127))));
  const F high = V::from_bits(V::template left<23>(V::add_int(rest, V::set_int(127))));
  return V::mul(V::mul(p, low), high);
}

}  // namespace q4::simd
