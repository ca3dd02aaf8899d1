// RoPE angles in fp32, as Hugging Face computes them: 1 / theta^(2i/D) rounded, times the position, rounded.
#pragma once
#include <cmath>
#include <cstdint>
#include <vector>

namespace q4 {

struct RopeAngle {
  float cos, sin;
};

inline std::vector<float> rope_frequencies(int64_t head_dim, double theta) {
  std::vector<float> frequency(static_cast<size_t>(head_dim / 2));
  for (int64_t i = 0; i < head_dim / 2; ++i) {
    const float exponent = static_cast<float>(2 * i) / static_cast<float>(head_dim);
    frequency[static_cast<size_t>(i)] = 1.0f / static_cast<float>(std::pow(theta, double{exponent}));
  }
  return frequency;
}

inline RopeAngle rope_angle(int32_t position, float frequency) {
  const double angle = static_cast<float>(position) * frequency;
  return {static_cast<float>(std::cos(angle)), static_cast<float>(std::sin(angle))};
}

}  // namespace q4
