// What sampling alone (sample.cu) and a decode chain's greedy choice share: a row's logits, their order (which the chain's
// attention takes for its scores too), and the best of some.
#pragma once
#include "cuda/device.cuh"

namespace q4::gpu::sampling {

// Larger logits have smaller keys: ascending keys are the order of falling logits. −0 and +0 are one value, NaN is −∞.
__device__ inline uint32_t key_of(float x) {
  if (x != x) x = -INFINITY;
  const uint32_t bits = __float_as_uint(x + 0.0f);
  return ~(bits & 0x80000000u ? ~bits : bits | 0x80000000u);
}
__device__ inline float logit_of(uint32_t key) { return __uint_as_float(key & 0x80000000u ? key : ~key & 0x7fffffffu); }

struct Best {
  uint32_t key;
  int id;
};
__device__ inline Best better(Best a, Best b) { return a.key < b.key || (a.key == b.key && a.id < b.id) ? a : b; }
__device__ inline Best no_best(int vocabulary) { return {0xffffffffu, vocabulary}; }
__device__ inline Best better_of_lanes(Best mine, int offset) {
  return better(mine,
                Best{__shfl_xor_sync(0xffffffffu, mine.key, offset), __shfl_xor_sync(0xffffffffu, mine.id, offset)});
}
__device__ inline Best warp_best(Best mine) {
#pragma unroll
  for (int offset = 16; offset; offset /= 2) mine = better_of_lanes(mine, offset);
  return mine;
}

// x / y, correctly rounded, by products: a division proper has a subroutine, for which the registers of a whole kernel are
// dealt out otherwise. (Exact, as a quotient of floats is further from the middle of two floats than the error of r.)
__device__ inline float quotient(float x, float y) {
  const double d = y;
  double r;
  asm("rcp.approx.ftz.f64 %0, %1;" : "=d"(r) : "d"(d));
#pragma unroll
  for (int i = 0; i < 2; ++i) r = fma(fma(-d, r, 1.0), r, r);
  return static_cast<float>(x * r);
}

// The logits of row b. They are read in the second-level cache, as they may have been written in the same kernel.
struct Logits {
  const float* from;
  const uint8_t* seen;
  float penalty;

  // sampling: eight numbers a row (core/backend.h).
  __device__ Logits(const float* logits, const float* sampling, const uint8_t* all_seen, int b, int vocabulary)
      : from(logits + int64_t{b} * vocabulary),
        seen(all_seen + int64_t{b} * vocabulary),
        penalty(sampling[b * 8 + 4]) {}
  // With the repetition penalty; NaN as −∞.
  __device__ float penalised(float x, int token) const {
    if (penalty != 1 && seen[token]) x = x > 0 ? quotient(x, penalty) : x * penalty;
    return x == x ? x : -INFINITY;
  }
  // Whether four at a time can be read, and are taken as they stand.
  __device__ bool in_quads() const { return reinterpret_cast<uintptr_t>(from) % 16 == 0; }
  __device__ bool plain() const { return penalty == 1 && in_quads(); }
  __device__ float operator[](int token) const { return penalised(__ldcg(from + token), token); }
};

}  // namespace q4::gpu::sampling
