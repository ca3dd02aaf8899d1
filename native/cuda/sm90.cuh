// Hopper's own instructions: bulk tensor copies that complete on barriers in shared memory, and warpgroup products.
// Source: PTX ISA, "Asynchronous Warpgroup Level Matrix Instructions" and "Tensor Map"; the layouts below are its canonical
// 128-byte-swizzled ones. Tiles are [rows][64] bf16 (128-byte rows); a matrix of 128 columns is two tiles, side by side.
#pragma once
#include <cuda.h>

#include "cuda/copy_engine.cuh"

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define Q4_SM90 1
#endif

namespace q4::gpu::sm90 {

#if defined(Q4_SM90)

// ---- barriers in shared memory ----
__device__ inline void barrier_init(uint64_t* barrier, int arrivals) {
  gpu::barrier_init(shared_address(barrier), arrivals);
}
__device__ inline void barrier_expect(uint64_t* barrier, int bytes) {
  gpu::barrier_expect(shared_address(barrier), bytes);
}
__device__ inline void barrier_arrive(uint64_t* barrier) { gpu::barrier_arrive(shared_address(barrier)); }
__device__ inline void barrier_wait(uint64_t* barrier, uint32_t parity) {
  gpu::barrier_wait(shared_address(barrier), parity);
}

// ---- how a kernel of warpgroups begins ----
// Its shared memory, at a multiple of 1024 bytes.
template <typename T>
__device__ inline T& shared_memory() {
  extern __shared__ uint8_t memory[];
  return *reinterpret_cast<T*>((reinterpret_cast<uintptr_t>(memory) + 1023) / 1024 * 1024);
}
// The thread's group, once the kernel before has ended. init(): by one thread, makes the barriers.
template <typename Init>
__device__ inline int begin_groups(Init&& init) {
  // From one lane, so that what depends on it is known to be the same in the warp.
  const int group = __shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x / 128), 0);
  if (threadIdx.x == 0) {
    init();
    fence_barriers();
    asm volatile("fence.proxy.async;" ::: "memory");
  }
  release_next();
  __syncthreads();
  wait_previous();
  return group;
}

// ---- bulk copies ----
// The box of a 3-dimensional map at (column, row, batch).
__device__ inline void copy_box(void* to, const CUtensorMap* map, int column, int row, int batch, uint64_t* barrier) {
  gpu::copy_box(shared_address(to), *map, column, row, batch, shared_address(barrier));
}
__device__ inline void copy_bytes(void* to, const void* from, int bytes, uint64_t* barrier) {
  gpu::copy_bytes(shared_address(to), from, bytes, shared_address(barrier));
}

// The same box from shared to global memory; rows past the end are dropped. Fence, then commit, then wait.
__device__ inline void store_box(const CUtensorMap* map, const void* from, int column, int row, int batch) {
  asm volatile("cp.async.bulk.tensor.3d.global.shared::cta.tile.bulk_group [%0, {%2, %3, %4}], [%1];" ::"l"(map),
               "r"(shared_address(from)), "r"(column), "r"(row), "r"(batch)
               : "memory");
}
__device__ inline void stores_commit() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }
// Until the sources of all stores have been read.
__device__ inline void stores_wait() { asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory"); }

// ---- barriers of whole warps; id 0 is __syncthreads' ----
__device__ inline void warps_sync(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
__device__ inline void warps_arrive(int id, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// ---- products ----
// What a product reads, `offset` bytes from `address` (kept apart, so that one addition is left for each product).
__device__ inline uint64_t operand(uint32_t address, uint32_t offset, uint32_t next) {
  return uint64_t{(address >> 4) + ((offset >> 4) + (next >> 4 << 16))} | uint64_t{1024 >> 4 | 1u << 30} << 32;
}
// A tile whose rows are m or n and whose 64 columns are k; `address` at a row that is a multiple of 8; 32 bytes for every
// 16 of k.
__device__ inline uint64_t rows_operand(uint32_t address, uint32_t offset) { return operand(address, offset, 16); }
// A tile whose rows are k and whose columns are n (B, transposed); the next 64 of n lie `next` bytes further; 2048 bytes
// for every 16 of k.
__device__ inline uint64_t columns_operand(uint32_t address, uint32_t offset, uint32_t next) {
  return operand(address, offset, next);
}
__device__ inline void products_begin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ inline void products_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int kPending>
__device__ inline void products_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}
// Keeps arithmetic on accumulators on its side of a wait: the compiler takes them for ready as soon as they are issued.
template <int kCount>
__device__ inline void settle(float (&d)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+f"(d[i])::"memory");
}
// d[64, n] += a·bᵀ (…_new: d = a·bᵀ), b in shared memory; a warp holds 16 rows of d, laid out as by mma m16n8k16.
// a lies in shared memory, or (…_held) in registers: an A fragment of m16n8k16 in each warp. b's rows are n, but k in
// …_columns.
#define Q4_LIST_32                                                          \
  "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}"
#define Q4_LIST_64                                                                   \
  "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "          \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, " \
  "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
  "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}"
#define Q4_D8(use, i) \
  use(d[i]), use(d[i + 1]), use(d[i + 2]), use(d[i + 3]), use(d[i + 4]), use(d[i + 5]), use(d[i + 6]), use(d[i + 7])
#define Q4_D32(use) Q4_D8(use, 0), Q4_D8(use, 8), Q4_D8(use, 16), Q4_D8(use, 24)
#define Q4_D64(use) Q4_D32(use), Q4_D8(use, 32), Q4_D8(use, 40), Q4_D8(use, 48), Q4_D8(use, 56)
// One instruction; `add` is "1" or "0"; the last of the operands says whether b's rows are k.
#define Q4_PRODUCT(n, add, list, operands)  \
  "{ .reg .pred add; setp.ne.b32 add, " add \
  ", 0;\n"                                  \
  "wgmma.mma_async.sync.aligned.m64n" n "k16.f32.bf16.bf16 " list ", " operands "; }"
__device__ inline void product(float (&d)[32], uint64_t a, uint64_t b) {
  asm volatile(Q4_PRODUCT("64", "1", Q4_LIST_32, "%32, %33, add, 1, 1, 0, 0") : Q4_D32("+f") : "l"(a), "l"(b));
}
__device__ inline void product_new(float (&d)[32], uint64_t a, uint64_t b) {
  asm volatile(Q4_PRODUCT("64", "0", Q4_LIST_32, "%32, %33, add, 1, 1, 0, 0") : Q4_D32("=f") : "l"(a), "l"(b));
}
__device__ inline void product_held(float (&d)[32], const uint32_t (&a)[4], uint64_t b) {
  asm volatile(Q4_PRODUCT("64", "1", Q4_LIST_32, "{%32, %33, %34, %35}, %36, add, 1, 1, 0")
               : Q4_D32("+f")
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}
__device__ inline void product_held_new(float (&d)[32], const uint32_t (&a)[4], uint64_t b) {
  asm volatile(Q4_PRODUCT("64", "0", Q4_LIST_32, "{%32, %33, %34, %35}, %36, add, 1, 1, 0")
               : Q4_D32("=f")
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}
__device__ inline void product_held(float (&d)[64], const uint32_t (&a)[4], uint64_t b) {
  asm volatile(Q4_PRODUCT("128", "1", Q4_LIST_64, "{%64, %65, %66, %67}, %68, add, 1, 1, 0")
               : Q4_D64("+f")
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}
__device__ inline void product_held_new(float (&d)[64], const uint32_t (&a)[4], uint64_t b) {
  asm volatile(Q4_PRODUCT("128", "0", Q4_LIST_64, "{%64, %65, %66, %67}, %68, add, 1, 1, 0")
               : Q4_D64("=f")
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}
__device__ inline void product_columns(float (&d)[64], const uint32_t (&a)[4], uint64_t b) {
  asm volatile(Q4_PRODUCT("128", "1", Q4_LIST_64, "{%64, %65, %66, %67}, %68, add, 1, 1, 1")
               : Q4_D64("+f")
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}

// Keeps arithmetic that `x` ≥ 0 results from in front of the next wait: the assembler would move the wait up, as nothing
// that the arithmetic needs is waited for, and nothing would be left to do while the products run.
__device__ inline void finish_before(float x) {
  if (__any_sync(0xffffffffu, x < 0)) asm volatile("nanosleep.u32 0;" ::: "memory");
}
template <int kCount>
__device__ inline void finish_before(const float (&x)[kCount]) {
  uint32_t bits = 0;
#pragma unroll
  for (int i = 0; i < kCount; ++i) bits |= __float_as_uint(x[i]);
  finish_before(static_cast<int>(bits) < 0 ? -1.0f : 0.0f);
}

// A warpgroup's share of the block's registers: what all take in sum must not be more than the block was launched with, or
// they wait for ever.
template <int kRegisters>
__device__ inline void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
__device__ inline void give_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

#endif  // Q4_SM90

// A map of bf16 [batch][rows][columns] (columns contiguous) in boxes of 64 columns × `box_rows` rows, 128-byte swizzle;
// rows past the end read as zeros.
CUtensorMap tile_map(const void* data, int64_t columns, int64_t rows, int64_t batch, int box_rows);

}  // namespace q4::gpu::sm90
