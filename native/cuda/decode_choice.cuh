// The end of a decode step's chain: every row's next token, chosen greedily by the warps that brought the weights before, or
// prepared. (By those that compute, the code of all other phases would have fewer registers.) Every warp finds the best of
// some of the logits that its block left, and posts them; a row's block takes the best of all.
#pragma once
#include "cuda/decode_finish.cuh"
#include "cuda/sampling.cuh"

namespace q4::gpu::decode {

// By kChoosing warps, of which this is number `warp`. share: the block's of the product before; to: what is handed on, by nobody
// else.
template <int kChoosing>
__device__ inline void choose(const DecodeChoice& choice, const Share& share, int rows, int warp, const Exchange& to,
                              const DecodeTold& told) {
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
  const int posted = blocks_of_grid() * kChoosing, block = static_cast<int>(blockIdx.x);
  if (lane % lanes == 0 && lane / lanes < rows)
    put_piece(to.slot + b * posted + block * kChoosing + warp, mine.key, static_cast<uint32_t>(mine.id), 0, to.tag);
  if (warp > 0 || block >= rows) return;
  const int row = block;
  Best best = no_best(vocabulary);
#pragma unroll 1
  for (int first = lane; first < posted; first += kAtOnce * 32) {
    uint4 piece[kAtOnce];
    for (bool all = false; !all;) {
      all = true;
#pragma unroll
      for (int j = 0; j < kAtOnce; ++j) piece[j] = peek(to.slot + row * posted + min(first + j * 32, posted - 1));
#pragma unroll
      for (int j = 0; j < kAtOnce; ++j) all &= piece[j].w == to.tag;
    }
#pragma unroll
    for (int j = 0; j < kAtOnce; ++j) best = better(best, Best{piece[j].x, static_cast<int>(piece[j].y)});
  }
  best = warp_best(best);
  if (lane > 0) return;
  const int id = best.id;
  choice.ids[row] = id;
  // As one word, so that whoever sees the number sees the token.
  if (told.to)
    *reinterpret_cast<volatile uint64_t*>(told.to + row) = uint64_t{told.number} << 32 | static_cast<uint32_t>(id);
  choice.seen[int64_t{row} * vocabulary + id] = 1;
  if (choice.counted)
    choice.counted[row] = static_cast<int>(min(int64_t{choice.counted[row]} + choice.by, int64_t{choice.max}));
}

}  // namespace q4::gpu::decode
