// The warp that finishes outputs, of few rows: from the sums that the others leave to what the next phase takes. Everybody
// waits for that, so it is kept short: what does not depend on the sums is found before they are there, and what is done
// with them is compiled for each case.
#pragma once
#include "cuda/decode_finish.cuh"

namespace q4::gpu::decode {

// What is made of a product's outputs: a sum with what is kept, silu(gate)·up, or neither.
enum class Made { sum, activated, same };
__device__ inline Made made_of(const DecodeProduct& product, bool last) {
  return product.paired ? Made::activated : product.adds && !last ? Made::sum : Made::same;
}

// Where outputs are fewer than lanes, several lanes have the same ones: each adds some of the parts, and then they add up
// what they have. Lanes `apart` from each other, of which this is number `number`, of `count`.
struct Helpers {
  int number, count, apart;
  __device__ Helpers(int lane, int quads) {
    apart = quads <= 8 ? 8 : quads <= 16 ? 16 : 32;
    number = lane / apart, count = 32 / apart;
  }
  __device__ void add_up(float (&v)[kQuad]) const {
#pragma unroll
    for (int offset = 16; offset >= 8; offset /= 2) {
      if (offset < apart) break;
      float theirs[kQuad];
#pragma unroll
      for (int j = 0; j < kQuad; ++j) theirs[j] = __shfl_xor_sync(0xffffffffu, v[j], offset);
#pragma unroll
      for (int j = 0; j < kQuad; ++j) v[j] += theirs[j];
    }
  }
};

// This lane's share of `parts` sums of a quad, step floats apart.
template <int kAtOnce>
__device__ inline void add_share(float (&v)[kQuad], const float* from, int parts, int step, const Helpers& helpers) {
#pragma unroll
  for (int j = 0; j < kQuad; ++j) v[j] = 0;
#pragma unroll 1
  for (int first = helpers.number; first < parts; first += kAtOnce * helpers.count) {
    float4 a[kAtOnce];
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k)
      if (first + k * helpers.count < parts)
        a[k] = *reinterpret_cast<const float4*>(from + (first + k * helpers.count) * step);
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k)
      if (first + k * helpers.count < parts) v[0] += a[k].x, v[1] += a[k].y, v[2] += a[k].z, v[3] += a[k].w;
  }
}

// A product's rounds. sums: of two rounds, so many floats each. staged(): meets the others once x is staged, and returns what
// scale_of_product says. announce(): says that the last results are about to be handed on; said earlier, others would ask
// for them too often, and later, not in time.
template <typename Rows, Made kMade, typename Staged, typename Announce>
__device__ inline void finish_rounds(const DecodePhase& phase, const Share& share, int done, int rows,
                                     const float* sums, const Finish& f, Staged&& staged, Announce&& announce) {
  constexpr bool kPair = kMade == Made::activated;
  constexpr int step = Rows::kSumFloats;
  const DecodeProduct& product = phase.product;
  const int lane = threadIdx.x % 32, rounds = share.rounds;
  float scale = 1;
#pragma unroll 1
  for (int round = 0, first = 0; round < rounds;) {
    const int items = share.template items<typename Rows::Tiles>(round), quads = quads_of<Rows>(share, items),
              buffer = round % 2;
    const Helpers helpers(lane, quads);
    const int i = first + lane % helpers.apart;
    const Outputs o = outputs_of<Rows>(product, share, items, done, rows, round, i, f.globals);
    const int row = row_of<Rows>(i), output = output_of(o, share, row, i);
    // For a sum: the next norm's weights, and where x before it is among what is kept.
    float4 weight{};
    if (kMade == Made::sum && o.inside()) weight = *reinterpret_cast<const float4*>(f.next->norm.weight + output);
    const int kept = round * share.template round_items<typename Rows::Tiles>() * rows * kElements + i * kQuad;
    if (round == 0 && first == 0) scale = staged();
    const bool inside = o.inside() && helpers.number == 0;
    const float* const from = sums + buffer * (kRoundSums<typename Rows::Tiles> * step) + o.from();
    const float factor = o.factor * scale, other_factor = o.other_factor * scale;
    uint2 before{};
    if (kMade == Made::sum) before = quad(f.kept + (o.inside() ? kept : 0));
    if (first == 0) meet<kLeftBarrier>(buffer);

    float v[kQuad], other[kQuad], result[kQuad];
    // As many at a time as there are registers for.
    constexpr int kAtOnce = Rows::kExactly == 1 ? (kPair ? 2 : 4) : kMade == Made::sum ? 1 : 2;
    add_share<kAtOnce>(v, from, o.parts(), step, helpers);
    if (kPair) add_share<2>(other, from + Rows::to_up(o.from(), product.swapped), o.parts(), step, helpers);
    if (first == 0 && round + 1 == rounds) announce();
    helpers.add_up(v);
    if (kPair) helpers.add_up(other);
#pragma unroll
    for (int j = 0; j < kQuad; ++j) {
      v[j] *= factor;
      if (kPair) other[j] *= other_factor;
    }
    if constexpr (kMade == Made::sum) {
      float x[kQuad];
      unpack4(x, before), unpack4(v, pack4(v));
#pragma unroll
      for (int j = 0; j < kQuad; ++j) x[j] += v[j];
      const uint2 sum = pack4(x);
      unpack4(x, sum);
      const float y[kQuad] = {x[0] * weight.x, x[1] * weight.y, x[2] * weight.z, x[3] * weight.w};
      Rows::post(f.to, o.group, y, squares_of_group(x), inside);
      if (inside) {
        quad(f.kept + kept) = sum;
        if (bf16* const place = f.next->norm.sum) quad(place + row * f.next->norm.width + output) = sum;
      }
    } else if constexpr (kMade == Made::activated) {
      activate(result, v, other);
      if (product.hands_on == HandsOn::rows) Rows::post(f.to, o.group, result, inside);
    } else if (product.hands_on == HandsOn::halves) {
      post_halves<true>(f.to, o.group, v, inside);
    } else if (product.hands_on == HandsOn::rows) {
      unpack4(v, pack4(v));
      Rows::post(f.to, o.group, v, inside);
    }
    if (product.leaves && inside) leave_results(product, o.matrix(), row, output, v, other, result);
    first += 32;
    if (first < quads) continue;
    if (round + 2 < rounds) tell<kReadBarrier>(buffer);
    first = 0, ++round;
  }
}

}  // namespace q4::gpu::decode
