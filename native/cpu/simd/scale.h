// E4M3 block scales in lanes.
#pragma once
#include <cstdint>

namespace q4::simd {

// One E4M3 byte a lane (upper bits 0) → fp32. Exponents differ by 120, so a shift and a product decode, subnormals too.
template <typename V>
typename V::F e4m3(typename V::I bytes) {
  const typename V::I magnitude = V::and_int(bytes, V::set_int(0x7f));
  const typename V::F value = V::mul(V::from_bits(V::template left<20>(magnitude)), V::set(0x1p120f));
  const typename V::F signless =
      V::select(V::equal_int(magnitude, V::set_int(0x7f)), V::from_bits(V::set_int(0x7fc00000)), value);
  return V::from_bits(V::or_int(V::bits(signless), V::template left<31>(V::template right<7>(bytes))));
}

}  // namespace q4::simd
