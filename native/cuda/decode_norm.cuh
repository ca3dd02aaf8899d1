// Between the products of a decode chain: residual sums, norms, and what products take. A norm is taken apart: whoever
// computes x hands on x · weight and the squares of x; the scale that makes up the rest, 1 / rms(x), is a factor of the
// product's results, needed only when those are complete.
#pragma once
#include "cuda/decode_rows.cuh"

namespace q4::gpu::decode {

// Of a group, four neighbouring lanes.
__device__ inline float squares_of_group(const float (&v)[kQuad]) {
  float x = v[0] * v[0] + v[1] * v[1] + (v[2] * v[2] + v[3] * v[3]);
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

// Which groups of a row a block keeps: every gridDim.x-th, of all rows where rows are few; else every gridDim.x-th of all.
struct Kept {
  int rows, groups, units, rows_of_unit;
  __device__ Kept(int rows_, int width)
      : rows(rows_),
        groups(width / kElements),
        units(rows_ <= kWholeRows ? groups : groups * rows_),
        rows_of_unit(rows_ <= kWholeRows ? rows_ : 1) {}
  __device__ int count() const {
    const int block = blockIdx.x;
    return block < units ? (units - block + static_cast<int>(gridDim.x) - 1) / static_cast<int>(gridDim.x) : 0;
  }
  __device__ int unit(int k) const { return blockIdx.x + k * static_cast<int>(gridDim.x); }
  __device__ int row(int unit, int n) const { return rows <= kWholeRows ? n : unit / groups; }
  __device__ int group(int unit) const { return rows <= kWholeRows ? unit : unit % groups; }
};

// A phase of its own: x + branch from memory (first), or with branch from the phase before. splits: as of that, 0 when it
// left bf16. await: that it has left something; settle: that all blocks have read what the first phase reads.
template <typename Rows, typename Await, typename Settle>
__device__ inline void sum_rows(const DecodeNorm& norm, bool first, const Exchange& source, int splits, int rows,
                                bf16* kept, const Exchange& to, Await&& await, Settle&& settle) {
  const Kept mine(rows, norm.width);
  const int all = mine.count() * mine.rows_of_unit * (kElements / kQuad), padded = (all + 31) / 32 * 32;
  struct Element {
    int row, group, column;
    int64_t at;
    bool inside;
    float4 weight;
  };
  const auto element = [&](int i) {
    Element e;
    const int g = i / 4, k = g / mine.rows_of_unit, n = g - k * mine.rows_of_unit;
    e.inside = i < all;
    const int unit = e.inside ? mine.unit(k) : 0;
    e.row = mine.row(unit, n), e.group = mine.group(unit), e.column = e.group * kElements + i % 4 * kQuad;
    e.at = int64_t{e.row} * norm.width + e.column;
    e.weight = make_float4(1, 1, 1, 1);
    if (e.inside && norm.weight) e.weight = *reinterpret_cast<const float4*>(norm.weight + e.column);
    return e;
  };
  if (first) {
    // All read before any writes: results may take the places of x and branch.
#pragma unroll 1
    for (int i = threadIdx.x; i < all; i += kThreads) {
      const Element e = element(i);
      float x[kQuad], branch[kQuad] = {};
      unpack4(x, quad(norm.x + e.at));
      if (norm.branch) unpack4(branch, quad(norm.branch + e.at));
#pragma unroll
      for (int j = 0; j < kQuad; ++j) x[j] += branch[j];
      quad(kept + i * kQuad) = pack4(x);
    }
    settle();
  }
  // What does not depend on the phase before, of a thread's first elements, is there when that is.
  Element e = element(threadIdx.x);
  if (!first) await();
#pragma unroll 1
  for (int i = threadIdx.x; i < padded; i += kThreads) {
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
    const float squares = squares_of_group(x),
                y[kQuad] = {x[0] * e.weight.x, x[1] * e.weight.y, x[2] * e.weight.z, x[3] * e.weight.w};
    Rows::post(to, e.row * mine.groups + e.group, y, squares, e.inside);
    if (e.inside && norm.sum) quad(norm.sum + e.at) = pack4(x);
  }
}

// Partial sums of squares a row, which whoever needs the norm's scale adds up.
template <typename Rows>
constexpr int kSquares = Rows::kExactly ? kThreads / 2 : 1;

// The rows of a product's x from the phase before, piece by piece, where rows are few: every thread takes each kThreads-th
// piece of a row. Which those are, and where they go, is found before the phase before is done with, as a hundred
// instructions by all warps take as long as a piece.
template <typename Rows>
class PieceStager {
 public:
  // x: where rows are kept; squares: [rows][kSquares], written where the product's x is normalised.
  __device__ PieceStager(const DecodePhase& phase, const Exchange& source, const Share& share, uint8_t* x,
                         float* squares)
      : tag_(Rows::high_half_tag(source.tag)),
        left_(share.tiles * kRowOfTile - static_cast<int>(threadIdx.x)),
        tiles_(share.tiles) {
    const uint32_t piece = threadIdx.x;
    from_ = source.slot + piece;
    digits_ = Rows::digits_of(shared_address(x), piece), scales_ = Rows::scales_of(shared_address(x), tiles_, piece);
    // The second piece of each group has its sum of squares. (Where nobody wants them, those of an earlier phase may still be
    // read.)
    static_assert(Rows::kPieces == 2 && kThreads / 2 == kSquares<Rows>);
    squares_ = phase.norm.weight && piece % 2 == 1 ? shared_address(squares + piece / 2) : 0;
    asm volatile("" : "+l"(from_), "+r"(digits_), "+r"(scales_), "+r"(left_), "+r"(tag_), "+r"(squares_));
  }

  __device__ void stage() const {
    constexpr int kFew = 1, kMany = 3;
#pragma unroll
    for (int row = 0; row < Rows::kExactly; ++row) {
      const int to = row * Rows::row_bytes(tiles_);
      const uint4* from = from_ + row * tiles_ * kRowOfTile;
      uint32_t digits = digits_ + to, scales = scales_ + to;
      float square = 0;
      for (int left = left_; left > -static_cast<int>(threadIdx.x);) {
        if (left + static_cast<int>(threadIdx.x) <= kFew * kThreads)
          take<kFew>(from, left, digits, scales, square);
        else
          take<kMany>(from, left, digits, scales, square);
        left -= kMany * kThreads, from += kMany * kThreads;
        digits += kMany * Rows::kTilesApart * Rows::kTileBytes, scales += kMany * (kThreads / Rows::kPieces) * 4;
      }
      shared_store_if(squares_ != 0, squares_ + row * kSquares<Rows> * 4, __float_as_uint(square));
    }
  }

 private:
  static constexpr int kRowOfTile = Rows::kTile / Rows::kOfPiece;

  // Of a row, the first kCount pieces, of which `left` are there.
  template <int kCount>
  __device__ void take(const uint4* from, int left, uint32_t digits, uint32_t scales, float& square) const {
    uint4 v[kCount];
    for (;;) {
      bool arrived = true;
#pragma unroll
      for (int j = 0; j < kCount; ++j) {
        v[j] = make_uint4(0, 0, 0, tag_);  // and a number of 0
        if (j * kThreads < left) v[j] = peek(from + j * kThreads);
      }
#pragma unroll
      for (int j = 0; j < kCount; ++j) arrived &= Rows::has_tag(v[j], tag_);
      if (arrived) break;
      __nanosleep(kPollPause);
    }
    const bool first = threadIdx.x % Rows::kPieces == 0;
#pragma unroll
    for (int j = 0; j < kCount; ++j) {
      const bool inside = j * kThreads < left;
      const uint32_t to = digits + j * Rows::kTilesApart * Rows::kTileBytes;
      shared_store2_if(inside, to, v[j].x, v[j].y);
      shared_store2_if(inside, to + 16, v[j].z & 0x0f0f0f0fu, v[j].z >> 4 & 0x0f0f0f0fu);
      shared_store_if(inside && first, scales + j * (kThreads / Rows::kPieces) * 4,
                      __float_as_uint(Rows::scale_in(v[j])));
      square += Rows::number_in(v[j]);
    }
  }

  const uint4* from_;
  uint32_t digits_, scales_, squares_, tag_;  // places in shared memory; squares: 0 where nobody wants them
  int left_, tiles_;
};
// The same by the copy engine, whole rows at a time.
__device__ inline void copy_row(uint32_t to, const char* from, int bytes, uint32_t barrier) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(to),
               "l"(from), "r"(bytes), "r"(barrier)
               : "memory");
}
// To both blocks of a cluster, at the same place of their memory, completing the barriers of both.
__device__ inline void copy_row_to_both(uint32_t to, const char* from, int bytes, uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%0], [%1], %2, [%3], "
      "%4;" ::"r"(to),
      "l"(from), "r"(bytes), "r"(barrier), "h"(static_cast<uint16_t>(3))
      : "memory");
}
template <typename Rows>
__device__ inline void stage_rows(const DecodePhase& phase, const Exchange& source, int rows, const Share& share,
                                  uint8_t* x, float* squares, uint32_t barrier) {
  const int groups = phase.product.width / kElements, bytes = share.tiles * Rows::kTileBytes, lane = threadIdx.x % 32;
  if (threadIdx.x < 32) {
    asm volatile("fence.proxy.async;" ::: "memory");  // others wrote what is read by the copy engine
    if (lane == 0) barrier_expect(barrier, rows * bytes);
    const uint32_t to = shared_address(x + lane * Rows::row_bytes(share.tiles));
    const char* const from = rows_in(source) + (int64_t{lane} * groups / 16 + share.first_tile) * Rows::kTileBytes;
    if (cluster_blocks() == 1) {
      if (lane < rows) copy_row(to, from, bytes, barrier);
    } else if (lane < rows && lane % 2 == blockIdx.x % 2) {
      copy_row_to_both(to, from, bytes, barrier);
    }
  }
  if (phase.norm.weight)
#pragma unroll 1
    for (int row = threadIdx.x / 32; row < rows; row += kWarps) {
      float square = 0;
#pragma unroll 4
      for (int g = lane; g < groups; g += 32) square += __ldcg(Rows::numbers(source) + row * groups + g);
      square = warp_sum(square);
      if (lane == 0) squares[row] = square;
    }
}

// 1 / rms of a row from what staging left, by whole warps; lanes may ask for different rows.
template <typename Rows>
__device__ inline float scale_of(const DecodeNorm& norm, const float* squares, int row) {
  float total = 0;
  if constexpr (Rows::kExactly) {
    static_assert(kSquares<Rows> == 32 * 8);
#pragma unroll
    for (int r = 0; r < Rows::kExactly; ++r) {
      const float4* const mine = reinterpret_cast<const float4*>(squares + r * kSquares<Rows>) + threadIdx.x % 32;
      const float4 v = mine[0], w = mine[32];
      const float sum = warp_sum(v.x + v.y + (v.z + v.w) + (w.x + w.y + (w.z + w.w)));
      if (r == row) total = sum;
    }
  } else {
    total = squares[row];
  }
  return rsqrtf(__fdividef(total, static_cast<float>(norm.width)) + norm.eps);
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
  const int in_row = norm.width / kQuad, blocks = min(static_cast<int>(gridDim.x), groups_of_product);
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
