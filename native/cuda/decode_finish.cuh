// The end of a decode chain's product: from the sums that its warps leave in shared memory to results, and to what the next
// phase takes.
#pragma once
#include <algorithm>

#include "cuda/decode_norm.cuh"

namespace q4::gpu::decode {

// How many rows there are, known to the compiler where it can be.
template <typename Rows>
__device__ inline int rows_of(int rows) {
  return Rows::kExactly ? Rows::kExactly : rows;
}

// What the end of a product needs beside its sums.
struct Finish {
  const float* globals;
  bf16* kept;
  Exchange to;
  const DecodePhase* next;  // null after the last phase
};

// Rows as threads are dealt out to outputs: a power of two.
template <typename Rows>
constexpr int kRowsOfGroup = Rows::kExactly > 0 ? Rows::kExactly : Rows::kMostRows;
// Of a round, quads of outputs at most.
template <typename Rows>
constexpr int kMostQuads =
    std::max(Rows::Tiles::kRoundItems / 2, Rows::Tiles::kSingleItems) * kRowsOfGroup<Rows> * (kElements / kQuad);

// Four neighbouring outputs of a row, of which nothing but the sums is missing.
struct Outputs {
  uint32_t sums;               // where the first of their parts is; how many parts << 16, of which matrix << 24
  int group;                   // of what is handed on; negative: there are no outputs here
  float factor, other_factor;  // but for that of x; of a pair, gate's and up's

  __device__ bool inside() const { return group >= 0; }
  __device__ int from() const { return static_cast<int>(sums & 0xffff); }
  __device__ int parts() const { return static_cast<int>(sums >> 16 & 255); }
  __device__ int matrix() const { return static_cast<int>(sums >> 24); }
  // globals: of the product's matrices.
  __device__ void find_factors(const DecodeProduct& product, int pair, const float* globals) {
    const int gate = product.swapped;
    factor = globals[pair ? gate : matrix()], other_factor = pair ? globals[1 - gate] : 0.0f;
  }
};
// The factor of x that makes up a norm.
template <typename Rows>
__device__ inline float scale_of_product(const DecodePhase& phase, const float* squares, int row) {
  return Rows::kEpilogue * (phase.norm.weight ? scale_of<Rows>(phase.norm, squares, row) : 1.0f);
}
// The row of the i-th quad of a round.
template <typename Rows>
__device__ inline int row_of(uint32_t i) {
  return static_cast<int>(i / 4 % kRowsOfGroup<Rows>);
}
// Of the i-th quad of a round that has so many items. done: where the list of all items is in shared memory.
template <typename Rows>
__device__ inline Outputs outputs_of(const DecodeProduct& product, const Share& share, int items, int done, int rows,
                                     int round, uint32_t i, const float* globals) {
  using Tiles = typename Rows::Tiles;
  static_assert(Tiles::kGroup == kElements && Tiles::kTeam == 2);
  static_assert(kRoundSums<Tiles> * Rows::kSumFloats < 1 << 16 && kMostParts<Tiles> < 256);
  const int pair = share.pair, q = static_cast<int>(i % 4), row = row_of<Rows>(i),
            unit = static_cast<int>(i / 4 / kRowsOfGroup<Rows>), which = pair ? unit * 2 + q / 2 : unit;
  if (which >= items || row >= rows) return {2 << 16, -1, 0, 0};  // as many parts as others have at least
  const Done item = (&place<Done>(done))[share.done + round * share.template round_items<Tiles>() + which];
  // Of a pair, gate's, whichever matrix that is.
  const int in_group = pair ? product.swapped * (kElements / 2) + (q & 1) * kQuad : q * kQuad,
            from = item.first * Rows::kSumFloats + Rows::sum_place(row, in_group);
  Outputs o{static_cast<uint32_t>(from) | uint32_t{item.parts} << 16 | uint32_t{item.matrix} << 24,
            share.first_group + row * share.row_groups + item.group, 0, 0};
  o.find_factors(product, pair, globals);
  return o;
}
// The first of the four outputs, among those of all matrices.
__device__ inline int output_of(const Outputs& o, const Share& share, int row, uint32_t i) {
  return (o.group - share.first_group - row * share.row_groups) * kElements + static_cast<int>(i % 4) * kQuad;
}

template <typename T>
__device__ inline void store(void* y, int at, const float (&v)[kQuad], int count) {
  if (count == kQuad && reinterpret_cast<uintptr_t>(static_cast<T*>(y) + at) % (kQuad * sizeof(T)) == 0) {
    if constexpr (sizeof(T) == 4)
      *reinterpret_cast<float4*>(static_cast<T*>(y) + at) = make_float4(v[0], v[1], v[2], v[3]);
    else
      quad(static_cast<T*>(y) + at) = pack4(v);
    return;
  }
#pragma unroll
  for (int j = 0; j < kQuad; ++j)
    if (j < count) static_cast<T*>(y)[at + j] = from_f32<T>(v[j]);
}

// What the warps left of a quad, an even number of parts, added in their order; of a pair, those of up too. Two at a time, so
// that not each waits for the one before.
template <typename Rows, bool kPair>
__device__ inline void add_parts(float (&v)[kQuad], float (&other)[kQuad], const float* from, int to_up, int parts) {
  const auto part = [&](int k, bool of_up) {
    return *reinterpret_cast<const float4*>(from + k * Rows::kSumFloats + (of_up ? to_up : 0));
  };
  const auto add = [](float(&to)[kQuad], const float4& a) { to[0] += a.x, to[1] += a.y, to[2] += a.z, to[3] += a.w; };
  const auto start = [](float(&to)[kQuad], const float4& a) { to[0] = a.x, to[1] = a.y, to[2] = a.z, to[3] = a.w; };
  start(v, part(0, false)), add(v, part(1, false));
  if (kPair) start(other, part(0, true)), add(other, part(1, true));
#pragma unroll 1
  for (int k = 2; k < parts; k += 2) {
    add(v, part(k, false)), add(v, part(k + 1, false));
    if (kPair) add(other, part(k, true)), add(other, part(k + 1, true));
  }
}

// What the product as an op would leave.
__device__ inline void leave_results(const DecodeProduct& product, int matrix, int row, int output_of_all,
                                     const float (&v)[kQuad], const float (&other)[kQuad],
                                     const float (&activated)[kQuad]) {
  const DecodeMatrix& m = product.matrix[matrix];
  const int output = output_of_all - m.first_group * kElements, count = min(kQuad, m.outputs - output),
            at = row * m.outputs + output;
  if (product.paired) {
    void *const gate = product.matrix[product.swapped].y, *const up = product.matrix[!product.swapped].y;
    if (gate) store<bf16>(gate, at, v, count);
    if (up) store<bf16>(up, at, other, count);
    if (product.activated) store<bf16>(product.activated, at, activated, count);
  } else if (m.y) {
    if (product.wide_output)
      store<float>(m.y, at, v, count);
    else
      store<bf16>(m.y, at, v, count);
  }
}

// silu(gate)·up as the separate ops: gate and up are rounded before they meet, and come back so.
__device__ inline void activate(float (&activated)[kQuad], float (&gate)[kQuad], float (&up)[kQuad]) {
  unpack4(gate, pack4(gate)), unpack4(up, pack4(up));
#pragma unroll
  for (int j = 0; j < kQuad; ++j) activated[j] = gate[j] * reciprocal(1.0f + exp2_fast(-kLog2e * gate[j])) * up[j];
  unpack4(activated, pack4(activated));
}

// Of more rows: four outputs from the sums of their warps, four neighbouring lanes a group, whole warps: first what the next
// phase waits for, then results. scale: what scale_of_product says; thread: which of the round's quads.
template <typename Rows, bool kPair>
__device__ inline void finish(const DecodeProduct& product, const Share& share, const float* sums, const Outputs& o,
                              float scale, uint32_t thread, const Exchange& to) {
  float v[kQuad], other[kQuad], activated[kQuad];  // of a pair: gate, up, and what comes of them
  add_parts<Rows, kPair>(v, other, sums + o.from(), kPair ? Rows::to_up(o.from(), product.swapped) : 0, o.parts());
  const bool only_sums = !kPair && product.hands_on == HandsOn::sums;
  const float factor = o.factor * (only_sums ? scale * kHalfOfCut : scale), other_factor = o.other_factor * scale;
#pragma unroll
  for (int j = 0; j < kQuad; ++j) {
    v[j] *= factor;
    if (kPair) other[j] *= other_factor;
  }
  if (only_sums) {
    post_sums(to, o.group, v, o.inside());
    return;
  }
  float result[kQuad];
  if (kPair) activate(activated, v, other);
#pragma unroll
  for (int j = 0; j < kQuad; ++j) result[j] = kPair ? activated[j] : v[j];
  if (product.hands_on == HandsOn::rows)
    Rows::post(to, o.group, result, o.inside());
  else if (product.hands_on == HandsOn::halves)
    post_halves<false>(to, o.group, result, o.inside());
  if (product.leaves && o.inside()) {
    const int row = row_of<Rows>(thread);
    leave_results(product, o.matrix(), row, output_of(o, share, row, thread), v, other, activated);
  }
}

// Quads of a round's outputs.
template <typename Rows>
__device__ inline int quads_of(const Share& share, int items) {
  return ((items + share.pair) >> share.pair) * kRowsOfGroup<Rows> * (kElements / kQuad);
}

}  // namespace q4::gpu::decode
