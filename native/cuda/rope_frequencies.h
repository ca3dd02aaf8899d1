// RoPE's frequencies as kernels take them, by value.
#pragma once
#include <cmath>
#include <cstdint>

#include "core/error.h"

namespace q4::gpu {

constexpr int kMaxHalf = 128;  // pairs of a head

// 1 / theta^(2i/D), rounded as Hugging Face rounds it (the same numbers as on the CPU).
struct Frequencies {
  float value[kMaxHalf];
};

inline Frequencies frequencies(int64_t head_dim, double theta) {
  if (head_dim > 2 * kMaxHalf) throw Error("Q4510", "the CUDA backend takes heads of up to 256 elements");
  Frequencies f{};
  for (int64_t i = 0; i < head_dim / 2; ++i) {
    const float exponent = static_cast<float>(2 * i) / static_cast<float>(head_dim);
    f.value[i] = 1.0f / static_cast<float>(std::pow(theta, double{exponent}));
  }
  return f;
}

}  // namespace q4::gpu
