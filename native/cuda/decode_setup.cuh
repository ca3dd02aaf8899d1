// What a block of a decode chain finds out before its first phase, and the descriptions of phases it has brought on the way.
#pragma once
#include "cuda/decode_layout.cuh"

namespace q4::gpu::decode {

// The descriptions of a chain's phases, by some threads, of which this is number `thread`: asked for two batches ahead of their
// use, the globals of their products, which they point to, one. (Reading them where they are would take as long as a phase's
// wait.)
template <int kOf>
__device__ inline void copy_batch(const DecodeChain& chain, const Layout& layout, int batch, int thread) {
  constexpr int kPiece = 16, kPieces = sizeof(DecodePhase) / kPiece;
  static_assert(sizeof(DecodePhase) % kPiece == 0);
  const int first = batch * kBatch;
#pragma unroll
  for (int i = thread; i < kBatch * kPieces; i += kOf)
    if (i < (chain.phases - first) * kPieces)
      asm volatile("cp.async.ca.shared.global [%0], [%1], 16;" ::"r"(
                       shared_address(&place<DecodePhase>(layout.table) + slot_of(first)) + i * kPiece),
                   "l"(reinterpret_cast<const char*>(chain.phase + first) + i * kPiece)
                   : "memory");
}
__device__ inline void copy_globals(const DecodeChain& chain, const Layout& layout, int batch, int thread) {
  static_assert(kBatch * 3 <= 32);
  const int p = batch * kBatch + thread / 3, m = thread % 3;
  if (thread >= kBatch * 3 || p >= chain.phases) return;
  const DecodePhase& phase = (&place<DecodePhase>(layout.table))[slot_of(p)];
  if (phase.kind == PhaseKind::product && m < phase.product.matrices)
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(
                     shared_address(&place<float>(layout.globals) + slot_of(p) * 3 + m)),
                 "l"(phase.product.matrix[m].global)
                 : "memory");
}
__device__ inline void await_batches() { asm volatile("cp.async.wait_all;" ::: "memory"); }

__device__ inline void copy_bytes(int to, const void* from, int bytes, uint32_t barrier) {
  gpu::copy_bytes(shared_address(shared_memory() + to), from, bytes, barrier);
}
// What a block has to know before it waits for earlier kernels, by all threads: the first two batches, all that bring weights
// go by, and what it has of the products. (Found out here, that took ten microseconds.)
template <typename Rows>
__device__ inline void set_up(const DecodeChain& chain, const Layout& layout) {
  Common& common = place<Common>(layout.common);
  const uint32_t described = shared_address(&common.described);
  if (threadIdx.x == 0) {
    for (uint64_t* barrier :
         {&common.cache_barrier, &common.logits_barrier, &common.begun, &common.cleared, &common.early_fits,
          &common.cache_fits, &common.rest_fits, &common.q_came, &common.described})
      barrier_init(shared_address(barrier), 1);
    fence_barriers();
    fence_copies();
    common.cache_parity = 0;
    const int phases = min(chain.phases, 2 * kBatch) * static_cast<int>(sizeof(DecodePhase)),
              weights = (chain.products * static_cast<int>(sizeof(DecodeWeights)) + 15) / 16 * 16,
              lists = layout.kept - layout.shares;
    barrier_expect(described, phases + weights + lists);
    copy_bytes(layout.shares, chain.lists + int64_t{blockIdx.x} * lists, lists, described);
    copy_bytes(layout.weights, chain.weights, weights, described);
    copy_bytes(layout.table, chain.phase, phases, described);
  }
  Rows::set_constants(&place<uint8_t>(layout.constants));
  place<Sequences>(layout.sequences).task.item = -1;  // none yet
  __syncthreads();
  barrier_wait(described, 0);
  if (threadIdx.x < kThreads) copy_globals(chain, layout, 0, threadIdx.x);
}

// What earlier kernels leave beside what phases take, by those that compute.
__device__ inline void copy_inputs(const DecodeChain& chain, const Layout& layout) {
  Sequences& sequences = place<Sequences>(layout.sequences);
  if (chain.past) {
    if (threadIdx.x < static_cast<unsigned>(chain.rows)) {
      sequences.past[threadIdx.x] = chain.past[threadIdx.x];
      sequences.from[threadIdx.x] = chain.attend_from ? chain.attend_from[threadIdx.x] : 0;
    }
#pragma unroll 1
    for (int i = threadIdx.x; i < chain.rows * (D / 2); i += kThreads) {
      float sine, cosine;
      sincosf(static_cast<float>(chain.positions[i / (D / 2)]) * chain.frequencies.value[i % (D / 2)], &sine, &cosine);
      sequences.turns[i / (D / 2)][i % (D / 2)] = make_float2(cosine, sine);
    }
  }
  if (threadIdx.x == 0) place<Common>(layout.common).first_tag = chain.counters[2] + 1;
}

}  // namespace q4::gpu::decode
