// The end of a decode chain's product: from the sums that its warps leave in shared memory to results, and to what the next
// phase takes.
#pragma once
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

// Four neighbouring outputs of a row, and what is done with them: found before the sums are there.
struct Outputs {
  int from, parts;  // of the sums
  int count;        // 0: none
  int matrix, at;   // where in its results
  int group;
  float factor, other_factor;  // other: of a pair
  enum class Next { nothing, parts, halves, rows, sum } next;
  // For a sum: where x before it is among what is kept, and the next norm's weights.
  int kept;
  float4 weight;
};
template <bool kWhole>
__device__ inline int row_of_outputs(const Share& share, int i, int rows) {
  return kWhole ? i / 4 % rows : i / 4 - share.divide_by_rows(i / 4) * rows;
}
// The factor of x that makes up a norm.
template <typename Rows>
__device__ inline float scale_of_product(const DecodePhase& phase, const float* squares, int row) {
  return Rows::kEpilogue * (phase.norm.weight ? scale_of<Rows>(phase.norm, squares, row) : 1.0f);
}
// Without that factor. done: where the list of all items is in shared memory.
template <typename Rows>
__device__ inline Outputs outputs_of(const DecodePhase& phase, const Share& share, int items, int done, int rows,
                                     int round, int i, const Finish& f) {
  static_assert(Rows::Tiles::kGroup == kElements);
  constexpr bool kWhole = Rows::kExactly > 0;
  const DecodeProduct& product = phase.product;
  const int round_items = share.template round_items<typename Rows::Tiles>();
  const int pair = share.pair, in_row = (product.items + pair) >> pair;
  const int q = i % 4, g = i / 4, unit = kWhole ? g / rows : share.divide_by_rows(g), row = g - unit * rows;
  const int which = pair ? unit * 2 + q / 2 : unit, r = (pair ? q % 2 : q) * kQuad;
  Outputs o{};
  o.next = !f.next                              ? Outputs::Next::nothing
           : !kWhole && product.splits > 1      ? Outputs::Next::parts
           : f.next->kind != PhaseKind::product ? Outputs::Next::halves
           : kWhole && product.adds             ? Outputs::Next::sum
                                                : Outputs::Next::rows;
  if (which >= items) return o;
  const Done item = (&place<Done>(done))[share.done + round * round_items + which];
  const DecodeMatrix& m = product.matrix[item.matrix];
  o.from = item.first * Rows::sum_floats(rows) + Rows::sum_place(row, r), o.parts = item.parts;
  const int output = item.group * (kElements >> pair) + r;
  o.count = min(kQuad, m.outputs - output), o.matrix = item.matrix, o.at = row * m.outputs + output;
  o.group = (kWhole ? row : share.piece * rows + row) * in_row + (share.item(round * round_items + which) >> pair);
  o.factor = f.globals[item.matrix], o.other_factor = pair ? f.globals[1] : 0;
  if (kWhole && o.next == Outputs::Next::sum) {
    o.kept = round * round_items * rows * kElements + i * kQuad;
    o.weight = *reinterpret_cast<const float4*>(f.next->norm.weight + output);
  }
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
__device__ inline void add_parts(float (&v)[kQuad], float (&other)[kQuad], const float* from, const float* other_from,
                                 int parts, int apart, bool pair) {
  constexpr int kAtOnce = 4;
#pragma unroll
  for (int j = 0; j < kQuad; ++j) v[j] = other[j] = 0;
#pragma unroll 1
  for (int first = 0; first < parts; first += kAtOnce) {
    float4 a[kAtOnce], b[kAtOnce];
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k) {
      const int at = (first + k) * apart;
      a[k] = b[k] = make_float4(0, 0, 0, 0);
      if (first + k < parts) a[k] = *reinterpret_cast<const float4*>(from + at);
      if (first + k < parts && pair) b[k] = *reinterpret_cast<const float4*>(other_from + at);
    }
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k) {
      v[0] += a[k].x, v[1] += a[k].y, v[2] += a[k].z, v[3] += a[k].w;
      other[0] += b[k].x, other[1] += b[k].y, other[2] += b[k].z, other[3] += b[k].w;
    }
  }
}

// What the product as an op would leave.
__device__ inline void leave_results(const DecodeProduct& product, const Outputs& o, const float (&v)[kQuad],
                                     const float (&other)[kQuad], const float (&activated)[kQuad]) {
  if (product.paired) {
    void *const gate = product.matrix[product.swapped].y, *const up = product.matrix[!product.swapped].y;
    if (gate) store<bf16>(gate, o.at, v, o.count);
    if (up) store<bf16>(up, o.at, other, o.count);
    if (product.activated) store<bf16>(product.activated, o.at, activated, o.count);
  } else if (void* const y = product.matrix[o.matrix].y) {
    if (product.wide_output)
      store<float>(y, o.at, v, o.count);
    else
      store<bf16>(y, o.at, v, o.count);
  }
}

// silu(gate)·up as the separate ops: gate and up are rounded before they meet, and come back so.
__device__ inline void activate(float (&activated)[kQuad], float (&gate)[kQuad], float (&up)[kQuad], bool swapped) {
  unpack4(gate, pack4(gate)), unpack4(up, pack4(up));
#pragma unroll
  for (int j = 0; j < kQuad; ++j) {
    const float a = swapped ? up[j] : gate[j], b = swapped ? gate[j] : up[j];
    gate[j] = a, up[j] = b;
    activated[j] = a * reciprocal(1.0f + __expf(-a)) * b;
  }
  unpack4(activated, pack4(activated));
}

// Of more rows: four outputs from the sums of their warps, four neighbouring lanes a group, whole warps: first what the next
// phase waits for, then results. scale: what scale_of_product says.
template <typename Rows>
__device__ inline void finish(const DecodePhase& phase, const float* sums, int rows, const Outputs& o, float scale,
                              const Finish& f) {
  using Next = Outputs::Next;
  const DecodeProduct& product = phase.product;
  const bool pair = product.paired, inside = o.count > 0, in_parts = product.splits > 1;
  float v[kQuad], other[kQuad];
  add_parts(v, other, sums + o.from, sums + Rows::second_half(o.from), o.parts, Rows::sum_floats(rows), pair);
  float result[kQuad];  // of a pair, what comes of gate and up
#pragma unroll
  for (int j = 0; j < kQuad; ++j) {
    v[j] *= o.factor * scale, other[j] *= o.other_factor * scale;
    result[j] = in_parts || product.wide_output ? v[j] : rounded<bf16>(v[j]);
  }
  if (pair) activate(result, v, other, product.swapped);
  if (o.next == Next::parts)
    post_sums(f.to, o.group, v, inside);
  else if (o.next == Next::halves)
    post_halves<false>(f.to, o.group, result, inside);
  else if (o.next == Next::rows)
    Rows::post(f.to, o.group, result, 0, inside);
  if (inside && !in_parts) leave_results(product, o, v, other, result);
}

// Quads of a round's outputs.
__device__ inline int quads_of(const Share& share, int items, int rows) {
  return ((items + share.pair) >> share.pair) * rows * (kElements / kQuad);
}

}  // namespace q4::gpu::decode
