// How the blocks of a decode chain hand results on: 16 bytes at a time, of which the last are a tag that no earlier phase
// had. Who needs a piece reads it until the tag is right. That takes one trip to the second-level cache each way;
// results, a fence, a count of blocks and reading the results take twice that. (As NCCL's low-latency protocol does.)
// Sixteen neighbouring elements of a row are a group of whole sectors: two pieces of what the products of the next phase
// take, with tags of half a word (decode_rows.cuh), or four of bf16, two words each, with tags of a word.
// Of more rows products take whole rows without tags, whose places are cleared some phases before.
#pragma once
#include "cuda/decode_weights.cuh"

namespace q4::gpu::decode {

constexpr int kElements = 16;  // of a group
constexpr int kQuad = 4;       // of a thread
constexpr int kGroupPieces = 4;
constexpr int kNumbered = 8;    // neighbouring groups, a warp's, that have a number together, of more rows
constexpr int kPollPause = 20;  // nanoseconds; without it warps that still work would wait behind what others ask for

struct Exchange {
  uint4* slot;
  uint32_t tag;
};
constexpr int64_t kCopyPieces = kTaggedBytes / kExchangeCopies / 16;

// Of phase p, the results: pieces of [splits][rows][groups]. Few rows (kFew) take turns in three slots, which stay in the
// second-level cache: with eight a step takes 10 µs more.
template <bool kFew>
__device__ inline Exchange exchange_of(const DecodeChain& chain, uint32_t first_tag, int p) {
  constexpr uint32_t kSlots = kFew ? 3 : kExchangeSlots;
  return {reinterpret_cast<uint4*>(chain.exchange + static_cast<uint32_t>(p) % kSlots * kExchangeSlotBytes),
          first_tag + p};
}
// The copy that this block reads.
template <bool kCopies>
__device__ inline Exchange copy_of(const Exchange& e) {
  return {e.slot + (kCopies ? blockIdx.x % kExchangeCopies * kCopyPieces : 0), e.tag};
}

// The weights that flow by should not drive out what is handed on: what createpolicy.fractional.L2::evict_last makes of 1.0.
constexpr uint64_t kEvictLast = 0x14f0000000000000;
// 128 bits are written and read as one (PTX ISA, st and ld with .b128 and a scope).
__device__ inline void put_piece(uint4* to, uint32_t a, uint32_t b, uint32_t c, uint32_t tag) {
  asm volatile(
      "{\n.reg .b64 low, high;\n.reg .b128 all;\n"
      "mov.b64 low, {%1, %2};\nmov.b64 high, {%3, %4};\nmov.b128 all, {low, high};\n"
      "st.relaxed.gpu.global.L2::cache_hint.b128 [%0], all, %5;\n}" ::"l"(to),
      "r"(a), "r"(b), "r"(c), "r"(tag), "l"(kEvictLast)
      : "memory");
}
template <bool kCopies>
__device__ inline void post(const Exchange& to, int piece, uint32_t a, uint32_t b, uint32_t c) {
#pragma unroll
  for (int i = 0; i < (kCopies ? kExchangeCopies : 1); ++i)
    put_piece(to.slot + i * kCopyPieces + piece, a, b, c, to.tag);
}
__device__ inline uint4 peek(const uint4* from) {
  uint4 v;
  asm volatile(
      "{\n.reg .b64 low, high;\n.reg .b128 all;\n"
      "ld.relaxed.gpu.global.L2::cache_hint.b128 all, [%4], %5;\n"
      "mov.b128 {low, high}, all;\nmov.b64 {%0, %1}, low;\nmov.b64 {%2, %3}, high;\n}"
      : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
      : "l"(from), "l"(kEvictLast)
      : "memory");
  return v;
}
// Pieces, once all have come: where is piece i.
template <int kCount, typename Where>
__device__ inline void collect_at(uint4 (&v)[kCount], Where&& where, uint32_t tag) {
  for (;;) {
    bool arrived = true;
#pragma unroll
    for (int i = 0; i < kCount; ++i) v[i] = peek(where(i));
#pragma unroll
    for (int i = 0; i < kCount; ++i) arrived &= v[i].w == tag;
    if (arrived) break;
    __nanosleep(kPollPause);
  }
}
template <int kCount>
__device__ inline void collect(uint4 (&v)[kCount], const uint4* from, uint32_t tag) {
  collect_at(
      v, [&](int i) { return from + i; }, tag);
}

// Four neighbouring lanes have the elements of one group each, four a lane: called by whole warps, stored where `inside`.
template <bool kCopies>
__device__ inline void post_halves(const Exchange& to, int group, const float (&v)[kQuad], bool inside) {
  if (inside)
    post<kCopies>(to, group * kGroupPieces + threadIdx.x % 4, pack_bf16(v[0], v[1]), pack_bf16(v[2], v[3]), 0);
}

// Rows: eight bytes at a time, which no results are: kUnwritten is two NaNs of bf16, or one of f32, that arithmetic never
// makes.
constexpr uint32_t kUnwritten = 0xffffffffu;
__device__ inline char* rows_in(const Exchange& e) { return reinterpret_cast<char*>(e.slot) + kTaggedBytes; }
__device__ inline float* numbers_in(const Exchange& e) { return reinterpret_cast<float*>(rows_in(e) + kRowsBytes); }
__device__ inline void put_half(void* to, uint32_t low, uint32_t high) {
  asm volatile(
      "{\n.reg .b64 both;\nmov.b64 both, {%1, %2};\nst.relaxed.gpu.global.L2::cache_hint.b64 [%0], both, %3;\n}" ::"l"(
          to),
      "r"(low), "r"(high), "l"(kEvictLast)
      : "memory");
}
__device__ inline void put_number(float* to, float number) {
  asm volatile("st.relaxed.gpu.global.f32 [%0], %1;" ::"l"(to), "f"(number) : "memory");
}
__device__ inline float peek_number(const float* from) {
  float v;
  asm volatile("ld.relaxed.gpu.global.f32 %0, [%1];" : "=f"(v) : "l"(from) : "memory");
  return v;
}
__device__ inline bool is_written(const uint4& halves) { return halves.x != kUnwritten && halves.z != kUnwritten; }
__device__ inline bool is_written(float number) { return __float_as_uint(number) != kUnwritten; }

// By a warp of every block, kClearedAhead phases before a phase hands on rows of so many elements: nobody reads what was
// there, of as many phases ago, any more, as every block waits in every phase for all that have come to its end. It clears
// whole lines, and sees to it that they are clear before its block says that it has come further. (Of so many phases one is a
// sum, which the host sees to: to its end all blocks come, to a product's only those that have work.)
__device__ inline void clear_rows(const Exchange& e, int rows, int width) {
  // All that a block clears at a time under way at once: each trip takes thousands of cycles while weights stream in, and the
  // end of a phase waits for this.
  constexpr int kLine = 512, kAtOnce = 6;
  const int lane = threadIdx.x % 32, row_lines = rows * width * 2 / kLine,
            lines = row_lines + (rows * width / (kElements * kNumbered) * 4 + kLine - 1) / kLine;
  const auto place = [&](int line) {
    char* const to = line < row_lines ? rows_in(e) + line * kLine
                                      : reinterpret_cast<char*>(numbers_in(e)) + (line - row_lines) * kLine;
    return reinterpret_cast<uint4*>(to + lane * 16);
  };
#pragma unroll 1
  for (int first = blockIdx.x; first < lines; first += kAtOnce * gridDim.x) {
#pragma unroll
    for (int j = 0; j < kAtOnce; ++j)
      if (const int line = first + j * gridDim.x; line < lines)
        put_piece(place(line), kUnwritten, kUnwritten, kUnwritten, kUnwritten);
    // Once these are answered the places are clear.
    float cleared[kAtOnce] = {};
#pragma unroll
    for (int j = 0; j < kAtOnce; ++j)
      if (const int line = first + j * gridDim.x; line < lines)
        cleared[j] = peek_number(reinterpret_cast<const float*>(place(line)));
#pragma unroll
    for (int j = 0; j < kAtOnce; ++j) asm volatile("" ::"f"(cleared[j]));
  }
}

// Sums over a piece of a width: a piece has four, whose lowest 8 of 32 bits are cut off. (They are rounded to bf16 when they are
// complete.) Of what is cut off, kHalfOfCut makes up for half, as a factor.
constexpr float kHalfOfCut = 1.0f + 0x1p-17f;
__device__ inline void post_sums(const Exchange& to, int group, const float (&v)[kQuad], bool inside) {
  const uint32_t last = __float_as_uint(v[3]);
  if (inside)
    post<false>(to, group * kGroupPieces + threadIdx.x % 4, __byte_perm(__float_as_uint(v[0]), last, 0x3217),
                __byte_perm(__float_as_uint(v[1]), last, 0x3216), __byte_perm(__float_as_uint(v[2]), last, 0x3215));
}

// What a piece of four sums adds.
__device__ inline void add_sums(float (&v)[kQuad], const uint4& p) {
  const uint32_t last = __byte_perm(__byte_perm(p.x, p.y, 0x0400), p.z, 0x3240);
  v[0] += __uint_as_float(p.x & ~255u), v[1] += __uint_as_float(p.y & ~255u);
  v[2] += __uint_as_float(p.z & ~255u), v[3] += __uint_as_float(last & ~255u);
}

// This lane's elements of a group.
__device__ inline void collect_halves(float (&v)[kQuad], const Exchange& from, int group) {
  uint4 p[1];
  collect(p, from.slot + group * kGroupPieces + threadIdx.x % 4, from.tag);
  v[0] = low_bf16(p[0].x), v[1] = high_bf16(p[0].x), v[2] = low_bf16(p[0].y), v[3] = high_bf16(p[0].y);
}
// The same of sums, of all pieces of the width, added in their order; they are `stride` groups apart.
__device__ inline void collect_sums(float (&v)[kQuad], const Exchange& from, int group, int splits, int stride) {
  constexpr int kAtOnce = 5;
  v[0] = v[1] = v[2] = v[3] = 0;
#pragma unroll 1
  for (int first = 0; first < splits; first += kAtOnce) {
    const uint4* const pieces = from.slot + (first * stride + group) * kGroupPieces + threadIdx.x % 4;
    uint4 p[kAtOnce];
    collect_at(
        p, [&](int i) { return pieces + min(i, splits - 1 - first) * stride * kGroupPieces; }, from.tag);
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      if (first + i >= splits) break;
      add_sums(v, p[i]);
    }
  }
}

// Of few rows, behind the pieces: what the blocks that share an attention's keys leave of their softmaxes, by block and
// query, two pieces for every four values.
constexpr int64_t kPartPieces = kCopyPieces / 2;
constexpr int kPartLanes = 8;
__device__ inline uint4* part_of(const Exchange& e, int block, int query, int lane) {
  return e.slot + kPartPieces + ((block * kDecodeQueries + query) * kPartLanes + lane) * 2;
}

// All warps of all blocks; once a kernel.
__device__ inline void grid_sync(uint32_t* counter) {
  block_sync();
  if (threadIdx.x == 0) {
    asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(counter) : "memory");
    uint32_t arrived;
    do {
      asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(arrived) : "l"(counter) : "memory");
    } while (arrived < gridDim.x);
  }
  block_sync();
}

// What the blocks have left of a phase is waited for in two steps: a thread looks at their number, which is only a hint,
// as nothing orders it after what they left, and then all look at the pieces' tags. Looking at all pieces all the time
// would keep the second-level cache from those that still work.
// By one thread; the hint may be given before the pieces are there.
__device__ inline void announce(uint32_t* counter) {
  asm volatile("red.relaxed.gpu.global.add.u32 [%0], 1;" ::"l"(counter) : "memory");
}
__device__ inline int arrived(const uint32_t* counter) {
  int n;
  asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(n) : "l"(counter) : "memory");
  return n;
}
// By one thread.
__device__ inline void await(const uint32_t* counter, int arrivals) {
  while (arrived(counter) < arrivals) continue;
}

}  // namespace q4::gpu::decode
