// Philox4x32-10: a counter-based generator, the same bits on every device and for any number of threads.
// Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
#pragma once
#include <cmath>
#include <cstdint>

#include "core/half.h"

namespace q4 {

constexpr uint32_t kPhiloxMultiplier0 = 0xd2511f53u, kPhiloxMultiplier1 = 0xcd9e8d57u;
constexpr uint32_t kPhiloxWeyl0 = 0x9e3779b9u, kPhiloxWeyl1 = 0xbb67ae85u;
constexpr int kPhiloxRounds = 10;

struct Philox4 {
  uint32_t word[4];
};

Q4_HOST_DEVICE inline Philox4 philox4x32(uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3, uint32_t key0,
                                         uint32_t key1) {
  for (int round = 0; round < kPhiloxRounds; ++round) {
    const uint64_t p0 = uint64_t{kPhiloxMultiplier0} * c0, p1 = uint64_t{kPhiloxMultiplier1} * c2;
    c0 = static_cast<uint32_t>(p1 >> 32) ^ c1 ^ key0;
    c2 = static_cast<uint32_t>(p0 >> 32) ^ c3 ^ key1;
    c1 = static_cast<uint32_t>(p1);
    c3 = static_cast<uint32_t>(p0);
    key0 += kPhiloxWeyl0;
    key1 += kPhiloxWeyl1;
  }
  return {{c0, c1, c2, c3}};
}

// What a draw is for; keeps the counters of different uses apart.
enum class Draw : uint32_t { rounding = 1, normal = 2, sampling = 3 };

// Four consecutive elements share one call: element e takes word e % 4 of the counter e / 4.
// counter = { group lo, group hi (24 bits) | use << 24, stream, step }, key = { seed lo, seed hi }.
Q4_HOST_DEVICE inline Philox4 philox_group(uint32_t seed_lo, uint32_t seed_hi, Draw use, uint32_t stream, uint32_t step,
                                           uint64_t group) {
  const uint32_t high = (static_cast<uint32_t>(group >> 32) & 0xffffffu) | static_cast<uint32_t>(use) << 24;
  return philox4x32(static_cast<uint32_t>(group), high, stream, step, seed_lo, seed_hi);
}

// [0, 1) in steps of 2^-24.
Q4_HOST_DEVICE inline float philox_uniform(uint32_t word) { return static_cast<float>(word >> 8) * 0x1p-24f; }

// Two standard normals from two words (Box–Muller, in double so that devices agree after rounding to fp32).
Q4_HOST_DEVICE inline void philox_normal(uint32_t a, uint32_t b, float& n0, float& n1) {
  const double u = (static_cast<double>(a) + 1.0) * 0x1p-32;  // (0, 1]
  const double angle = static_cast<double>(b) * (0x1p-32 * 6.283185307179586477);
  const double radius = std::sqrt(-2.0 * std::log(u));
  n0 = static_cast<float>(radius * std::cos(angle));
  n1 = static_cast<float>(radius * std::sin(angle));
}

// bf16 of value, rounded up with the probability of what is cut off; `word`'s low 16 bits decide.
Q4_HOST_DEVICE inline uint16_t f32_to_bf16_stochastic(float value, uint32_t word) {
  const uint32_t bits = f32_bits(value);
  if ((bits & 0x7f800000u) == 0x7f800000u) return f32_to_bf16(value);  // infinities and NaN as they are
  return static_cast<uint16_t>((bits + (word & 0xffffu)) >> 16);
}

// The sampler's uniform for draw `counter` of row `row`.
Q4_HOST_DEVICE inline float philox_sampling_uniform(uint32_t seed_lo, uint32_t seed_hi, uint32_t row,
                                                    uint32_t counter) {
  return philox_uniform(philox_group(seed_lo, seed_hi, Draw::sampling, row, counter, 0).word[0]);
}

}  // namespace q4
