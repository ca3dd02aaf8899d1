// The persistent kernel of a decode step: one block a multiprocessor runs all phases of a chain; what a phase leaves is
// handed to the next piece by piece (decode_exchange.cuh). What bounds it is reading the weights once; decode_weights.cuh
// keeps that going. Needs cooperative launches: all blocks must be resident at once.
#pragma once
#include <algorithm>

#include "cuda/decode_attention.cuh"
#include "cuda/decode_finish.cuh"

namespace q4::gpu::decode {

// Shared memory: rings | the chain's phases | what attentions share | the block's shares of the products | lists of their
// items | and of the warps' segments | what norms keep of x | x, or what attentions need | sums | squares | weights of the
// next norm | globals | what else a block remembers.
struct Layout {
  int table, sequences, shares, done, segments, kept, x, sums, squares, norm_weight, globals, common, total;
  int sums_buffers;
};

// What a block remembers from phase to phase.
struct Common {
  uint64_t rows_barrier;  // of rows that are copied
  uint32_t rows_parity, first_tag;
};

// What the phases of a chain need at most.
struct Needs {
  int phases, shapes;
  int items, segments;  // in the lists of a block
  int tiles;            // of a share
  int kept;             // elements of x
  int attention;        // bytes, never together with x
};

template <typename Rows, int kDepth>
Layout layout_for(int rows, const Needs& needs) {
  const auto align = [](int bytes) { return (bytes + 127) / 128 * 128; };
  Layout l{};
  l.sums_buffers = rows <= 4 ? 2 : 1;
  l.table = align(Rings<typename Rows::Tiles, kDepth>::kBytes);
  l.sequences = l.table + align(needs.phases * static_cast<int>(sizeof(DecodePhase)));
  l.shares = l.sequences + align(static_cast<int>(sizeof(Sequences)) + rows * D / 2 * 8);
  l.done = l.shares + align(needs.shapes * static_cast<int>(sizeof(Share)));
  l.segments = l.done + align(needs.items * static_cast<int>(sizeof(Done)));
  l.kept = l.segments + align(needs.segments * static_cast<int>(sizeof(Segment)));
  l.x = l.kept + align(needs.kept * 2);
  l.sums = l.x + std::max(align(Rows::bytes(rows, needs.tiles)), align(needs.attention));
  l.squares = l.sums + l.sums_buffers * kRoundSums<typename Rows::Tiles> * Rows::Tiles::kGroup * rows * 4;
  l.norm_weight = l.squares + align(rows * kSquares<Rows> * 4);
  l.globals = l.norm_weight + (Rows::kExactly ? align(needs.kept * 4) : 0);
  l.common = l.globals + align(needs.phases * 3 * 4);
  l.total = l.common + static_cast<int>(sizeof(Common));
  return l;
}

__device__ inline uint8_t* shared_memory() {
  extern __shared__ __align__(1024) uint8_t memory[];
  return memory;
}
// Found anew each time, rather than held in registers from phase to phase.
template <typename T>
__device__ inline T& place(int offset) {
  asm volatile("" : "+r"(offset));
  return *reinterpret_cast<T*>(shared_memory() + offset);
}

// The block's share of a product, from x in shared memory to what is handed on. arrived: where given, the count that is told
// before the last outputs are finished.
template <typename Rows, int kDepth, typename FinishOf>
__device__ inline void multiply_phase(const DecodePhase& phase, int rows, const Share& share, const Segment* segment,
                                      const Done* done, const uint8_t* x, const Layout& layout,
                                      const Rings<typename Rows::Tiles, kDepth>& rings, uint32_t* arrived,
                                      FinishOf&& finish_of) {
  using Tiles = typename Rows::Tiles;
  const int warp = threadIdx.x / 32, part = warp % Tiles::kTeam, rounds = share.rounds();
  float* const sums = &place<float>(layout.sums);
  WeightStream<Tiles, kDepth> weights(rings);
  Rows of_x(x, share.tiles, rows);
  for (int round = 0; round < rounds; ++round) {
    const int items = share.items(round);
    float* const buffer = sums + (round % layout.sums_buffers) * kRoundSums<Tiles> * Tiles::kGroup * rows;
    for (bool last = false; !last;) {
      const Segment now = *segment++;
      last = now.last;
#pragma unroll 1
      for (int i = 0; i < now.count; ++i) {
        const int tile = (now.strip + i) * Tiles::kTeam + part;
        const Stage stage = weights.take();
        if (Tiles::kTeam == 1 || tile < share.tiles) of_x.multiply(stage, tile);
        weights.give();
      }
      if (now.count == 0) continue;
      of_x.leave(buffer + place_of_sums<Tiles>(now.which, warp / Tiles::kTeam, part) * Tiles::kGroup * rows, rows);
      of_x.reset();
    }
    if (round + 1 == rounds) weights.keep();
    const Finish f = finish_of();
    Outputs first{};
    if (warp * 8 < ((items + share.pair) >> share.pair) * rows)  // whole warps
      first = outputs_of<Rows>(phase, share, items, done, rows, round, threadIdx.x, f);
    block_sync();
    if (arrived && round + 1 == rounds && threadIdx.x == kThreads - 1) announce(arrived);
    finish<Rows>(phase, share, items, buffer, rows, round, done, first, f);
    if (layout.sums_buffers == 1) block_sync();
  }
}

__device__ inline void prefetch_line(const void* p) { asm volatile("prefetch.global.L2 [%0];" ::"l"(p)); }

// What an attention reads right at its start, from memory into the second-level cache: the weights that flow by evict
// everything from one token to the next.
__device__ inline void prefetch(const DecodeAttention& call, int rows, const Sequences& sequences) {
  constexpr int kLine = 128;
  const int kv_heads = call.kv_heads;
#pragma unroll 1
  for (int pair = blockIdx.x; pair < rows * kv_heads; pair += gridDim.x) {
    const int b = pair / kv_heads, kept = min(sequences.past[b], call.keys);
    const int64_t base = (int64_t{b} * call.keys * kv_heads + pair % kv_heads) * D * 2;
    // Two lines a key and two a value; of very long ones the end is left to the phase itself.
#pragma unroll 1
    for (int i = threadIdx.x; i < 4 * min(kept, 2 * kPieceKeys); i += kThreads)
      prefetch_line(reinterpret_cast<const char*>(i & 1 ? call.v_cache : call.k_cache) + base +
                    int64_t{i / 4} * (kv_heads * D * 2) + (i & 2) / 2 * kLine);
  }
  if (blockIdx.x == gridDim.x - 1 && threadIdx.x < 8)
    prefetch_line(reinterpret_cast<const char*>(threadIdx.x < 4 ? call.q_weight : call.k_weight) +
                  threadIdx.x % 4 * kLine);
}

// The phases and what attentions share, from the kernel's parameters to shared memory.
template <typename Tiles>
__device__ inline void copy_parameters(const DecodeChain& chain, const Layout& layout) {
  // Several at a time, and by generic loads: the constant cache takes one at a time.
  constexpr int kAtOnce = 8;
  uint32_t* const to = &place<uint32_t>(layout.table);
  const char* const from = reinterpret_cast<const char*>(chain.phase);
  const int words = chain.phases * static_cast<int>(sizeof(DecodePhase) / 4);
#pragma unroll 1
  for (int first = threadIdx.x; first < words; first += kThreads * kAtOnce) {
    uint32_t word[kAtOnce];
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k)
      asm volatile("ld.u32 %0, [%1];" : "=r"(word[k]) : "l"(from + min(first + k * kThreads, words - 1) * 4));
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k)
      if (first + k * kThreads < words) to[first + k * kThreads] = word[k];
  }
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
  __syncthreads();
  if (threadIdx.x < static_cast<unsigned>(chain.phases)) {
    const DecodePhase& phase = (&place<DecodePhase>(layout.table))[threadIdx.x];
    if (phase.kind == PhaseKind::product) {
      if (phase.product.first_of_shape)
        share_out<Tiles>((&place<Share>(layout.shares))[phase.product.shape], phase.product);
      for (int m = 0; m < phase.product.matrices; ++m)
        (&place<float>(layout.globals))[threadIdx.x * 3 + m] = *phase.product.matrix[m].global;
    }
  }
  if (threadIdx.x == 0) {
    Common& common = place<Common>(layout.common);
    barrier_init(shared_address(&common.rows_barrier), 1);
    common.rows_parity = 0, common.first_tag = chain.counters[2] + 1;
  }
  __syncthreads();
#pragma unroll 1
  for (int p = 0; p < chain.phases; ++p) {
    const DecodePhase& phase = (&place<DecodePhase>(layout.table))[p];
    if (phase.kind != PhaseKind::product || !phase.product.first_of_shape) continue;
    Share& share = (&place<Share>(layout.shares))[phase.product.shape];
    list_done<Tiles>(share, phase.product, &place<Done>(layout.done));
    if (static_cast<int>(threadIdx.x) / 32 == phase.product.shape % kWarps)
      list_segments<Tiles>(share, phase.product, phase.product.segments, &place<Segment>(layout.segments));
  }
  __syncthreads();
}

__device__ inline Table table_of(const DecodeChain& chain, const Layout& layout) {
  return {&place<DecodePhase>(layout.table), &place<Share>(layout.shares), &place<Segment>(layout.segments),
          chain.phases, chain.rows};
}

// The weights that a phase's sums meet in the next norm, while the block still waits.
template <typename Rows>
__device__ inline void fetch_norm_weight(const DecodeNorm& norm, const Share& share, float4* to) {
#pragma unroll 1
  for (int i = threadIdx.x; i < share.count * (kElements / kQuad); i += kThreads)
    copy_async(shared_address(to + i), norm.weight + share.item(i / 4) * kElements + i % 4 * kQuad, true);
  copy_commit();
}

// What those that compute do.
template <typename Rows, int kDepth>
__device__ __forceinline__ void run_phases(const DecodeChain& chain, const Layout& layout) {
  constexpr bool kWhole = Rows::kExactly > 0;
  const int rows = rows_of<Rows>(chain.rows);
  // The first phase reads what others may write over.
  const auto settle = [&] { grid_sync(chain.counters); };

#pragma unroll 1
  for (int p = 0; p < chain.phases; ++p) {
    // Nothing but p stays in registers from phase to phase: attentions need them all.
    const Table table = table_of(chain, layout);
    Common& common = place<Common>(layout.common);
    const DecodePhase& phase = table.phase[p];
    const bool last = p + 1 == chain.phases;
    if (!last && table.phase[p + 1].kind == PhaseKind::attention)
      prefetch(table.phase[p + 1].attention, rows, place<Sequences>(layout.sequences));
    const Exchange to = exchange_of(chain, common.first_tag, p),
                   from = copy_of<kWhole>(exchange_of(chain, common.first_tag, p - 1));
    bf16* const kept = &place<bf16>(layout.kept);
    uint32_t* const arrived = chain.counters + 3 + p;
    // A count that nobody waits for, of the last phase, or before an attention that looks at tags alone, might come too late
    // to be set back.
    const bool awaited = !last && !(kWhole && table.phase[p + 1].kind == PhaseKind::attention);
    const auto arrive_here = [&] {
      if (awaited) arrive<!kWhole>(arrived);
    };
    const auto await_before = [&] { await<!kWhole>(arrived - 1, table.phase[p - 1].arrivals); };
    if (phase.kind == PhaseKind::attention) {
      attend<Rows>(phase.attention, from, to, table, place<Sequences>(layout.sequences), chain.attention_parts,
                   chain.tickets, place<AttentionMemory>(layout.x), await_before, arrive_here);
    } else if (phase.kind == PhaseKind::product) {
      const Share& share = table.share[phase.product.shape];
      if (share.count > 0) {
        uint8_t* const x = &place<uint8_t>(layout.x);
        float* const squares = &place<float>(layout.squares);
        float4* const norm_weight = &place<float4>(layout.norm_weight);
        if constexpr (kWhole) {
          if (phase.product.adds) fetch_norm_weight<Rows>((&phase + 1)->norm, share, norm_weight);
          Rows::clear(x);
        }
        await_before();
        if constexpr (kWhole)
          stage_pieces<Rows>(phase, from, share, x, squares);
        else
          stage_rows<Rows>(phase, from, rows, share, x, squares, shared_address(&common.rows_barrier),
                           common.rows_parity);
        copy_wait<0>();
        block_sync();
        if (!kWhole && threadIdx.x == 0) common.rows_parity ^= 1;
        const auto leave_norm_here = [&] {
          if (phase.norm.weight)
            leave_norm<Rows>(phase.norm, from, squares, rows, (phase.product.items + share.pair) >> share.pair);
        };
        // What it reads may be written over once others have what this block makes of it, or, of more rows, its arrival.
        if constexpr (kWhole) leave_norm_here();
        const Rings<typename Rows::Tiles, kDepth> rings{shared_address(shared_memory())};
        multiply_phase<Rows, kDepth>(phase, rows, share, table.segments + share.segments[threadIdx.x / 32 / Rows::Tiles::kTeam],
                                     &place<Done>(layout.done) + share.done, x, layout, rings,
                                     kWhole && awaited ? arrived : nullptr, [&] {
                                       return Finish{&place<float>(layout.globals) + p * 3,
                                                     squares,
                                                     kept,
                                                     norm_weight,
                                                     exchange_of(chain, place<Common>(layout.common).first_tag, p),
                                                     last ? nullptr : &phase + 1};
                                     });
        if constexpr (!kWhole) leave_norm_here(), arrive_here();
      }
    } else {
      const DecodePhase& before = table.phase[max(p, 1) - 1];
      const int splits = before.kind == PhaseKind::product && before.product.splits > 1 ? before.product.splits : 0;
      if (!kWhole && p > 0) await_before();
      if (kWhole || phase.kind == PhaseKind::sum)
        sum_rows<Rows>(phase.norm, kWhole || p == 0, from, splits, rows, kept, to, settle);
      else
        join_rows(phase.norm, from, splits, rows);
      arrive_here();
    }
  }
  if (threadIdx.x == 0 && atomicAdd(chain.counters + 1, 1u) == gridDim.x - 1) {
    for (int i = 0; i < 3 + chain.phases; ++i) chain.counters[i] = 0;
    chain.counters[2] = place<Common>(layout.common).first_tag + chain.phases;
  }
}

template <typename Rows, int kDepth>
__global__ void __launch_bounds__(kBlockThreads, 1)
    chain_kernel(const __grid_constant__ DecodeChain chain, const __grid_constant__ Layout layout) {
#if __CUDA_ARCH__ >= 900 && __CUDA_ARCH__ < 1200  // 12.x has not the shared memory
  const Rings<typename Rows::Tiles, kDepth> rings{shared_address(shared_memory())};
  rings.init();
  copy_parameters<typename Rows::Tiles>(chain, layout);
  if (threadIdx.x >= kThreads) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kBringRegisters));
    fill_rings(chain.maps, table_of(chain, layout), rings);
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kComputeRegisters));
    run_phases<Rows, kDepth>(chain, layout);
  }
#endif
}

}  // namespace q4::gpu::decode
