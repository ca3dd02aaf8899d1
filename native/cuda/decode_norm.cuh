// Rows of x on their way into a decode chain's products: plain, or normalised.
#pragma once
#include "cuda/decode_rows.cuh"

namespace q4::gpu::decode {

// Loads that skip the first-level cache, which does not see what other blocks write while the kernel runs.
__device__ inline uint4 load_shared_bits(const bf16* p) { return __ldcg(reinterpret_cast<const uint4*>(p)); }
__device__ inline Pack<8> unpack8(const uint4& words) {
  const uint32_t w[4] = {words.x, words.y, words.z, words.w};
  Pack<8> v;
#pragma unroll
  for (int i = 0; i < 4; ++i) v.v[2 * i] = low_bf16(w[i]), v.v[2 * i + 1] = high_bf16(w[i]);
  return v;
}
__device__ inline uint4 pack8(const Pack<8>& v) {
  return make_uint4(pack_bf16(v.v[0], v.v[1]), pack_bf16(v.v[2], v.v[3]), pack_bf16(v.v[4], v.v[5]),
                    pack_bf16(v.v[6], v.v[7]));
}

// Eight elements from `at` on of what was left in parts, rounded. `elements`: of one part.
__device__ inline Pack<8> join_parts(const DecodeParts& parts, int64_t elements, int64_t at) {
  constexpr int kAtOnce = 4;  // in flight
  Pack<8> total{};
#pragma unroll 1
  for (int first = 0; first < parts.count; first += kAtOnce) {
    float4 a[kAtOnce], b[kAtOnce];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const float4* const from = reinterpret_cast<const float4*>(parts.sums + (first + i) * elements + at);
      a[i] = b[i] = make_float4(0, 0, 0, 0);
      if (first + i < parts.count) a[i] = __ldcg(from), b[i] = __ldcg(from + 1);
    }
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      total.v[0] += a[i].x, total.v[1] += a[i].y, total.v[2] += a[i].z, total.v[3] += a[i].w;
      total.v[4] += b[i].x, total.v[5] += b[i].y, total.v[6] += b[i].z, total.v[7] += b[i].w;
    }
  }
#pragma unroll
  for (int j = 0; j < 8; ++j) total.v[j] = rounded<bf16>(total.v[j]);
  return total;
}

// A piece of x + branch, and of branch alone.
struct Summed {
  Pack<8> sum, branch;
};
__device__ inline Summed sum_piece(const DecodeNorm& norm, int rows, int64_t at) {
  Summed s{unpack8(load_shared_bits(norm.x + at)), {}};
  if (norm.parts.count)
    s.branch = join_parts(norm.parts, int64_t{rows} * norm.width, at);
  else if (norm.branch)
    s.branch = unpack8(load_shared_bits(norm.branch + at));
  else
    return s;
#pragma unroll
  for (int j = 0; j < 8; ++j) s.sum.v[j] = rounded<bf16>(s.sum.v[j] + s.branch.v[j]);
  return s;
}

__device__ inline Pack<8> normalise_piece(const Pack<8>& x, float scale, const float* weight) {
  const Pack<8> w = load<8>(weight);
  Pack<8> y;
#pragma unroll
  for (int j = 0; j < 8; ++j) y.v[j] = rounded<bf16>(rounded<bf16>(x.v[j] * scale) * w.v[j]);
  return y;
}

__device__ inline float sum_of_squares(const Pack<8>& x) {
  float sum = 0;
#pragma unroll
  for (int j = 0; j < 8; ++j) sum += x.v[j] * x.v[j];
  return sum;
}

// rsqrt(mean of squares + eps) of a row: every warp leaves its share, and after a barrier every thread has the whole.
__device__ inline void leave_squares(float squares, float* partial) {
  squares = warp_sum(squares);
  if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = squares;
}
__device__ inline float joined_scale(const float* partial, const DecodeNorm& norm) {
  float total = 0;
#pragma unroll
  for (int w = 0; w < kWarps; ++w) total += partial[w];
  return rsqrtf(total / static_cast<float>(norm.width) + norm.eps);
}

// What a norm leaves behind, when every block normalises for itself: a block keeps its share of the pieces until all
// have read x and branch, whose places the results may take.
struct Pending {
  static constexpr int kPieces = 64;
  uint4 branch[kPieces], sum[kPieces], normed[kPieces];
  float rstd[kFusedNormRows];

  __device__ static int first_of(unsigned pieces, unsigned block) {
    return static_cast<int>(pieces * block / gridDim.x);
  }
  __device__ void leave(const DecodeNorm& norm, int rows) const {
    const int pieces = rows * norm.width / 8, first = first_of(pieces, blockIdx.x),
              count = first_of(pieces, blockIdx.x + 1) - first;
#pragma unroll 1
    for (int i = threadIdx.x; i < count; i += kThreads) {
      const int64_t at = (first + i) * 8;
      if (norm.branch_out) *reinterpret_cast<uint4*>(norm.branch_out + at) = branch[i];
      if (norm.sum) *reinterpret_cast<uint4*>(norm.sum + at) = sum[i];
      if (norm.normed_out) *reinterpret_cast<uint4*>(norm.normed_out + at) = normed[i];
    }
    if (blockIdx.x == 0 && norm.rstd && threadIdx.x < static_cast<unsigned>(rows))
      norm.rstd[threadIdx.x] = rstd[threadIdx.x];
  }
};

// Plain rows of x, the block's share of their width.
template <typename Rows>
__device__ void stage_rows(const DecodeProduct& product, int rows, const Share& share, uint8_t* x) {
  const int pieces = share.tiles * (Rows::kTile / 8), first = share.first_tile * (Rows::kTile / 8), all = rows * pieces;
  Rows::clear(x, threadIdx.x, kThreads);
#pragma unroll 1
  for (int base = 0; base < all; base += kThreads) {
    const int i = base + threadIdx.x, row = i / pieces, piece = i % pieces;
    const bool inside = i < all;
    uint4 words = make_uint4(0, 0, 0, 0);
    if (inside && (first + piece) * 8 < product.width)
      words = load_shared_bits(product.x + int64_t{row} * product.width + (first + piece) * 8);
    Rows::put(x, share.tiles, row, piece, inside, unpack8(words));
  }
}

// Normalised rows, in full width. raw: [rows][width] bf16 of shared memory; partial: [rows][kWarps] floats.
template <typename Rows>
__device__ void stage_norm(const DecodeNorm& norm, int rows, const Share& share, uint8_t* x, uint4* raw, float* partial,
                           Pending& pending) {
  const int pieces = norm.width / 8, padded = share.tiles * (Rows::kTile / 8), all = rows * pieces,
            first = Pending::first_of(all, blockIdx.x), last = Pending::first_of(all, blockIdx.x + 1);
  Rows::clear(x, threadIdx.x, kThreads);
#pragma unroll 1
  for (int row = 0; row < rows; ++row) {
    float squares = 0;
#pragma unroll 1
    for (int piece = threadIdx.x; piece < pieces; piece += kThreads) {
      const int at = row * pieces + piece;
      asm volatile("prefetch.global.L1 [%0];" ::"l"(norm.weight + piece * 8));  // needed after the barrier
      const Summed s = sum_piece(norm, rows, int64_t{at} * 8);
      squares += sum_of_squares(s.sum);
      raw[at] = pack8(s.sum);
      if (at >= first && at < last) pending.branch[at - first] = pack8(s.branch), pending.sum[at - first] = raw[at];
    }
    leave_squares(squares, partial + row * kWarps);
  }
  __syncthreads();
#pragma unroll 1
  for (int row = 0; row < rows; ++row) {
    const float scale = joined_scale(partial + row * kWarps, norm);
    if (threadIdx.x == 0) pending.rstd[row] = scale;
#pragma unroll 1
    for (int base = 0; base < padded; base += kThreads) {
      const int piece = base + threadIdx.x, at = row * pieces + piece;
      Pack<8> y{};
      if (piece < pieces) {
        y = normalise_piece(unpack8(raw[at]), scale, norm.weight + piece * 8);
        if (at >= first && at < last) pending.normed[at - first] = pack8(y);
      }
      Rows::put(x, share.tiles, row, piece, piece < padded, y);
    }
  }
}

// A phase of its own: a row a block, results in place. raw: [width] bf16 of shared memory.
__device__ inline void normalise_rows(const DecodeNorm& norm, int rows, uint4* raw, float* partial) {
  const int pieces = norm.width / 8;
#pragma unroll 1
  for (int row = blockIdx.x; row < rows; row += gridDim.x) {
    float squares = 0;
#pragma unroll 1
    for (int piece = threadIdx.x; piece < pieces; piece += kThreads) {
      const int64_t at = (int64_t{row} * pieces + piece) * 8;
      const Summed s = sum_piece(norm, rows, at);
      squares += sum_of_squares(s.sum);
      raw[piece] = pack8(s.sum);
      if (norm.branch_out) *reinterpret_cast<uint4*>(norm.branch_out + at) = pack8(s.branch);
      if (norm.sum) *reinterpret_cast<uint4*>(norm.sum + at) = raw[piece];
    }
    leave_squares(squares, partial);
    __syncthreads();
    const float scale = joined_scale(partial, norm);
#pragma unroll 1
    for (int piece = threadIdx.x; piece < pieces; piece += kThreads) {
      const int64_t at = (int64_t{row} * pieces + piece) * 8;
      const uint4 y = pack8(normalise_piece(unpack8(raw[piece]), scale, norm.weight + piece * 8));
      *reinterpret_cast<uint4*>(norm.normed + at) = y;
      *reinterpret_cast<uint4*>(norm.normed_out + at) = y;
    }
    if (norm.rstd && threadIdx.x == 0) norm.rstd[row] = scale;
    __syncthreads();
  }
}

// branch_out from its parts.
__device__ inline void join_rows(const DecodeNorm& norm, int rows) {
  const int64_t elements = int64_t{rows} * norm.width;
  for (int64_t at = (int64_t{blockIdx.x} * kThreads + threadIdx.x) * 8; at < elements;
       at += int64_t{gridDim.x} * kThreads * 8)
    *reinterpret_cast<uint4*>(norm.branch_out + at) = pack8(join_parts(norm.parts, elements, at));
}

}  // namespace q4::gpu::decode
