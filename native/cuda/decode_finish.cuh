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
  const float4* norm_weight;  // of the next norm, at the elements that the block finishes
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
  // For a sum: x before it, where among what is kept, and the next norm's weights.
  int kept;
  uint2 x;
  float4 weight;
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
  float scale = Rows::kEpilogue;
  if (phase.norm.weight) scale *= scale_of<Rows>(phase.norm, f.squares, row);
  if (which >= items) return o;
  const Done item = done[round * kRoundItems + which];
  const DecodeMatrix& m = product.matrix[item.matrix];
  o.from = (item.first * rows + row) * kElements + r, o.parts = item.parts;
  const int output = item.group * (kElements >> pair) + r;
  o.count = min(kQuad, m.outputs - output), o.at = int64_t{row} * m.outputs + output;
  o.group = row * in_row + (share.item(round * kRoundItems + which) >> pair);
  o.factor = scale * f.globals[item.matrix], o.other_factor = pair ? scale * f.globals[1] : 0;
  o.y = m.y, o.other_y = product.matrix[1].y;
  if (product.swapped) o.y = product.matrix[1].y, o.other_y = m.y;
  if (kWhole && o.next == Outputs::Next::sum) {
    o.kept = round * kRoundItems * rows * kElements + i * kQuad, o.x = quad(f.kept + o.kept);
    o.weight = f.norm_weight[(round * kRoundItems + unit) * (kElements / kQuad) + q];
  }
  return o;
}

template <typename T>
__device__ inline void store(void* y, int64_t at, const float (&v)[kQuad], int count) {
#pragma unroll
  for (int j = 0; j < kQuad; ++j)
    if (j < count) static_cast<T*>(y)[at + j] = from_f32<T>(v[j]);
}

// What the warps left of a quad, added in their order; of a pair, of the second matrix too. Read several at a time, so that
// not each waits for the one before.
__device__ inline void add_parts(float (&v)[kQuad], float (&other)[kQuad], const float* from, int parts, int apart,
                                 bool pair) {
  constexpr int kAtOnce = 4;
#pragma unroll
  for (int j = 0; j < kQuad; ++j) v[j] = other[j] = 0;
#pragma unroll 1
  for (int first = 0; first < parts; first += kAtOnce) {
    float4 a[kAtOnce], b[kAtOnce];
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k) {
      const float* const part = from + (first + k) * apart;
      a[k] = b[k] = make_float4(0, 0, 0, 0);
      if (first + k < parts) a[k] = *reinterpret_cast<const float4*>(part);
      if (first + k < parts && pair) b[k] = *reinterpret_cast<const float4*>(part + kElements / 2);
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
    if (o.y) store<bf16>(o.y, o.at, v, o.count);
    if (o.other_y) store<bf16>(o.other_y, o.at, other, o.count);
    if (product.activated) store<bf16>(product.activated, o.at, activated, o.count);
  } else if (o.y) {
    if (product.wide_output)
      store<float>(o.y, o.at, v, o.count);
    else
      store<bf16>(o.y, o.at, v, o.count);
  }
}

// A round's outputs from the sums of their warps, four lanes a group. First what the next phase waits for, then results.
template <typename Rows>
__device__ inline void finish(const DecodePhase& phase, const Share& share, int items, const float* sums, int rows,
                              int round, const Done* done, const Outputs& first, const Finish& f) {
  constexpr bool kWhole = Rows::kExactly > 0;
  static_assert(!kWhole || kRoundItems * kWholeRows * (kElements / kQuad) <= kThreads);  // a thread has one quad at most
  using Next = Outputs::Next;
  const DecodeProduct& product = phase.product;
  const int pair = share.pair, all = ((items + pair) >> pair) * rows * (kElements / kQuad);
#pragma unroll 1
  for (int i = threadIdx.x; i < (all + 31) / 32 * 32; i += kThreads) {
    const Outputs o = kWhole || i < kThreads ? first : outputs_of<Rows>(phase, share, items, done, rows, round, i, f);
    float v[kQuad], other[kQuad];
    add_parts(v, other, sums + o.from, o.parts, kElements * rows, pair);
    const bool inside = o.count > 0, in_parts = !kWhole && product.splits > 1;
    float result[kQuad];  // of a pair, what comes of gate and up
#pragma unroll
    for (int j = 0; j < kQuad; ++j) {
      v[j] *= o.factor;
      if (!in_parts && !product.wide_output) v[j] = rounded<bf16>(v[j]);
      result[j] = v[j];
    }
    if (pair) {
      // As the separate ops: gate and up are rounded before they meet.
#pragma unroll
      for (int j = 0; j < kQuad; ++j) {
        other[j] = rounded<bf16>(other[j] * o.other_factor);
        if (product.swapped) {
          const float up = v[j];
          v[j] = other[j], other[j] = up;
        }
        result[j] = rounded<bf16>(__fdividef(v[j], 1.0f + __expf(-v[j])) * other[j]);
      }
    }
    if (!kWhole && o.next == Next::floats) {
      post_floats(f.to, static_cast<int>(blockIdx.x % product.splits) * rows * product.items + o.group, v, inside);
    } else if (o.next == Next::halves) {
      post_halves<kWhole>(f.to, o.group, result, inside);
    } else if (kWhole && o.next == Next::sum) {
      float x[kQuad];
      unpack4(x, o.x);
#pragma unroll
      for (int j = 0; j < kQuad; ++j) x[j] = inside ? rounded<bf16>(x[j] + v[j]) : 0.0f;
      const float squares = squares_of_group(x),
                  y[kQuad] = {x[0] * o.weight.x, x[1] * o.weight.y, x[2] * o.weight.z, x[3] * o.weight.w};
      Rows::post(f.to, o.group, y, squares, inside);
      if (inside) {
        quad(f.kept + o.kept) = pack4(x);
        if (bf16* const sum = f.next->norm.sum) quad(sum + o.at) = pack4(x);
      }
    } else if (o.next == Next::rows) {
      Rows::post(f.to, o.group, result, 0, inside);
    }
    if (inside && !in_parts) leave_results(product, o, v, other, result);
    if (kWhole) break;
  }
}

}  // namespace q4::gpu::decode
