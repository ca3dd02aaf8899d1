// The persistent kernel of a decode step: one block a multiprocessor runs all phases of a chain; what a phase leaves is
// handed to the next piece by piece (decode_exchange.cuh). What bounds it is reading the weights once; decode_weights.cuh
// keeps that going. Needs cooperative launches: all blocks must be resident at once.
#pragma once
#include "cuda/decode_choice.cuh"
#include "cuda/decode_finisher.cuh"
#include "cuda/decode_preparation.cuh"

namespace q4::gpu::decode {

// What a warp has of a product: found before x is there.
template <typename Rows, int kDepth>
struct Multiplier {
  using Tiles = typename Rows::Tiles;
  WeightStream<Tiles, kDepth> weights;
  Rows of_x;
  const Segment* segment;
  // Of more rows the first segment is read before x is there, and every next before the one before it is multiplied. (With one
  // row a step took 20 µs more with that, which may be but another order of its tile's instructions.)
  static constexpr bool kReadsAhead = Rows::kExactly == 0;
  Segment next;  // without its group
  int tiles_ahead;

  __device__ Multiplier(const Table& table, const Share& share, const uint8_t* x, const uint8_t* constants, int rows)
      : weights({shared_address(shared_memory())}),
        of_x(x, constants, share.tiles, rows),
        segment(table.segments + share.segments[threadIdx.x / 32 / Tiles::kTeam]) {
    if (kReadsAhead) {
      tiles_ahead = share.tiles;
      uint32_t word = *reinterpret_cast<const uint32_t*>(segment);
      asm volatile("" : "+r"(word), "+r"(tiles_ahead));  // now
      memcpy(&next, &word, sizeof word);
    }
  }

  // The warp's tiles of a round, whose sums it leaves.
  __device__ void round(const Share& share, float* sums) {
    const int warp = threadIdx.x / 32, part = warp % Tiles::kTeam, tiles = kReadsAhead ? tiles_ahead : share.tiles;
    const auto give = [&] { weights.give(); };
    for (bool last = false; !last;) {
      const Segment now = kReadsAhead ? next : *segment;
      ++segment;
      if (kReadsAhead) next = *segment;
      last = now.last;
      const int end = (now.strip + now.count) * Tiles::kTeam;
      int tile = now.strip * Tiles::kTeam + part, mine = min(end, tiles);
      asm volatile("" : "+r"(mine));  // or it would be found for every tile
#pragma unroll 1
      for (; tile < mine; tile += Tiles::kTeam) of_x.multiply(weights.take(), tile, give);
      // The last strip of all may have fewer tiles than the team has warps.
      if (tile < end) weights.take(), give();
      if (now.count == 0) continue;
      of_x.leave(sums + place_of_sums<Tiles>(now.which, warp / Tiles::kTeam, part) * Rows::kSumFloats);
      of_x.reset();
    }
  }
};

// All that the warp does which finishes outputs.
template <typename Rows>
__device__ __forceinline__ void finish_products(const DecodeChain& chain, const Layout& layout) {
  const int rows = rows_of<Rows>(chain.rows), lane = threadIdx.x % 32;
#pragma unroll 1
  for (int p = 0; p < chain.linked; ++p) {
    if (p % kBatch == 0) meet<kStagedBarrier>();  // of the batch
    const Table table = table_of(chain, layout);
    const DecodePhase& phase = table.phase(p);
    if (phase.kind != PhaseKind::product) continue;
    const Share& share = table.share[phase.product.shape];
    if (share.count == 0) continue;
    const Finish f = finish_of(chain, layout, p);
    const auto staged = [&] {
      meet<kStagedBarrier>();
      const float* const squares = &place<float>(layout.squares);
      // What it reads may be written over once others have what this block makes of it.
      if (phase.norm.weight)
        leave_norm<Rows>(phase.norm,
                         copy_of<true>(exchange_of<true>(chain, place<Common>(layout.common).first_tag, p - 1)),
                         squares, rows, (phase.product.items + share.pair) >> share.pair, lane, kFinishThreads);
      return scale_of_product<Rows>(phase, squares, row_of<Rows>(lane));
    };
    const float* const sums = sums_of<Rows>(layout, 0);
    const auto announce = [&] {
      if (lane == 0 && f.next) decode::announce(chain.counters + 3 + p);
    };
    const Made made = made_of(phase.product, !f.next);
    if (made == Made::sum)
      finish_rounds<Rows, Made::sum>(phase, share, layout.done, rows, sums, f, staged, announce);
    else if (made == Made::activated)
      finish_rounds<Rows, Made::activated>(phase, share, layout.done, rows, sums, f, staged, announce);
    else
      finish_rounds<Rows, Made::same>(phase, share, layout.done, rows, sums, f, staged, announce);
  }
  __syncwarp();
  if (lane == 0) barrier_arrive(shared_address(&place<Common>(layout.common).logits_barrier));
}

// What a phase is linked with, found when it is wanted: nothing stays in registers from phase to phase, attentions need them.
template <bool kWhole>
struct Here {
  const DecodeChain& chain;
  const Layout& layout;
  int p;

  __device__ const DecodePhase& phase(int which) const { return (&place<DecodePhase>(layout.table))[slot_of(which)]; }
  __device__ int rows() const { return chain.rows; }
  __device__ int blocks() const { return blocks_of_grid(); }
  __device__ Sequences& sequences() const { return place<Sequences>(layout.sequences); }
  __device__ float* attention_parts() const { return chain.attention_parts; }
  __device__ uint32_t* tickets() const { return chain.tickets; }
  __device__ Exchange exchange(int which) const {
    asm volatile("" : "+r"(which));  // not before it is wanted
    return exchange_of<kWhole>(chain, place<Common>(layout.common).first_tag, which);
  }
  __device__ Exchange from() const { return copy_of<kWhole>(exchange(p - 1)); }
  __device__ Exchange to() const { return exchange(p); }
  // Of an attention, of more rows.
  __device__ int projected_apart() const {
    if (kWhole) return 0;
    const DecodeProduct& product = phase(p - 1).product;
    return product.splits > 1 ? chain.rows * product.items : 0;
  }
  __device__ StagedCache staged() const { return staged_cache(layout, reread(sequences().task)); }
  __device__ bool attends_next() const { return p + 1 < chain.linked && phase(p + 1).kind == PhaseKind::attention; }
  __device__ float* parts() const { return &place<float>(layout.parts); }
  __device__ Common& common() const { return place<Common>(layout.common); }
  // Of more rows, by one thread: that there is room for keys and values of the next attention before x, that x is no longer
  // read, and that the sums of the product before are not either.
  __device__ void ask_for_early() const { barrier_arrive(shared_address(&common().early_fits)); }
  __device__ void ask_for_cache() const { barrier_arrive(shared_address(&common().cache_fits)); }
  __device__ void ask_for_rest() const { barrier_arrive(shared_address(&common().rest_fits)); }
  // Of an attention, by one thread: that it has its queries, so that the next product's weights may come.
  __device__ void let_weights_come() const {
    if (p + 1 < chain.linked && phase(p + 1).kind == PhaseKind::product)
      barrier_arrive(shared_address(&common().q_came));
  }
  // Of keys and values: the barrier of their copies, waited for by all, who then meet, and then its next phase begins.
  __device__ uint32_t barrier() const { return shared_address(&common().cache_barrier); }
  __device__ void await_copies() const { barrier_wait(barrier(), common().cache_parity); }
  __device__ void copies_came() const {
    if (threadIdx.x == 0) common().cache_parity ^= 1;
  }
  // By one thread, before all who wait meet.
  __device__ void await_count() const { gpu::decode::await(chain.counters + 3 + p - 1, phase(p - 1).arrivals); }
  __device__ void await() const {
    await([] {});
  }
  // With something to do while the first look at the count is on its way.
  template <typename Meanwhile>
  __device__ void await(Meanwhile&& meanwhile) const {
    const uint32_t* const counter = chain.counters + 3 + p - 1;
    const int arrivals = phase(p - 1).arrivals;
    int n = arrivals;
    if (threadIdx.x == 0) n = arrived(counter);
    meanwhile();
    while (n < arrivals) n = arrived(counter);
    block_sync();
  }
  // Where a block takes little, it looks at tags at once; but every block must know that all have come so far, or it would
  // clear what some still read: before its warps meet in the next phase.
  __device__ void await_by_last_warp() const {
    if (threadIdx.x == kThreads - 32) await_count();
  }
  // A count that nobody waits for, of the last phase, might come too late to be set back.
  __device__ bool awaited() const { return p + 1 < chain.linked; }
  // By one thread, before results are there: whoever waits then asks for them in time.
  __device__ void announce() const {
    if (!kWhole) await_cleared(p);
    announce_cleared();
  }
  __device__ void announce_cleared() const {
    if (awaited()) gpu::decode::announce(chain.counters + 3 + p);
  }
  __device__ void announce_by_one() const {
    if (threadIdx.x == 0) announce();
  }
  // Of more rows: that the phase begins, by one thread, and that what the block clears in it is clear.
  __device__ void begin() const {
    if (p > 0) await_cleared(p - 1);
    barrier_arrive(shared_address(&common().begun));
  }
  // By the thread that begins phases; by another only before it meets that one in the same phase: a phase later the barrier's
  // parity is that of the phase before again.
  __device__ void await_cleared(int which) const { barrier_wait(shared_address(&common().cleared), which & 1); }
};

// What those that compute do.
template <typename Rows, int kDepth>
__device__ __forceinline__ void run_phases(const DecodeChain& chain, const Layout& layout) {
  constexpr bool kWhole = Rows::kExactly > 0;
  const int rows = rows_of<Rows>(chain.rows);
#pragma unroll 1
  for (int p = 0; p < chain.linked; ++p) {
    if constexpr (kWhole) {
      if (p % kBatch == 0) {
        await_batches();
        meet<kStagedBarrier>();
        copy_globals(chain, layout, p / kBatch + 1, threadIdx.x);
        copy_batch<kThreads>(chain, layout, p / kBatch + 2, threadIdx.x);
      }
    }
    const Here<kWhole> here{chain, layout, p};
    const Table table = table_of(chain, layout);
    const DecodePhase& phase = table.phase(p);
    if (kWhole && p + 1 < chain.phases && table.phase(p + 1).kind == PhaseKind::attention)
      prefetch(table.phase(p + 1).attention, rows, here.sequences());
    if (!kWhole && threadIdx.x == 0) here.begin();
    if (phase.kind == PhaseKind::attention) {
      attend<Rows>(phase.attention, here, place<AttentionMemory>(layout.attention));
    } else if (phase.kind == PhaseKind::product) {
      const Share& share = table.share[phase.product.shape];
      if (share.count > 0) {
        uint8_t* const x = &place<uint8_t>(place_of_x<Rows>(layout, share, rows));
        float* const squares = &place<float>(layout.squares);
        Multiplier<Rows, kDepth> multiplier(table, share, x, &place<uint8_t>(layout.constants), rows);
        if constexpr (kWhole) {
          const PieceStager<Rows> stager(phase, here.from(), share, x, squares);
          here.await();
          stager.stage();
          meet<kStagedBarrier>();
          const int rounds = share.rounds;
          for (int round = 0; round < rounds; ++round) {
            if (round >= 2) meet<kReadBarrier>(round % 2);
            multiplier.round(share, sums_of<Rows>(layout, round % 2));
            tell<kLeftBarrier>(round % 2);
          }
          multiplier.weights.keep();
        } else {
          const RowStager<Rows> stager(phase, here.from(), share, x, squares, rows);
          // Found now, as all wait for what comes after x: whether keys and values come early, and whether the norm leaves
          // something.
          constexpr uint32_t kBrings = 1, kLeaves = 2;
          uint32_t also = (here.attends_next() ? kBrings : 0) |
                          (phase.norm.weight && (phase.norm.rstd || phase.norm.normed_out) ? kLeaves : 0);
          asm volatile("" : "+r"(also));
          Outputs o;
          here.await([&] {
            o = outputs_of<Rows>(phase.product, share, share.template items<typename Rows::Tiles>(0), layout.done, rows,
                                 0, threadIdx.x, &place<float>(layout.globals) + slot_of(p) * 3);
            asm volatile("" : "+r"(o.sums), "+r"(o.group));  // found now, and held; the factors are not
          });
          stager.stage();
          if (also & kBrings) fence_copies();
          block_sync();
          if ((also & kBrings) && threadIdx.x == 0) here.ask_for_early();
          // What it reads may be written over once others have what this block makes of it.
          if (also & kLeaves)
            leave_norm<Rows>(phase.norm, here.from(), squares, rows, (phase.product.items + share.pair) >> share.pair,
                             threadIdx.x, kThreads);
          for (int round = 0, last = 0; !last; ++round) {
            float* const sums = sums_of<Rows>(layout, round & (layout.sums_buffers - 1));
            // Between rounds the registers are for what finishes them.
            if (round > 0) multiplier.weights.go_on();
            multiplier.round(share, sums);
            multiplier.weights.keep();
            last = round + 1 == share.rounds;
            int now = p;
            uint32_t thread = threadIdx.x;
            asm volatile("" : "+r"(now), "+r"(thread));  // or what follows would be kept while tiles are multiplied
            static_assert(kMostQuads<Rows> <= kThreads);
            const float* const globals = &place<float>(layout.globals) + slot_of(now) * 3;
            if (round > 0)
              o = outputs_of<Rows>(phase.product, share, share.template items<typename Rows::Tiles>(round), layout.done,
                                   rows, round, thread, globals);
            o.find_factors(phase.product, share.pair, globals);
            const float scale = scale_of_product<Rows>(phase, squares, row_of<Rows>(thread));
            const bool says = last && thread == kThreads - 1;
            if (says) here.await_cleared(p);
            block_sync();
            if (says) {
              here.announce_cleared();
              if (here.attends_next()) here.ask_for_cache();
            }
            if (__any_sync(0xffffffffu, o.inside())) {
              const Exchange to = exchange_of<false>(chain, place<Common>(layout.common).first_tag, now);
              if (share.pair)
                finish<Rows, true>(phase.product, share, sums, o, scale, thread, to);
              else
                finish<Rows, false>(phase.product, share, sums, o, scale, thread, to);
            }
            if (layout.sums_buffers == 1) block_sync();
          }
        }
      } else if (!kWhole) {
        here.await();
        if (here.attends_next()) {
          fence_copies(), block_sync();
          if (threadIdx.x == 0) here.ask_for_early(), here.ask_for_cache();
        }
      }
    } else {
      const DecodePhase& before = table.phase(max(p, 1) - 1);
      const int splits = before.kind == PhaseKind::product && before.product.splits > 1 ? before.product.splits : 0;
      // The first phase reads what others may write over.
      const auto settle = [&] {
        if (!kWhole && threadIdx.x == 0) here.await_cleared(p);
        grid_sync(chain.counters);
      };
      const auto await = [&] {
        if constexpr (kWhole)
          here.await();
        else
          here.await_by_last_warp();
      };
      if (kWhole || phase.kind == PhaseKind::sum)
        sum_rows<Rows>(phase.norm, kWhole || p == 0, chain.embedding, here.from(), splits, rows,
                       &place<bf16>(layout.kept), here.to(), await, settle, [&] { here.announce(); });
      else
        here.await(), here.announce_by_one(), join_rows(phase.norm, here.from(), splits, rows);
    }
  }
  if constexpr (!kWhole) {
    if (chain.linked < chain.phases) asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kLeftRegisters));
    block_sync();  // nobody looks at counts any more, and all logits are there
    if (threadIdx.x == 0) barrier_arrive(shared_address(&place<Common>(layout.common).logits_barrier));
  }
  if (threadIdx.x == 0 && atomicAdd(chain.counters + 1, 1u) == gridDim.x - 1) {
    for (int i = 0; i < 3 + chain.phases; ++i) chain.counters[i] = 0;
    chain.counters[2] = place<Common>(layout.common).first_tag + chain.phases;
  }
}

template <typename Rows, int kDepth>
__global__ void __launch_bounds__(kBlockThreads<(Rows::kExactly > 0)>, 1)
    chain_kernel(const __grid_constant__ DecodeChain chain, const __grid_constant__ Layout layout) {
#if __CUDA_ARCH__ >= 900 && __CUDA_ARCH__ < 1200  // 12.x has not the shared memory
  const Rings<typename Rows::Tiles, kDepth> rings{shared_address(shared_memory())};
  constexpr bool kFew = Rows::kExactly > 0;
  release_next();
  rings.init();
  if (!chain.overlaps) wait_previous();
  set_up<Rows>(chain, layout);
  const int servant = static_cast<int>(threadIdx.x / 32) - kWarps;
  if (servant < 0) {
    if constexpr (!kFew) asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kComputeRegisters));
    wait_previous();
    copy_inputs(chain, layout);
    if constexpr (kFew)
      meet<kStagedBarrier>();
    else
      await_batches(), block_sync();
    run_phases<Rows, kDepth>(chain, layout);
  } else if (servant < kServants<kFew>) {
    if constexpr (!kFew) asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kServantRegisters));
    if (servant < kBringers<kFew>)
      fill_rings<(Rows::Tiles::kTeams + kBringers<kFew> - 1) / kBringers<kFew>, kFew ? 60 : 20>(
          chain.maps, table_of(chain, layout), rings, kFew ? 0 : shared_address(&place<Common>(layout.common).q_came));
    else if constexpr (!kFew)
      Preparation<Rows>(chain, layout).run();
    if (chain.linked < chain.phases) {
      // Only then have those that compute given back the registers that are asked for.
      __syncwarp();
      barrier_wait(shared_address(&place<Common>(layout.common).logits_barrier), 0);
      if constexpr (!kFew) asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kChooseRegisters));
      const Table table = table_of(chain, layout);
      const int p = chain.linked;
      choose<kServants<kFew>>(table.phase(p).choice, table.share[table.phase(p - 1).product.shape], chain.rows, servant,
                              exchange_of<kFew>(chain, place<Common>(layout.common).first_tag, p), chain.told);
    }
  } else if constexpr (kFew) {
    wait_previous();
    meet<kStagedBarrier>();
    finish_products<Rows>(chain, layout);
  }
#endif
}

}  // namespace q4::gpu::decode
