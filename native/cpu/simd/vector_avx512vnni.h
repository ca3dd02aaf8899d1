// AVX-512 with the byte dot product in one instruction. Included only by *_avx512vnni.cpp files.
#pragma once
#include "cpu/simd/vector_avx512.h"

namespace q4 {

struct Avx512Vnni : Avx512 {
  static I dot_bytes(const I* codes, const int8_t* digits) {
    I sum = _mm512_dpbusd_epi32(_mm512_setzero_si512(), codes[0], load_int(digits));
    for (int i = 1; i < 4; ++i) sum = _mm512_dpbusd_epi32(sum, codes[i], load_int(digits + 64 * i));
    return sum;
  }
};

}  // namespace q4
