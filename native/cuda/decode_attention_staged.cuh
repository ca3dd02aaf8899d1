// Attention of a decode chain where one block has all keys of a sequence, and all of their values are staged: as a rule, of more
// rows. No warp needs a softmax of its own. All tell each other the largest score of their sixteen keys, leave weights that are
// counted from the largest of all, and then each takes eight elements of the values, of all keys: what it has is the output.
//   S[8 queries] of sixteen keys a warp as elsewhere (decode_softmax.cuh); O[8 queries, 8 dims] = P·V by mma m16n8k16, of whose
// sixteen rows queries take eight.
#pragma once
#include "cuda/decode_softmax.cuh"

namespace q4::gpu::decode {

// Bytes of a query's weights in shared memory: of all keys that are staged at most, and so that eight queries lie in different banks.
constexpr int kWeightPitch = StagedCache::kMostBoxes * StagedCache::kBoxKeys * 2 + 16;
static_assert(StagedCache::kMostBoxes * StagedCache::kBoxKeys <= kWarps * kKeys && D == kWarps * 8);
static_assert(kQueries * kWeightPitch <= StagedCache::kBoxBytes);

__device__ inline bool is_staged(const Task& t, const StagedCache& staged) {
  const int most = min(staged.value_boxes, StagedCache::kMostBoxes) * StagedCache::kBoxKeys;
  // Weights take the place of keys.
  return t.pieces == 1 && t.end - t.begin <= most && staged.key_boxes > 0;
}

// Staged values from the first that is not in the cache on: this step's, and zeros to the end of a box. Each warp two keys.
__device__ inline void complete_values(const Task& t, const StagedCache& staged, int keys, const AttentionMemory& m) {
  const int piece = threadIdx.x % 16;
#pragma unroll 1
  for (int key = t.cached() - t.begin + static_cast<int>(threadIdx.x / 16); key < keys; key += kThreads / 16) {
    uint4 v = make_uint4(0, 0, 0, 0);
    if (t.owner && key == t.past - t.begin) v = reinterpret_cast<const uint4*>(m.new_row[1])[piece];
    shared_store(staged.value(key, piece), v);
  }
}

// take_keys(fetched, first): the warp's keys, those from `first` on; announce(): that results come.
template <typename Rows, typename TakeKeys, typename Announce>
__device__ inline void attend_staged(const Task& task, const DecodeAttention& operands, const StagedCache& staged,
                                     const Exchange& to, AttentionMemory& memory, TakeKeys&& take_keys,
                                     Announce&& announce) {
  constexpr int kBoxKeys = StagedCache::kBoxKeys;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, c = lane % 4;
  const Task& t = reread(task);
  const int keys = (t.end - t.begin + kBoxKeys - 1) / kBoxKeys * kBoxKeys, first = t.begin + warp * kKeys;
  complete_values(t, staged, keys, memory);

  float score[4] = {-INFINITY, -INFINITY, -INFINITY, -INFINITY};  // keys g, g + 8 (e / 2) of queries 2c, 2c + 1 (e % 2)
  if (first < t.end) {
    Fetched<D / 2> fetched;
    take_keys(fetched, first);
    if (t.owner && t.past >= first && t.past < first + kKeys) fetched.patch_keys(memory.new_row[0], first, t.past);
    float product[4] = {};
    WarpSoftmax<D, D / 2>::multiply_keys(product, fetched, memory);
    const float scale = reread(operands).scale * kLog2e;
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const int key = first + g + e / 2 * 8;
      if (key < t.end && key >= t.from) score[e] = product[e] * scale;
    }
  }
  float largest[2] = {fmaxf(score[0], score[2]), fmaxf(score[1], score[3])};
#pragma unroll
  for (int offset = 4; offset < 32; offset *= 2)
#pragma unroll
    for (int e = 0; e < 2; ++e) largest[e] = fmaxf(largest[e], __shfl_xor_sync(0xffffffffu, largest[e], offset));
  if (g == 0) *reinterpret_cast<float2*>(&memory.top[warp][2 * c]) = make_float2(largest[0], largest[1]);
  block_sync();  // and nobody reads keys any more

  const uint32_t weights = staged.memory + staged.value_boxes * StagedCache::kBoxBytes;
  if (warp * kKeys < keys) {
#pragma unroll
    for (int w = 0; w < kWarps; ++w) {
      const float2 top = *reinterpret_cast<const float2*>(&memory.top[w][2 * c]);
      largest[0] = fmaxf(largest[0], top.x), largest[1] = fmaxf(largest[1], top.y);
    }
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const float origin = origin_of(largest[e]);
      const uint32_t both = pack_bf16(exp2_fast(score[e] - origin), exp2_fast(score[e + 2] - origin)),
                     place = weights + (2 * c + e) * kWeightPitch + (warp * kKeys + g) * 2;
      asm volatile(
          "{\n.reg .b16 low, high;\nmov.b32 {low, high}, %1;\nst.shared.b16 [%0], low;\nst.shared.b16 [%0 + 16], "
          "high;\n}" ::"r"(place),
          "r"(both)
          : "memory");
    }
  }
  announce();
  block_sync();

  // Lanes' rows of matrices: of weights queries, of values keys.
  const uint32_t weight_rows = weights + lane % 8 * kWeightPitch + lane / 8 * 16, value_rows = staged.value(lane, warp);
  constexpr uint32_t kOnes = 0x3f803f80;
  float out[4] = {}, other[4] = {}, sum[4] = {};  // of query g: elements 2c and 2c + 1; the sum of its weights
#pragma unroll 2
  for (int box = 0; box < keys / kBoxKeys; ++box) {
    const Four p = ldmatrix(weight_rows + box * kBoxKeys * 2),
               v = ldmatrix_transposed(value_rows + box * StagedCache::kBoxBytes);
    const uint32_t low[4] = {p.r[0], 0, p.r[1], 0}, high[4] = {p.r[2], 0, p.r[3], 0};
    mma(out, low, v.r[0], v.r[1]);
    mma(other, high, v.r[2], v.r[3]);
    mma(sum, low, kOnes, kOnes);
    mma(sum, high, kOnes, kOnes);
  }

  const DecodeAttention& call = reread(operands);
  const float inverse = sum[0] > 0 ? __fdividef(1.0f, sum[0]) : 0.0f;
  const uint32_t word = pack_bf16((out[0] + other[0]) * inverse, (out[1] + other[1]) * inverse),
                 apart = __shfl_xor_sync(0xffffffffu, word, 2);  // four elements further, or before
  if (g >= t.group) return;
  const int row = t.pair * t.group + g;
  if (c < 2)
    put_half(rows_in(to) + Rows::place(row * kGroups + warp / 2, warp % 2 * 2) + c * 8,
             __byte_perm(word, apart, 0x5410), __byte_perm(word, apart, 0x7632));
  if (call.out) *reinterpret_cast<uint32_t*>(call.out + int64_t{row} * D + warp * 8 + c * 2) = word;
  if (call.lse && warp == 0 && c == 0) {
    float top = -INFINITY;
#pragma unroll 1
    for (int w = 0; w < kWarps; ++w) top = fmaxf(top, memory.top[w][g]);
    call.lse[row] = top * kLog2 + logf(sum[0]);
  }
}

}  // namespace q4::gpu::decode
