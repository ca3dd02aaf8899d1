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

// Cosines and sines of every position met so far, kept: models ask for the same ones in each layer and step.
class RopeTable {
 public:
  // Makes sure of all positions; call before rows are read.
  void prepare(const int32_t* positions, int64_t count, int64_t head_dim, double theta) {
    if (head_dim != head_dim_ || theta != theta_) {
      head_dim_ = head_dim, theta_ = theta;
      frequency_ = rope_frequencies(head_dim, theta);
      low_.clear(), high_.clear();
    }
    int64_t least = 0, most = -1;
    for (int64_t i = 0; i < count; ++i) {
      least = positions[i] < least ? positions[i] : least;
      most = positions[i] > most ? positions[i] : most;
    }
    // Positions below 0 count up downwards in a table of their own.
    extend(high_, most + 1, 1);
    extend(low_, -least, -1);
  }
  // D/2 cosines, then D/2 sines.
  const float* row(int32_t position) const {
    return position >= 0 ? high_.data() + int64_t{position} * head_dim_
                         : low_.data() + (-1 - int64_t{position}) * head_dim_;
  }

 private:
  void extend(std::vector<float>& table, int64_t rows, int32_t direction) {
    const int64_t half = head_dim_ / 2;
    for (int64_t n = static_cast<int64_t>(table.size()) / head_dim_; n < rows; ++n) {
      table.resize(static_cast<size_t>((n + 1) * head_dim_));
      for (int64_t i = 0; i < half; ++i) {
        const auto position = static_cast<int32_t>(direction > 0 ? n : -1 - n);
        const RopeAngle angle = rope_angle(position, frequency_[static_cast<size_t>(i)]);
        table[static_cast<size_t>(n * head_dim_ + i)] = angle.cos;
        table[static_cast<size_t>(n * head_dim_ + half + i)] = angle.sin;
      }
    }
  }

  int64_t head_dim_ = 1;
  double theta_ = 0;
  std::vector<float> frequency_, low_, high_;
};

}  // namespace q4
