// What the kernels of Hopper's attention backward share.
#pragma once
#include "cuda/sm90_attention_tiles.cuh"

namespace q4::gpu::sm90 {

constexpr int kStep = 64, kStepHalf = kStep * 128;  // rows multiplied at a time; bytes of a tile [64][64]

// The first visible keys of a step of queries.
struct Starts {
  int from[kStep], lowest, highest, unused[2];  // copied in pieces of 16 bytes
};

// What the gradient kernels read per query, rearranged so that a step of it is one piece: [batch][heads][padded], padded
// to whole tiles with rows that weigh nothing.
struct Statistics {
  float *lse, *delta;  // lse · log2e
  Starts* starts;      // [batch][padded / kStep]
  int padded;
};

// dk and dv of 128 keys, over all queries and heads of the group.
void key_gradients(const AttentionBackwardCall& call, const Statistics& statistics, cudaStream_t stream, bool overlap);
// dq of 128 queries, over all keys.
void query_gradients(const AttentionBackwardCall& call, const Statistics& statistics, int processors, uint32_t* ticket,
                     cudaStream_t stream, bool overlap);

}  // namespace q4::gpu::sm90
