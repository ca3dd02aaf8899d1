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

// Where four neighbouring outputs of a row are, in two words, so that they can be held while tiles are multiplied: found while
// something is waited for, as the slowest warp would come to that last.
struct Places {
  uint32_t sums;  // of the first part, how many parts << 16, of which matrix << 24
  int group;      // of all matrices' sixteen outputs; negative: none
};
// And what is done with them.
struct Outputs {
  bool inside;                 // false: none
  int from, parts;             // of the sums
  int row, matrix, output;     // where in the product's results
  int group;                   // of what is handed on
  float factor, other_factor;  // other: of a pair
};
// The factor of x that makes up a norm.
template <typename Rows>
__device__ inline float scale_of_product(const DecodePhase& phase, const float* squares, int row) {
  return Rows::kEpilogue * (phase.norm.weight ? scale_of<Rows>(phase.norm, squares, row) : 1.0f);
}
// Of the i-th quad of a round that has so many items. done: where the list of all items is in shared memory.
template <typename Rows>
__device__ inline Places places_of(const Share& share, int items, int done, int rows, int round, uint32_t i) {
  static_assert(Rows::Tiles::kGroup == kElements);
  static_assert(kRoundSums<typename Rows::Tiles> * Rows::kSumFloats < 1 << 16 &&
                kMostParts<typename Rows::Tiles> < 256);
  constexpr int kRows = kRowsOfGroup<Rows>;
  const int pair = share.pair, q = static_cast<int>(i % 4), row = static_cast<int>(i / 4 % kRows),
            unit = static_cast<int>(i / 4 / kRows), which = pair ? unit * 2 + q / 2 : unit;
  if (which >= items || row >= rows) return {0, -1};
  const Done item =
      (&place<Done>(done))[share.done + round * share.template round_items<typename Rows::Tiles>() + which];
  const int from = item.first * Rows::kSumFloats + Rows::sum_place(row, (pair ? q & 1 : q) * kQuad);
  return {static_cast<uint32_t>(from) | uint32_t{item.parts} << 16 | uint32_t{item.matrix} << 24, item.group};
}
// Without the factor of x.
template <typename Rows>
__device__ inline Outputs outputs_at(const Places& places, const Share& share, uint32_t i, const float* globals) {
  Outputs o;
  o.inside = places.group >= 0;
  o.from = static_cast<int>(places.sums & 0xffff), o.parts = static_cast<int>(places.sums >> 16 & 255);
  o.row = static_cast<int>(i / 4 % kRowsOfGroup<Rows>), o.matrix = static_cast<int>(places.sums >> 24);
  o.output = places.group * kElements + static_cast<int>(i % 4) * kQuad;
  o.group = share.first_group + o.row * share.row_groups + places.group;
  o.factor = globals[o.matrix], o.other_factor = share.pair ? globals[1] : 0;
  return o;
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

// What the warps left of a quad, added in their order; of a pair, of the second matrix too. Read several at a time, so that
// not each waits for the one before.
template <typename Rows, bool kPair>
__device__ inline void add_parts(float (&v)[kQuad], float (&other)[kQuad], const float* sums, int from, int parts) {
  constexpr int kAtOnce = 4;
  const float *const first_of_all = sums + from, *const other_of_all = sums + Rows::second_half(from);
#pragma unroll
  for (int j = 0; j < kQuad; ++j) v[j] = other[j] = 0;
#pragma unroll 1
  for (int first = 0; first < parts; first += kAtOnce) {
    float4 a[kAtOnce], b[kAtOnce];
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k) {
      const int at = (first + k) * Rows::kSumFloats;
      a[k] = b[k] = make_float4(0, 0, 0, 0);
      if (first + k < parts) a[k] = *reinterpret_cast<const float4*>(first_of_all + at);
      if (kPair && first + k < parts) b[k] = *reinterpret_cast<const float4*>(other_of_all + at);
    }
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k) {
      v[0] += a[k].x, v[1] += a[k].y, v[2] += a[k].z, v[3] += a[k].w;
      if (kPair) other[0] += b[k].x, other[1] += b[k].y, other[2] += b[k].z, other[3] += b[k].w;
    }
  }
}

// What the product as an op would leave.
__device__ inline void leave_results(const DecodeProduct& product, const Outputs& o, const float (&v)[kQuad],
                                     const float (&other)[kQuad], const float (&activated)[kQuad]) {
  const DecodeMatrix& m = product.matrix[o.matrix];
  const int output = o.output - m.first_group * kElements, count = min(kQuad, m.outputs - output),
            at = o.row * m.outputs + output;
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
__device__ inline void activate(float (&activated)[kQuad], float (&gate)[kQuad], float (&up)[kQuad], bool swapped) {
  unpack4(gate, pack4(gate)), unpack4(up, pack4(up));
#pragma unroll
  for (int j = 0; j < kQuad; ++j) {
    const float a = swapped ? up[j] : gate[j], b = swapped ? gate[j] : up[j];
    gate[j] = a, up[j] = b;
    activated[j] = a * reciprocal(1.0f + exp2_fast(-kLog2e * a)) * b;
  }
  unpack4(activated, pack4(activated));
}

// Of more rows: four outputs from the sums of their warps, four neighbouring lanes a group, whole warps: first what the next
// phase waits for, then results. scale: what scale_of_product says.
template <typename Rows, bool kPair>
__device__ inline void finish(const DecodeProduct& product, const float* sums, const Outputs& o, float scale,
                              const Exchange& to) {
  float v[kQuad], other[kQuad], activated[kQuad];  // of a pair: gate, up, and what comes of them
  add_parts<Rows, kPair>(v, other, sums, o.from, o.parts);
  const float factor = o.factor * scale, other_factor = o.other_factor * scale;
#pragma unroll
  for (int j = 0; j < kQuad; ++j) {
    v[j] *= factor;
    if (kPair) other[j] *= other_factor;
  }
  if (!kPair && product.hands_on == HandsOn::sums) {
    post_sums(to, o.group, v, o.inside);
    return;
  }
  float result[kQuad];
  if (kPair) activate(activated, v, other, product.swapped);
#pragma unroll
  for (int j = 0; j < kQuad; ++j) result[j] = kPair ? activated[j] : v[j];
  if (product.hands_on == HandsOn::rows)
    Rows::post(to, o.group, result, 0, o.inside);
  else if (product.hands_on == HandsOn::halves)
    post_halves<false>(to, o.group, result, o.inside);
  if (product.leaves && o.inside) leave_results(product, o, v, other, activated);
}

// Quads of a round's outputs.
template <typename Rows>
__device__ inline int quads_of(const Share& share, int items) {
  return ((items + share.pair) >> share.pair) * kRowsOfGroup<Rows> * (kElements / kQuad);
}

}  // namespace q4::gpu::decode
