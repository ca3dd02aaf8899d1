// Between the products of a decode chain: residual sums, norms, and what products take. A norm is taken apart: whoever
// computes x hands on x · weight and the squares of x; the scale that makes up the rest, 1 / rms(x), is a factor of the
// product's results, needed only when those are complete.
#pragma once
#include "cuda/decode_staging.cuh"

namespace q4::gpu::decode {

__device__ inline float squares_of(const float (&v)[kQuad]) {
  return v[0] * v[0] + v[1] * v[1] + (v[2] * v[2] + v[3] * v[3]);
}
// Of a group, four neighbouring lanes.
__device__ inline float squares_of_group(const float (&v)[kQuad]) {
  float x = squares_of(v);
  x += __shfl_xor_sync(0xffffffffu, x, 1);
  return x + __shfl_xor_sync(0xffffffffu, x, 2);
}

// Four neighbouring elements, bf16.
__device__ inline uint2 pack4(const float (&v)[kQuad]) {
  return make_uint2(pack_bf16(v[0], v[1]), pack_bf16(v[2], v[3]));
}
__device__ inline void unpack4(float (&v)[kQuad], uint2 words) {
  v[0] = low_bf16(words.x), v[1] = high_bf16(words.x), v[2] = low_bf16(words.y), v[3] = high_bf16(words.y);
}
__device__ inline uint2& quad(bf16* p) { return *reinterpret_cast<uint2*>(p); }
__device__ inline uint2 quad(const bf16* p) { return *reinterpret_cast<const uint2*>(p); }

// Which groups a block keeps: every gridDim.x-th of a row, of all rows where rows are few; else, of all rows' groups, every
// gridDim.x-th kNumbered neighbours.
template <typename Rows>
struct Kept {
  static constexpr int kOfUnit = Rows::kExactly > 0 ? Rows::kExactly : kNumbered;
  int rows, groups, units;
  __device__ Kept(int rows, int width)
      : rows(rows),
        groups(width / kElements),
        units(Rows::kExactly > 0 ? groups : (groups * rows + kNumbered - 1) / kNumbered) {}
  // The row and group of a block's n-th; false where there are fewer.
  __device__ bool find(int n, int& row, int& group) const {
    const int unit = static_cast<int>(blockIdx.x) + n / kOfUnit * blocks_of_grid();
    if (Rows::kExactly) {
      row = n % kOfUnit, group = unit;
      return unit < units;
    }
    const int of_all = unit * kNumbered + n % kNumbered;
    // Exact for rows of fewer than 2^17 groups, and shorter than a division.
    row = static_cast<int>(__fdividef(static_cast<float>(of_all) + 0.5f, static_cast<float>(groups)));
    group = of_all - row * groups;
    return row < rows;
  }
  // Whether a warp's lanes, each with a quad, have any.
  __device__ bool any(int first_quad) const {
    return static_cast<int>(blockIdx.x) + first_quad / 4 / kOfUnit * blocks_of_grid() < units;
  }
};

// Four elements of a row of an embedding's table, as bf16.
__device__ inline uint2 look_up_quad(const DecodeEmbedding& embedding, int row, int column, int width) {
  const int64_t at = int64_t{embedding.ids[row]} * width + column;
  const auto in = [&](auto type) { return load<kQuad>(static_cast<const decltype(type)*>(embedding.table) + at); };
  const Pack<kQuad> x = embedding.dtype == DType::bf16  ? in(bf16{})
                        : embedding.dtype == DType::f16 ? in(f16{})
                                                        : in(float{});
  return pack4(x.v);
}

// A phase of its own: x + branch from memory (first), or with branch from the phase before. splits: as of that, 0 when it
// left bf16. await: that it has left something, known last; settle: that all blocks have read what the first phase reads; announce: by
// one thread, that sums come.
template <typename Rows, typename Await, typename Settle, typename Announce>
__device__ inline void sum_rows(const DecodeNorm& norm, bool first, const DecodeEmbedding& embedding,
                                const Exchange& source, int splits, int rows, bf16* kept, const Exchange& to,
                                Await&& await, Settle&& settle, Announce&& announce) {
  constexpr bool kMeets = Rows::kExactly == 0;
  const Kept<Rows> mine(rows, norm.width);
  const auto more = [&](int i) { return mine.any(i / 32 * 32); };
  struct Element {
    int row, group, column;
    int64_t at;
    bool inside;
    float4 weight;
  };
  const auto element = [&](int i) {
    Element e;
    e.inside = mine.find(i / 4, e.row, e.group);
    if (!e.inside) e.row = e.group = 0;
    e.column = e.group * kElements + i % 4 * kQuad;
    e.at = int64_t{e.row} * norm.width + e.column;
    e.weight = make_float4(1, 1, 1, 1);
    if (e.inside && norm.weight) e.weight = *reinterpret_cast<const float4*>(norm.weight + e.column);
    return e;
  };
  if (first) {
    // All read before any writes: results may take the places of x and branch.
#pragma unroll 1
    for (int i = threadIdx.x; more(i); i += kThreads) {
      const Element e = element(i);
      if (!e.inside) continue;
      float x[kQuad], branch[kQuad] = {};
      if (embedding.table) {
        const uint2 words = look_up_quad(embedding, e.row, e.column, norm.width);
        if (embedding.x) quad(embedding.x + e.at) = words;
        unpack4(x, words);
      } else {
        unpack4(x, quad(norm.x + e.at));
      }
      if (norm.branch) unpack4(branch, quad(norm.branch + e.at));
#pragma unroll
      for (int j = 0; j < kQuad; ++j) x[j] += branch[j];
      quad(kept + i * kQuad) = pack4(x);
    }
    // What an embedding's rows are read from is not written to.
    if (!Rows::kExactly || !embedding.table) settle();
  }
  // What does not depend on the phase before, of a thread's first elements, is there when that is.
  Element e = element(threadIdx.x);
#pragma unroll 1
  for (int i = threadIdx.x; more(i); i += kThreads) {
    if (i >= kThreads) e = element(i);
    float x[kQuad] = {}, branch[kQuad];
    if (e.inside) unpack4(x, quad(kept + i * kQuad));
    if (!first) {
      const int place = e.row * mine.groups + e.group;
      if (splits)
        collect_sums(branch, source, place, splits, rows * mine.groups);
      else
        collect_halves(branch, source, place);
      const uint2 words = pack4(branch);
      if (e.inside && norm.branch_out) quad(norm.branch_out + e.at) = words;
      unpack4(branch, words);
#pragma unroll
      for (int j = 0; j < kQuad; ++j) x[j] += branch[j];
      const uint2 sum = pack4(x);
      unpack4(x, sum);
      if (e.inside) quad(kept + i * kQuad) = sum;
    }
    const float y[kQuad] = {x[0] * e.weight.x, x[1] * e.weight.y, x[2] * e.weight.z, x[3] * e.weight.w};
    const int place = e.row * mine.groups + e.group;
    if constexpr (kMeets)
      Rows::post(to, place, y, e.inside);
    else
      Rows::post(to, place, y, squares_of_group(x), e.inside);
    // Not before all warps have: who looks for rows too early, and does not find all of them, waits for another trip.
    if (kMeets && i < kThreads) block_sync();
    if (i == 0) announce();
    if constexpr (kMeets) {
      // Of a warp's groups, which are neighbours, and of one row, as a product's width is a multiple of theirs (decode_fits):
      // wanted later than they are.
      const float squares = warp_sum(e.inside ? squares_of(x) : 0.0f);
      if (e.inside && i % 32 == 0) put_number(numbers_in(to) + place / kNumbered, squares);
    }
    if (e.inside && norm.sum) quad(norm.sum + e.at) = pack4(x);
  }
  if (kMeets && !more(threadIdx.x)) block_sync();
  if (threadIdx.x == 0 && !more(0)) announce();
  if (!first) await();
}

// 1 / rms of a row from what staging left, by whole warps; lanes may ask for different rows.
template <typename Rows>
__device__ inline float scale_of(const DecodeNorm& norm, const float* squares, int row) {
  if constexpr (Rows::kExactly == 0) {
    return squares[row];  // which RowStager made of them
  } else {
    float total = 0;
    static_assert(kSquares<Rows> == 32 * 8);
#pragma unroll
    for (int r = 0; r < Rows::kExactly; ++r) {
      const float4* const mine = reinterpret_cast<const float4*>(squares + r * kSquares<Rows>) + threadIdx.x % 32;
      const float4 v = mine[0], w = mine[32];
      const float sum = warp_sum(v.x + v.y + (v.z + v.w) + (w.x + w.y + (w.z + w.w)));
      if (r == row) total = sum;
    }
    return rsqrtf(__fdividef(total, static_cast<float>(norm.width)) + norm.eps);
  }
}

// What the norm as an op would leave, a share by every block that has work in the product's phase: by `threads` threads,
// whole warps, of which this is number `thread`.
template <typename Rows>
__device__ inline void leave_norm(const DecodeNorm& norm, const Exchange& source, const float* squares, int rows,
                                  int groups_of_product, int thread, int threads) {
  if (norm.rstd && blockIdx.x == 0 && thread < 32) {
    const int row = thread;
    const float scale = scale_of<Rows>(norm, squares, min(row, rows - 1));
    if (row < rows) norm.rstd[row] = scale;
  }
  if (!norm.normed_out) return;
  const int in_row = norm.width / kQuad, blocks = min(blocks_of_grid(), groups_of_product);
#pragma unroll 1
  for (int row = 0; row < rows; ++row) {
    const float scale = scale_of<Rows>(norm, squares, row);
#pragma unroll 1
    for (int i = thread * blocks + blockIdx.x; i < in_row; i += threads * blocks) {
      float v[kQuad];
      Rows::read(v, source, row * (in_row / 4) + i / 4, i % 4);
#pragma unroll
      for (int j = 0; j < kQuad; ++j) v[j] *= scale;
      quad(norm.normed_out + int64_t{row} * norm.width + i * kQuad) = pack4(v);
    }
  }
}

// branch_out from what the phase before left in parts.
__device__ inline void join_rows(const DecodeNorm& norm, const Exchange& source, int splits, int rows) {
  const int groups = norm.width / kElements, all = rows * groups * (kElements / kQuad);
#pragma unroll 1
  for (int i = blockIdx.x * kThreads + threadIdx.x; i < all; i += gridDim.x * kThreads) {
    float v[kQuad];
    collect_sums(v, source, i / 4, splits, rows * groups);
    quad(norm.branch_out + i * kQuad) = pack4(v);
  }
}

}  // namespace q4::gpu::decode
