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
  const float* squares;  // of x, where it is normalised
  bf16* kept;
  float4 norm_weight;  // of the next norm, at the elements that this thread finishes first
  Exchange to;
  const DecodePhase* next;  // null after the last phase
};

// Four neighbouring outputs of a row, and what is done with them: found before the sums are there.
struct Outputs {
  int from, parts;  // of the sums
  int count;        // 0: none
  int64_t at;       // of the row, in the results
  int group;
  float factor, other_factor;
  void *y, *other_y;  // of a pair, gate and up
  enum class Next { nothing, floats, halves, rows, sum } next;
};
template <typename Rows>
__device__ inline Outputs outputs_of(const DecodePhase& phase, const Share& share, int items, const Done* done,
                                     int rows, int round, int i, const Finish& f) {
  static_assert(Rows::Tiles::kGroup == kElements);
  constexpr bool kWhole = Rows::kExactly > 0;
  const DecodeProduct& product = phase.product;
  const int pair = share.pair, in_row = (product.items + pair) >> pair;
  const int q = i % 4, g = i / 4, unit = rows == 1 ? g : g / rows, row = g - unit * rows;
  const int which = pair ? unit * 2 + q / 2 : unit, r = (pair ? q % 2 : q) * kQuad;
  Outputs o{};
  o.next = !f.next                              ? Outputs::Next::nothing
           : !kWhole && product.splits > 1      ? Outputs::Next::floats
           : f.next->kind != PhaseKind::product ? Outputs::Next::halves
           : kWhole && product.adds             ? Outputs::Next::sum
                                                : Outputs::Next::rows;
  if (which >= items) return o;
  const Done item = done[round * kWarps + which];
  const DecodeMatrix& m = product.matrix[item.matrix];
  o.from = (item.first * rows + row) * kElements + r, o.parts = item.parts;
  const int output = item.group * (kElements >> pair) + r;
  o.count = min(kQuad, m.outputs - output), o.at = int64_t{row} * m.outputs + output;
  o.group = row * in_row + (share.item(round * kWarps + which) >> pair);
  const float scale = phase.norm.weight ? Rows::kEpilogue * scale_of(phase.norm, f.squares, row) : Rows::kEpilogue;
  o.factor = scale * f.globals[item.matrix], o.other_factor = pair ? scale * f.globals[1] : 0;
  o.y = m.y, o.other_y = product.matrix[1].y;
  if (product.swapped) o.y = product.matrix[1].y, o.other_y = m.y;
  return o;
}

template <typename T>
__device__ inline void store(void* y, int64_t at, const float (&v)[kQuad], int count) {
#pragma unroll
  for (int j = 0; j < kQuad; ++j)
    if (j < count) static_cast<T*>(y)[at + j] = from_f32<T>(v[j]);
}

// A round's outputs from the sums of their warps, four lanes a group.
template <typename Rows>
__device__ inline void finish(const DecodePhase& phase, const Share& share, int items, const float* sums, int rows,
                              int round, const Done* done, const Outputs& first, const Finish& f) {
  constexpr bool kWhole = Rows::kExactly > 0;
  const DecodeProduct& product = phase.product;
  const int pair = share.pair, all = ((items + pair) >> pair) * rows * (kElements / kQuad);
#pragma unroll 1
  for (int i = threadIdx.x; i < (all + 31) / 32 * 32; i += kThreads) {
    const Outputs o = i < kThreads ? first : outputs_of<Rows>(phase, share, items, done, rows, round, i, f);
    float v[kQuad] = {}, other[kQuad] = {};
#pragma unroll 4
    for (int w = 0; w < o.parts; ++w) {
      const float* const from = sums + o.from + w * kElements * rows;
      const float4 a = *reinterpret_cast<const float4*>(from);
      v[0] += a.x, v[1] += a.y, v[2] += a.z, v[3] += a.w;
      if (pair) {
        const float4 b = *reinterpret_cast<const float4*>(from + kElements / 2);
        other[0] += b.x, other[1] += b.y, other[2] += b.z, other[3] += b.w;
      }
    }
    const bool inside = o.count > 0;
#pragma unroll
    for (int j = 0; j < kQuad; ++j) {
      v[j] *= o.factor;
      // As the separate ops: gate and up are rounded before they meet.
      if (pair) v[j] = rounded<bf16>(v[j]), other[j] = rounded<bf16>(other[j] * o.other_factor);
    }
    if (pair) {
      if (product.swapped)
#pragma unroll
        for (int j = 0; j < kQuad; ++j) {
          const float up = v[j];
          v[j] = other[j], other[j] = up;
        }
      if (inside && o.y) store<bf16>(o.y, o.at, v, o.count);
      if (inside && o.other_y) store<bf16>(o.other_y, o.at, other, o.count);
#pragma unroll
      for (int j = 0; j < kQuad; ++j) v[j] = rounded<bf16>(__fdividef(v[j], 1.0f + __expf(-v[j])) * other[j]);
      if (inside && product.activated) store<bf16>(product.activated, o.at, v, o.count);
    } else if (kWhole || product.splits == 1) {
      if (product.wide_output) {
        if (inside && o.y) store<float>(o.y, o.at, v, o.count);
      } else {
#pragma unroll
        for (int j = 0; j < kQuad; ++j) v[j] = rounded<bf16>(v[j]);
        if (inside && o.y) store<bf16>(o.y, o.at, v, o.count);
      }
    }
    if (o.next == Outputs::Next::nothing) continue;
    if (!kWhole && o.next == Outputs::Next::floats) {
      post_floats(f.to, static_cast<int>(blockIdx.x % product.splits) * rows * product.items + o.group, v, inside);
    } else if (o.next == Outputs::Next::halves) {
      post_halves<kWhole>(f.to, o.group, v, 0, inside);
    } else {
      float squares = 0;
      if (kWhole && o.next == Outputs::Next::sum) {
        bf16* const kept = f.kept + round * kWarps * rows * kElements + i * kQuad;
        float x[kQuad] = {};
        float4 weight = f.norm_weight;
        if (inside) {
          unpack4(x, quad(kept));
          const DecodeNorm& norm = f.next->norm;
          if (i >= kThreads || round > 0) weight = *reinterpret_cast<const float4*>(norm.weight + o.at % norm.width);
#pragma unroll
          for (int j = 0; j < kQuad; ++j) x[j] = rounded<bf16>(x[j] + v[j]);
          quad(kept) = pack4(x);
          if (norm.sum) quad(norm.sum + o.at) = pack4(x);
        }
        squares = squares_of_group(x);
        v[0] = x[0] * weight.x, v[1] = x[1] * weight.y, v[2] = x[2] * weight.z, v[3] = x[3] * weight.w;
      }
      Rows::post(f.to, o.group, v, squares, inside);
    }
  }
}

}  // namespace q4::gpu::decode
