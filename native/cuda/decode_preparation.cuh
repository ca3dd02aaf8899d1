// What a block does for phases that are still to come: what they read right at their start is brought near, and, of more rows,
// one warp clears places and has keys and values brought.
#pragma once
#include "cuda/decode_setup.cuh"

namespace q4::gpu::decode {

constexpr int kLine = 128;
__device__ inline void prefetch_line(const void* p) { asm volatile("prefetch.global.L2 [%0];" ::"l"(p)); }
// By eight threads or more: of the head norms' weights.
__device__ inline void prefetch_head_weights(const DecodeAttention& call, uint32_t thread) {
  constexpr int kLines = D * 4 / kLine;
  if (thread < 2 * kLines)
    prefetch_line(reinterpret_cast<const char*>(thread < kLines ? call.q_weight : call.k_weight) +
                  thread % kLines * kLine);
}

// What an attention reads right at its start, from memory into the second-level cache: the weights that flow by evict
// everything from one token to the next.
__device__ inline void prefetch(const DecodeAttention& call, int rows, const Sequences& sequences) {
  const int kv_heads = call.kv_heads;
#pragma unroll 1
  for (int pair = blockIdx.x; pair < rows * kv_heads; pair += gridDim.x) {
    const int b = pair / kv_heads, kept = min(sequences.past[b], call.keys);
    const int64_t base = (int64_t{b} * call.keys * kv_heads + pair % kv_heads) * D * 2;
    // Two lines a key and two a value; of very long ones the end is left to the phase itself.
#pragma unroll 1
    for (int i = threadIdx.x; i < 4 * min(kept, 1024); i += kThreads)
      prefetch_line(reinterpret_cast<const char*>(i & 1 ? call.v_cache : call.k_cache) + base +
                    int64_t{i / 4} * (kv_heads * D * 2) + (i & 2) / 2 * kLine);
  }
  // By every block: that only one does would have to be kept from phase to phase, as the compiler sees it.
  prefetch_head_weights(call, threadIdx.x);
}

__device__ inline StagedCache staged_cache(const Layout& layout, const Task& task) {
  constexpr int kBoxKeys = StagedCache::kBoxKeys;
  return {shared_address(&place<uint8_t>(layout.x)), layout.key_boxes, layout.value_boxes,
          min((task.end - task.begin + kBoxKeys - 1) / kBoxKeys, layout.key_boxes)};
}

// All that the warp does, of more rows, which prepares what is to come, so that those that compute need not: it clears the
// places of rows that later phases hand on, has keys and values brought, and descriptions of phases.
template <typename Rows>
class Preparation {
 public:
  // Phases before an attention in which what it will read of its cache is asked for: with more the weights that flow by drive it
  // out of the second-level cache again, with fewer it comes late.
  static constexpr int kPrefetchedAhead = 3;

  __device__ Preparation(const DecodeChain& chain, const Layout& layout) : chain_(chain), layout_(layout) {}

  __device__ void run() {
#pragma unroll 1
    for (int p = 0; p < chain_.linked; ++p) {
      barrier_wait(shared_address(&common().begun), p & 1);
      await_batches();  // those asked for in earlier phases
      if (p % kBatch == 0) {
        const int lane = threadIdx.x % 32;
        copy_globals(chain_, layout_, p / kBatch + 1, lane), copy_batch<32>(chain_, layout_, p / kBatch + 2, lane);
      }
      if (phase(p).kind == PhaseKind::attention) bring_cache(phase(p).attention);
        // Places of rows: in the first phase, which adds up, those of the next as well, before all blocks meet.
#pragma unroll 1
      for (int which = p > 0 ? p + kClearedAhead : 0; which <= p + kClearedAhead && which + 1 < chain_.linked; ++which)
        if (phase(which + 1).kind == PhaseKind::product)
          clear_rows(exchange_of<false>(chain_, common().first_tag, which), chain_.rows,
                     phase(which + 1).product.width);
      if (phase(p).kind == PhaseKind::product && p + 1 < chain_.linked && phase(p + 1).kind == PhaseKind::attention)
        bring_early(phase(p + 1).attention, table_of(chain_, layout_).share[phase(p).product.shape]);
      else
        say_cleared();
#pragma unroll 1
      for (int q = p > 0 ? p + kPrefetchedAhead : 1; q <= p + kPrefetchedAhead && q < chain_.linked; ++q)
        prefetch_for(phase(q));
    }
  }

 private:
  // What a phase reads right at its start, from memory into the second-level cache: loads behind such a one wait for it too.
  __device__ void prefetch_for(const DecodePhase& phase) const {
    const int lane = threadIdx.x % 32;
    if (phase.kind == PhaseKind::attention) {
      const DecodeAttention& call = phase.attention;
      prefetch_head_weights(call, lane);
      prefetch_cache(call, chain_.maps[call.maps], chain_.rows, sequences().past);
    } else if (phase.kind == PhaseKind::sum && phase.norm.weight) {
      for (int line = blockIdx.x + lane * gridDim.x; line < phase.norm.width * 4 / kLine; line += 32 * gridDim.x)
        prefetch_line(reinterpret_cast<const char*>(phase.norm.weight) + line * kLine);
    }
  }
  __device__ Common& common() const { return place<Common>(layout_.common); }
  __device__ Sequences& sequences() const { return place<Sequences>(layout_.sequences); }
  __device__ const DecodePhase& phase(int which) const { return (&place<DecodePhase>(layout_.table))[slot_of(which)]; }
  __device__ void stage(const CachePlace& cache, const DecodeAttention& call, bool expects, int first, int end) const {
    stage_cache(cache, chain_.maps[call.maps], staged_cache(layout_, sequences().task),
                shared_address(&common().cache_barrier), expects, first, end);
  }
  __device__ void say_cleared() const {
    __syncwarp();
    if (threadIdx.x % 32 == 0) barrier_arrive(shared_address(&common().cleared));
  }
  // Of the first keys and values that the block takes of the next attention, in the product before, what has room beside its x and
  // sums, while it is multiplied, and what has room beside its sums, when x is no longer read. (All at once, when q is waited
  // for, would keep the count of blocks and q waiting behind it.) Where they are is found while the task is still that of the
  // last attention.
  __device__ void bring_early(const DecodeAttention& call, const Share& share) {
    const Task& task = sequences().task;
    const int early = max(0, place_of_x<Rows>(layout_, share, chain_.rows) - layout_.x) / StagedCache::kBoxBytes;
    CachePlace cache(task, call);
    if (!is_task(task, blockIdx.x, call)) cache.boxes = 0;
    say_cleared();
    barrier_wait(shared_address(&common().early_fits), state_ & 1);
    if (cache.boxes > 0) stage(cache, call, true, 0, early), state_ |= kCacheComes;
    barrier_wait(shared_address(&common().cache_fits), state_ & 1), state_ ^= 1;
    if (cache.boxes > 0) stage(cache, call, false, early, boxes_before_sums());
  }
  // What has room beside sums.
  __device__ int boxes_before_sums() const { return (layout_.sums - layout_.x) / StagedCache::kBoxBytes; }
  __device__ void bring_cache(const DecodeAttention& call) {
    const int items = items_of_attention(chain_.rows * call.kv_heads, gridDim.x);
#pragma unroll 1
    for (int item = blockIdx.x; item < items; item += gridDim.x) {
      barrier_wait(shared_address(&common().rest_fits), state_ >> 1 & 1), state_ ^= 2;
      const CachePlace cache(sequences().task, call);
      __syncwarp();  // the task is another as soon as those that compute have waited for the copies
      const bool comes = state_ & kCacheComes;
      stage(cache, call, !comes, comes ? boxes_before_sums() : 0, 2 * StagedCache::kMostBoxes);
      state_ &= kParities;
    }
  }

  const DecodeChain& chain_;
  const Layout& layout_;
  // Parities of early_fits and cache_fits, and of rest_fits, and that something comes for the next attention already: in one
  // register, as there are few.
  static constexpr uint32_t kParities = 3, kCacheComes = 4;
  uint32_t state_ = 0;
};

}  // namespace q4::gpu::decode
