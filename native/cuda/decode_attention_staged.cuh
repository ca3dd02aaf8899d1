// Attention of a decode chain where one block has all keys of a sequence, and all of their values are staged: as a rule, of more
// rows. No warp needs a softmax of its own. All tell each other the largest score of their sixteen keys, leave weights that are
// counted from the largest of all, and then half of the warps take sixteen elements each of the values, of all keys: what a warp
// has is the output.
//   Sᵀ[16 keys, 8 queries] = K·Qᵀ and Oᵀ[16 dims, 8 queries] = Vᵀ·Pᵀ by mma m16n8k16, all operands by ldmatrix: what bounds this
// is shared memory, where sixteen warps read at once.
#pragma once
#include "cuda/decode_softmax.cuh"
#include "cuda/sampling.cuh"

namespace q4::gpu::decode {

// Bytes of a query's weights in shared memory: of all keys that are staged at most, and so that eight queries lie in different banks.
constexpr int kWeightPitch = StagedCache::kMostBoxes * StagedCache::kBoxKeys * 2 + 16;
static_assert(StagedCache::kMostBoxes * StagedCache::kBoxKeys <= kWarps * kKeys && D / 16 <= kWarps);
static_assert(kQueries * kWeightPitch <= StagedCache::kBoxBytes);

__device__ inline bool is_staged(const Task& t, const StagedCache& staged) {
  const int most = min(staged.value_boxes, StagedCache::kMostBoxes) * StagedCache::kBoxKeys;
  // Weights take the place of the first keys.
  return t.pieces == 1 && t.end - t.begin <= most && staged.key_boxes > 0;
}

// Staged values from the first that is not in the cache on: this step's, and zeros to the end of a box.
__device__ inline void complete_values(const StagedCache& staged, int keys, int cached, int fresh,
                                       const AttentionMemory& m) {
  static_assert(StagedCache::kBoxKeys * 16 == kThreads);
  const int piece = threadIdx.x % 16, key = keys - StagedCache::kBoxKeys + static_cast<int>(threadIdx.x / 16);
  if (key < cached) return;
  uint4 v = make_uint4(0, 0, 0, 0);
  if (key == fresh) v = reinterpret_cast<const uint4*>(m.new_row[1])[piece];
  shared_store(staged.value(key, piece), v);
}

// Products of sixteen staged keys, the first `at` places from the task's first, with the queries: keys g, g + 8 (e / 2) of queries
// 2c, 2c + 1 (e % 2). `fresh`: the place of this step's key.
__device__ inline void multiply_staged_keys(float (&product)[4], const StagedCache& staged, int at, int fresh,
                                            const AttentionMemory& m) {
  const int lane = threadIdx.x % 32;
  if (fresh >= at && fresh < at + kKeys) {
    if (lane < D / 8) shared_store(staged.key(fresh, lane), reinterpret_cast<const uint4*>(m.new_row[0])[lane]);
    __syncwarp();
  }
  const uint32_t key_rows = staged.key(at + lane % 16, lane / 16),
                 query_rows = shared_address(m.q[lane % 8]) + lane / 8 * 16;
  float other[4] = {};  // two, so that products need not wait for each other
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    // Of a row 128 bytes are a half, whose pieces the swizzle keeps together.
    const uint32_t half = j / 2 * StagedCache::kHalfBytes, piece = j % 2 * 64;
    const Four q = ldmatrix(query_rows + j * 64), a = ldmatrix((key_rows ^ piece) + half),
               b = ldmatrix((key_rows ^ (piece + 32)) + half);
    mma(product, a.r, q.r[0], q.r[1]);
    mma(other, b.r, q.r[2], q.r[3]);
  }
#pragma unroll
  for (int e = 0; e < 4; ++e) product[e] += other[e];
}

// Before all warps meet and attend.
__device__ inline void forget_top(AttentionMemory& m) {
  if (threadIdx.x < kQueries) m.top[threadIdx.x] = sampling::key_of(-INFINITY);
}

// take_keys(fetched, first): the warp's keys, those from `first` on, where they are not staged; announce(): that results come.
template <typename Rows, typename TakeKeys, typename Announce>
__device__ inline void attend_staged(const Task& task, const DecodeAttention& operands, const StagedCache& staged,
                                     const Exchange& to, AttentionMemory& memory, TakeKeys&& take_keys,
                                     Announce&& announce) {
  constexpr int kBoxKeys = StagedCache::kBoxKeys;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, c = lane % 4, at = warp * kKeys;
  const Task& t = reread(task);
  // Counted from the task's first key.
  const int length = t.end - t.begin, from = t.from - t.begin, fresh = t.owner ? t.past - t.begin : -1,
            keys = (length + kBoxKeys - 1) / kBoxKeys * kBoxKeys;
  complete_values(staged, keys, t.cached() - t.begin, fresh, memory);

  float score[4] = {-INFINITY, -INFINITY, -INFINITY, -INFINITY};
  if (at < length) {
    float product[4] = {};
    if (staged.has_keys(at)) {
      multiply_staged_keys(product, staged, at, fresh, memory);
    } else {
      Fetched<D / 2> fetched;
      take_keys(fetched, t.begin + at);
      if (fresh >= at && fresh < at + kKeys) fetched.patch_keys(memory.new_row[0], at, fresh);
      WarpSoftmax<D, D / 2>::multiply_keys(product, fetched, memory);
    }
    const float scale = reread(operands).scale * kLog2e;
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const int key = at + g + e / 2 * 8;
      if (key < length && key >= from) score[e] = product[e] * scale;
    }
    float largest[2] = {fmaxf(score[0], score[2]), fmaxf(score[1], score[3])};
#pragma unroll
    for (int offset = 4; offset < 32; offset *= 2)
#pragma unroll
      for (int e = 0; e < 2; ++e) largest[e] = fmaxf(largest[e], __shfl_xor_sync(0xffffffffu, largest[e], offset));
    if (g < 2) atomicMin(&memory.top[2 * c + g], sampling::key_of(g ? largest[1] : largest[0]));
  }
  block_sync();  // and nobody reads keys any more
  announce();

  const uint32_t weights = staged.memory;
  if (at < keys) {
    const uint2 top = *reinterpret_cast<const uint2*>(&memory.top[2 * c]);
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const float origin = origin_of(sampling::logit_of(e ? top.y : top.x));
      const uint32_t both = pack_bf16(exp2_fast(score[e] - origin), exp2_fast(score[e + 2] - origin)),
                     place = weights + (2 * c + e) * kWeightPitch + (at + g) * 2;
      asm volatile(
          "{\n.reg .b16 low, high;\nmov.b32 {low, high}, %1;\nst.shared.b16 [%0], low;\nst.shared.b16 [%0 + 16], "
          "high;\n}" ::"r"(place),
          "r"(both)
          : "memory");
    }
  }
  block_sync();
  if (warp >= D / 16) return;

  // Lanes' rows of matrices: of weights queries, of values keys.
  const uint32_t weight_rows = weights + lane % 8 * kWeightPitch + lane / 8 * 16,
                 value_rows = staged.value(lane % 8 + lane / 16 * 8, warp * 2 + lane / 8 % 2);
  constexpr uint32_t kOnes[4] = {0x3f803f80, 0x3f803f80, 0x3f803f80, 0x3f803f80};
  float out[4] = {}, other[4] = {},
        sum[4] = {};  // elements g, g + 8 (e / 2) of queries 2c, 2c + 1; sums of their weights
#pragma unroll 2
  for (int box = 0; box < keys / kBoxKeys; ++box) {
    const uint32_t values = value_rows + box * StagedCache::kBoxBytes;
    const Four p = ldmatrix(weight_rows + box * kBoxKeys * 2), low = ldmatrix_transposed(values),
               high = ldmatrix_transposed(values + 16 * 128);
    mma(out, low.r, p.r[0], p.r[1]);
    mma(sum, kOnes, p.r[0], p.r[1]);
    mma(other, high.r, p.r[2], p.r[3]);
    mma(sum, kOnes, p.r[2], p.r[3]);
  }

  const DecodeAttention& call = reread(operands);
  float inverse[2];
#pragma unroll
  for (int e = 0; e < 2; ++e) inverse[e] = sum[e] > 0 ? __fdividef(1.0f, sum[e]) : 0.0f;
  // Elements 2c and 2c + 1 of query g, of both halves of the sixteen.
  uint32_t word[2];
#pragma unroll
  for (int half = 0; half < 2; ++half)
    word[half] = turned(pack_bf16((out[half * 2] + other[half * 2]) * inverse[0],
                                  (out[half * 2 + 1] + other[half * 2 + 1]) * inverse[1]));
  // A lane hands on four elements, those of lanes c and c ^ 2: two lanes the first half's, two the second's.
  const int half = c / 2;
  const uint32_t mine = half ? word[1] : word[0], apart = __shfl_xor_sync(0xffffffffu, half ? word[0] : word[1], 2),
                 first = half ? apart : mine, second = half ? mine : apart;
  float total = 0;  // of query g
  if (call.lse && warp == 0) {
    const float both[2] = {__shfl_sync(0xffffffffu, sum[0], g / 2), __shfl_sync(0xffffffffu, sum[1], g / 2)};
    total = g % 2 ? both[1] : both[0];
  }
  if (g >= t.group) return;
  const int row = t.pair * t.group + g;
  put_half(rows_in(to) + Rows::place(row * kGroups + warp, half * 2) + c % 2 * 8, __byte_perm(first, second, 0x5410),
           __byte_perm(first, second, 0x7632));
  if (call.out)
#pragma unroll
    for (int i = 0; i < 2; ++i)
      *reinterpret_cast<uint32_t*>(call.out + int64_t{row} * D + warp * 16 + i * 8 + c * 2) = word[i];
  if (call.lse && warp == 0 && c == 0) call.lse[row] = sampling::logit_of(memory.top[g]) * kLog2 + logf(total);
}

}  // namespace q4::gpu::decode
