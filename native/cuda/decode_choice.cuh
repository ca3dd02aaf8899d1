// The end of a decode step's chain: every row's next token, chosen greedily by the warps that brought the weights before, or
// prepared. (By those that compute, the code of all other phases would have fewer registers.) Every block finds the best of
// the logits that it left itself; the one that is last to say its best chooses.
#pragma once
#include "cuda/decode_finish.cuh"
#include "cuda/sampling.cuh"

namespace q4::gpu::decode {

// A row's best token so far is a number whose upper half is its key, complemented, and the lower its id, complemented. They
// lie in lines of their own: all blocks write to each.
constexpr int kBestApart = kBestBytes / kDecodeRows / 8;

// By kChoosing warps, of which this is number `warp`. share: the block's of the product before. best:
// of a row, and done: how many warps have said theirs; both are zeros between kernels.
template <int kChoosing>
__device__ inline void choose(const DecodeChoice& choice, const Share& share, int rows, int warp,
                              unsigned long long* best, uint32_t* done, const DecodeTold& told) {
  using namespace sampling;
  constexpr int kAtOnce = 5, kQuads = kElements / kQuad;
  const int lane = threadIdx.x % 32, vocabulary = choice.vocabulary, quads = share.count * kQuads;
  // Neighbouring lanes have a row.
  const int lanes = rows <= 1   ? 32
                    : rows <= 2 ? 16
                    : rows <= 4 ? 8
                    : rows <= 8 ? 4
                                : 2,
            b = min(lane / lanes, rows - 1);
  const Logits logits(choice.logits, choice.sampling, choice.seen, b, vocabulary);
  Best mine = no_best(vocabulary);
  const auto token_of = [&](int quad) { return share.item(quad / kQuads) * kElements + quad % kQuads * kQuad; };
  int quad = warp * lanes + lane % lanes;
  if (logits.plain() && vocabulary % kElements == 0) {
#pragma unroll 1
    for (; quad < quads; quad += kAtOnce * kChoosing * lanes) {
      float4 x[kAtOnce];
      // The last one again where there are fewer.
#pragma unroll
      for (int j = 0; j < kAtOnce; ++j)
        x[j] = __ldcg(
            reinterpret_cast<const float4*>(logits.from + token_of(min(quad + j * kChoosing * lanes, quads - 1))));
#pragma unroll
      for (int j = 0; j < kAtOnce; ++j) {
        const int at = token_of(min(quad + j * kChoosing * lanes, quads - 1));
        mine = better(mine, Best{key_of(x[j].x), at}), mine = better(mine, Best{key_of(x[j].y), at + 1});
        mine = better(mine, Best{key_of(x[j].z), at + 2}), mine = better(mine, Best{key_of(x[j].w), at + 3});
      }
    }
  } else {
#pragma unroll 1
    for (; quad < quads; quad += kChoosing * lanes)
#pragma unroll 1
      for (int at = token_of(quad), end = min(at + kQuad, vocabulary); at < end; ++at)
        mine = better(mine, Best{key_of(logits[at]), at});
  }
#pragma unroll 1
  for (int offset = 1; offset < lanes; offset *= 2) mine = better_of_lanes(mine, offset);
  if (lane % lanes == 0 && lane / lanes < rows)
    atomicMax(best + b * kBestApart, ~(uint64_t{mine.key} << 32 | static_cast<uint32_t>(mine.id)));
  __threadfence();
  __syncwarp();
  bool last = false;
  if (lane == 0) last = atomicAdd(done, 1u) == gridDim.x * kChoosing - 1;
  if (!__shfl_sync(0xffffffffu, last, 0)) return;
  __threadfence();
  if (lane == 0) *done = 0;
  if (lane >= rows) return;
  const int id = static_cast<int>(~atomicExch(best + lane * kBestApart, 0));
  choice.ids[lane] = id;
  if (told.to)
    *const_cast<volatile uint64_t*>(reinterpret_cast<uint64_t*>(told.to + lane)) =
        uint64_t{told.number} << 32 | static_cast<uint32_t>(id);
  choice.seen[int64_t{lane} * vocabulary + id] = 1;
  if (choice.counted)
    choice.counted[lane] = static_cast<int>(min(int64_t{choice.counted[lane]} + choice.by, int64_t{choice.max}));
}

}  // namespace q4::gpu::decode
