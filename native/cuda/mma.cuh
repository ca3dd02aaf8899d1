// Tensor-core tiles for every GPU from 8.0: asynchronous copies into swizzled shared memory, ldmatrix, mma m16n8k16.
// Fragment layouts: PTX ISA, "Matrix Fragments for mma.m16n8k16". g = lane / 4 and c = lane % 4 below.
#pragma once
#include "cuda/device.cuh"

namespace q4::gpu {

// 16 bytes from global to shared memory; zeros when `inside` is false (the address must still be one that exists).
__device__ inline void copy_async(uint32_t to, const void* from, bool inside) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(inside ? 16 : 0));
}
__device__ inline void copy_commit() { asm volatile("cp.async.commit_group;"); }
template <int kPending>
__device__ inline void copy_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

// A tile [rows][D] of bf16. 16-byte chunk q of row r lies at chunk q ^ (r % 8), so that eight rows of one column of
// chunks fall into eight different bank groups.
// kLate: addresses of fragments are made where they are used. The compiler likes to keep those of all chunks over a loop,
// and where sums fill the registers it then spills.
template <int D, bool kLate = false>
struct Tile {
  static constexpr int kChunks = D / 8;
  static constexpr int bytes(int rows) { return rows * D * 2; }
  uint32_t base;
  __device__ uint32_t at(int row, int chunk) const { return base + (row * kChunks + (chunk ^ (row & 7))) * 16; }
  // Chunk + odd of a row; chunk is even, odd 0 or 1.
  __device__ uint32_t fragment(int row, int chunk, int odd) const {
    if constexpr (!kLate) return at(row, chunk + odd);
    uint32_t swizzled;
    asm volatile("xor.b32 %0, %1, %2;" : "=r"(swizzled) : "r"(((row & 7) ^ odd) * 16), "r"(chunk * 16));
    return base + row * kChunks * 16 + swizzled;
  }
};

// Loads rows [first, first + kRows) of a matrix with `stride` elements a row; rows from `limit` on and columns from `dim`
// on are zero.
template <int D, int kRows, int kThreads, bool kLate>
__device__ inline void load_tile(const Tile<D, kLate>& tile, const bf16* matrix, int64_t stride, int first, int limit,
                                 int dim) {
  constexpr int kPieces = kRows * Tile<D>::kChunks;
  static_assert(kPieces % kThreads == 0);
#pragma unroll(kLate ? 4 : kPieces / kThreads)
  for (int i = 0; i < kPieces / kThreads; ++i) {
    const int piece = i * kThreads + threadIdx.x, row = piece / Tile<D>::kChunks, chunk = piece % Tile<D>::kChunks;
    const bool inside = first + row < limit && chunk * 8 < dim;
    copy_async(tile.at(row, chunk), inside ? matrix + (first + row) * stride + chunk * 8 : matrix, inside);
  }
}

struct Four {
  uint32_t r[4];
};
__device__ inline Four ldmatrix(uint32_t address) {
  Four f;
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(f.r[0]), "=r"(f.r[1]), "=r"(f.r[2]), "=r"(f.r[3])
               : "r"(address));
  return f;
}
__device__ inline Four ldmatrix_transposed(uint32_t address) {
  Four f;
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(f.r[0]), "=r"(f.r[1]), "=r"(f.r[2]), "=r"(f.r[3])
               : "r"(address));
  return f;
}
// A fragment of rows [row, row + 16), k = [8·chunk, +16).
template <int D, bool kLate>
__device__ inline Four load_a(const Tile<D, kLate>& tile, int row, int chunk) {
  const int lane = threadIdx.x % 32;
  return ldmatrix(tile.fragment(row + (lane & 15), chunk, lane >> 4));
}
// B fragments of two n-tiles: n = the tile's rows [row, row + 16), k = its columns [8·chunk, +16). r[0..1], r[2..3].
template <int D, bool kLate>
__device__ inline Four load_b(const Tile<D, kLate>& tile, int row, int chunk) {
  const int lane = threadIdx.x % 32;
  return ldmatrix(tile.fragment(row + (lane & 7) + (lane >> 4) * 8, chunk, lane >> 3 & 1));
}
// B fragments of two n-tiles: k = the tile's rows [row, row + 16), n = its columns [8·chunk, +16).
template <int D, bool kLate>
__device__ inline Four load_b_transposed(const Tile<D, kLate>& tile, int row, int chunk) {
  const int lane = threadIdx.x % 32;
  return ldmatrix_transposed(tile.fragment(row + (lane & 15), chunk, lane >> 4));
}

// d += a·b for a 16×16 · 16×8 product; d[0..1] row g, d[2..3] row g + 8, columns 2c, 2c + 1.
__device__ inline void mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ inline float quad_max(float x) {
  x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 1));
  return fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 2));
}
__device__ inline float quad_sum(float x) {
  x += __shfl_xor_sync(0xffffffffu, x, 1);
  return x + __shfl_xor_sync(0xffffffffu, x, 2);
}

}  // namespace q4::gpu
