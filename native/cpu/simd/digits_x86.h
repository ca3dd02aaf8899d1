// Scatters the sixteen digits of a block to the four places where gemv_nvfp4.h meets them.
#pragma once
#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace q4 {

// Tagged with the vector type, so that each instruction set compiles its own.
template <typename V>
void store_digit_words(__m128i bytes, char* to, int64_t stride) {
  const __m128i order = _mm_setr_epi8(0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15);
  const __m128i words = _mm_shuffle_epi8(bytes, order);
  const int word[4] = {_mm_cvtsi128_si32(words), _mm_extract_epi32(words, 1), _mm_extract_epi32(words, 2),
                       _mm_extract_epi32(words, 3)};
  for (int part = 0; part < 4; ++part) std::memcpy(to + part * stride, &word[part], 4);
}

}  // namespace q4
