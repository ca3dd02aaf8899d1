// The persistent kernel of a decode step: one block a multiprocessor runs all phases of a chain, with a barrier of the
// whole grid between two of them. What bounds it is reading the weights once; decode_weights.cuh keeps that going.
// Needs cooperative launches: all blocks must be resident at once.
#include "cuda/decode_chain.h"

#include <algorithm>

#include "core/error.h"
#include "cuda/decode_attention.cuh"

namespace q4::gpu {
namespace {

using namespace decode;

// Shared memory: rings | the chain's phases | what attentions share | the block's shares of the phases | x, rows of a norm in raw; or what attention and norms need | sums | pending | partial | globals.
struct Layout {
  int table, sequences, shares, x, raw, sums, pending, partial, globals, total;
  int sums_buffers;
};

constexpr int kSegments = 2 * kWarps;  // runs of tiles of one item in one warp, of a round

// tiles: of the widest share of a product; raw_bytes: of the rows that a norm keeps beside x; scratch_bytes: of what is
// never needed together with x.
template <typename Rows, int kDepth>
Layout layout_for(int rows, int phases, int tiles, int raw_bytes, int scratch_bytes) {
  const auto align = [](int bytes) { return (bytes + 127) / 128 * 128; };
  Layout l{};
  const int x_bytes = align(Rows::bytes(rows, tiles));
  l.sums_buffers = rows <= 4 ? 2 : 1;
  l.table = kWarps * kDepth * Rows::Tiles::kStage;
  l.sequences = l.table + align(phases * static_cast<int>(sizeof(DecodePhase)));
  l.shares = l.sequences + align(static_cast<int>(sizeof(Sequences)) + rows * D / 2 * 8);
  l.x = l.shares + align(phases * static_cast<int>(sizeof(Share)));
  l.raw = l.x + x_bytes;
  l.sums = l.x + std::max(x_bytes + align(raw_bytes), align(scratch_bytes));
  l.pending = l.sums + l.sums_buffers * kSegments * Rows::Tiles::kGroup * rows * 4;
  l.partial = l.pending + (rows <= kFusedNormRows ? align(sizeof(Pending)) : 0);
  l.globals = l.partial + kFusedNormRows * kWarps * 4;
  l.total = l.globals + phases * 3 * 4;
  return l;
}

__device__ inline uint8_t* shared_memory() {
  extern __shared__ __align__(128) uint8_t memory[];
  return memory;
}
// Found anew each time, rather than held in registers from phase to phase.
template <typename T>
__device__ inline T& place(int offset) {
  asm volatile("" : "+r"(offset));
  return *reinterpret_cast<T*>(shared_memory() + offset);
}

__device__ inline void grid_arrive(uint32_t* counter) {
  __syncthreads();
  if (threadIdx.x == 0) {
    asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(counter) : "memory");
  }
}
__device__ inline void grid_wait(const uint32_t* counter, uint32_t target) {
  if (threadIdx.x == 0) {
    uint32_t arrived;
    do {
      asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(arrived) : "l"(counter) : "memory");
    } while (arrived < target);
  }
  __syncthreads();
}

template <typename Tiles>
constexpr int kGroupBits = Tiles::kGroup == 32 ? 5 : 4;

// One output of the product from the sums of its item's warps.
template <typename Rows>
__device__ inline void finish(const DecodeProduct& product, const Share& share, const Range& range, const float* sums,
                              const float* globals, int rows, int round) {
  using Tiles = typename Rows::Tiles;
  const int total = range.items * share.tiles, bits = product.paired ? kGroupBits<Tiles> - 1 : kGroupBits<Tiles>,
            outputs = 1 << bits;
  const uint32_t per_total = ((1u << 24) + total - 1) / total;  // n / total = n · per_total >> 24
#pragma unroll 1
  for (int i = threadIdx.x; i < range.items * outputs * rows; i += kThreads) {
    const int r = i & (outputs - 1), which = (i >> bits) / rows, n = (i >> bits) - which * rows;
    // Warp w has tiles [total · w / kWarps, total · (w + 1) / kWarps) of the round.
    const uint32_t first = which * share.tiles, last = first + share.tiles - 1;
    const int first_warp = ((first + 1) * kWarps - 1) * per_total >> 24,
              last_warp = ((last + 1) * kWarps - 1) * per_total >> 24;
    const auto joined = [&](int row) {
      float sum = 0;
#pragma unroll 4
      for (int w = first_warp; w <= last_warp; ++w)
        if (total * w / kWarps != total * (w + 1) / kWarps) sum += sums[((which + w) * Tiles::kGroup + row) * rows + n];
      return sum * Rows::kEpilogue;
    };
    const Item item = item_of<Tiles>(product, share.first_item + (round * kWarps + which) * share.step);
    const DecodeMatrix& m = product.matrix[item.matrix];
    const int output = item.group * outputs + r;
    if (output >= m.outputs) continue;
    const int64_t place = int64_t{n} * m.outputs + output;
    float value = joined(r) * globals[item.matrix];
    if (product.paired) {
      // As the separate ops: gate and up are rounded before they meet.
      value = rounded<bf16>(value);
      const float up = rounded<bf16>(joined(r + Tiles::kGroup / 2) * globals[1]);
      if (m.y) static_cast<bf16*>(m.y)[place] = from_f32<bf16>(value);
      if (product.matrix[1].y) static_cast<bf16*>(product.matrix[1].y)[place] = from_f32<bf16>(up);
      product.activated[place] = from_f32<bf16>(value / (1.0f + expf(-value)) * up);
    } else if (product.parts) {
      product.parts[int64_t{blockIdx.x % product.splits} * rows * m.outputs + place] = value;
    } else if (product.wide_output) {
      static_cast<float*>(m.y)[place] = value;
    } else {
      static_cast<bf16*>(m.y)[place] = from_f32<bf16>(value);
    }
  }
}

template <typename Rows, int kDepth>
__device__ inline void multiply_phase(const DecodeProduct& product, int rows, const Share& share, const float* globals,
                                      const uint8_t* x, const Layout& layout,
                                      WeightStream<typename Rows::Tiles, kDepth>& weights) {
  const int warp = threadIdx.x / 32;
  float* const sums = &place<float>(layout.sums);
  Rows of_x(x, share.tiles, rows);
  for (int round = 0; round * kWarps < share.count; ++round) {
    const Range range = range_of(share, round, warp);
    float* const buffer = sums + (round % layout.sums_buffers) * kSegments * Rows::Tiles::kGroup * rows;
    int which = share.item_of_tile(range.begin), tile = range.begin - which * share.tiles;
    for (int at = range.begin; at < range.end; ++at) {
      of_x.multiply(weights.take(), tile);
      if (++tile < share.tiles && at + 1 < range.end) continue;
      of_x.leave(buffer + (which + warp) * Rows::Tiles::kGroup * rows, rows);
      of_x.reset();
      tile = 0, ++which;
    }
    __syncthreads();
    finish<Rows>(product, share, range, buffer, globals, rows, round);
    if (layout.sums_buffers == 1) __syncthreads();
  }
}

__device__ inline void prefetch_line(const void* p) { asm volatile("prefetch.global.L2 [%0];" ::"l"(p)); }

// What the next phase reads right at its start, from memory into the second-level cache: a norm's weights, and what the
// cache holds of keys and values. The weights that flow by evict everything from one token to the next.
__device__ inline void prefetch(const DecodePhase& next, int rows, const Sequences& sequences) {
  constexpr int kLine = 128;
  if (next.kind == PhaseKind::attention) {
    const DecodeAttention& call = next.attention;
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
  } else if (next.norm.weight && blockIdx.x == gridDim.x - 1) {
#pragma unroll 1
    for (int i = threadIdx.x; i < next.norm.width * 4 / kLine; i += kThreads)
      prefetch_line(reinterpret_cast<const char*>(next.norm.weight) + i * kLine);
  }
}

// The phases and what attentions share, from the kernel's parameters to shared memory.
template <typename Tiles>
__device__ inline void copy_parameters(const DecodeChain& chain, const Layout& layout) {
  uint32_t* const to = &place<uint32_t>(layout.table);
  const char* const from = reinterpret_cast<const char*>(chain.phase);
#pragma unroll 1
  for (int i = threadIdx.x; i < chain.phases * static_cast<int>(sizeof(DecodePhase) / 4); i += kThreads)
    asm volatile("ld.u32 %0, [%1];"
                 : "=r"(to[i])
                 : "l"(from + i * 4));  // generic: the constant cache takes one at a time
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
      (&place<Share>(layout.shares))[threadIdx.x] = share_of<Tiles>(phase.product);
      for (int m = 0; m < phase.product.matrices; ++m)
        (&place<float>(layout.globals))[threadIdx.x * 3 + m] = *phase.product.matrix[m].global;
    }
  }
  __syncthreads();
}

template <typename Rows, int kDepth>
__global__ void __launch_bounds__(kThreads, 1)
    chain_kernel(const __grid_constant__ DecodeChain chain, const __grid_constant__ Layout layout) {
  copy_parameters<typename Rows::Tiles>(chain, layout);
  const Table table{&place<DecodePhase>(layout.table), &place<Share>(layout.shares), chain.phases, chain.rows};
  WeightStream<typename Rows::Tiles, kDepth> weights(table, shared_address(shared_memory()));
  int left_over = -1;  // the phase whose norm's results are pending

#pragma unroll 1
  for (int p = 0; p < table.phases; ++p) {
    if (p + 1 < table.phases) prefetch(table.phase[p + 1], table.rows, place<Sequences>(layout.sequences));
    if (p > 0) grid_wait(chain.counters, static_cast<uint32_t>(p) * gridDim.x);
    if (Rows::kNormalisesItself && left_over >= 0)
      place<Pending>(layout.pending).leave(table.phase[left_over].norm, table.rows);
    left_over = -1;
    const DecodePhase& phase = table.phase[p];
    if (phase.kind == PhaseKind::attention) {
      weights.pause();
      attend(phase.attention, table, place<Sequences>(layout.sequences), chain.attention_parts, chain.tickets,
             place<AttentionMemory>(layout.x));
    } else if (phase.kind == PhaseKind::join) {
      join_rows(phase.norm, table.rows);
    } else if (!Rows::kNormalisesItself && phase.kind == PhaseKind::norm) {
      normalise_rows(phase.norm, table.rows, &place<uint4>(layout.x), &place<float>(layout.partial));
    } else {
      const Share& share = table.share[p];
      uint8_t* const x = &place<uint8_t>(layout.x);
      if (Rows::kNormalisesItself && phase.norm.weight) {
        stage_norm<Rows>(phase.norm, table.rows, share, x, &place<uint4>(layout.raw), &place<float>(layout.partial),
                         place<Pending>(layout.pending));
        left_over = p;
      } else if (share.count > 0) {
        stage_rows<Rows>(phase.product, table.rows, share, x);
      }
      __syncthreads();
      multiply_phase<Rows, kDepth>(phase.product, table.rows, share, &place<float>(layout.globals) + p * 3, x, layout,
                                   weights);
    }
    if (p + 1 < table.phases || left_over >= 0) grid_arrive(chain.counters);
  }
  if (left_over >= 0) {
    grid_wait(chain.counters, static_cast<uint32_t>(table.phases) * gridDim.x);
    place<Pending>(layout.pending).leave(table.phase[left_over].norm, table.rows);
  }
  copy_wait<0>();
  if (threadIdx.x == 0 && atomicAdd(chain.counters + 1, 1u) == gridDim.x - 1) chain.counters[0] = chain.counters[1] = 0;
}

// Of a share, where the width may be split: of many rows, so that a block has little of x to stage; of few, so that joining
// the parts does not cost more than sharing the work evenly gains.
constexpr int kMostWidth = 1280, kMostWidthOfFew = 5120;

// Tiles of the widest share.
template <typename Rows>
int tiles_of(int width, int splits) {
  const int all = (width + Rows::kTile - 1) / Rows::kTile;
  return (all + splits - 1) / splits;
}

template <typename T>
struct Type {
  using type = T;
};

// The kernel for so many rows, with as deep a ring as shared memory allows.
template <typename TilesOf, typename Body>
bool with_kernel(int rows, int phases, TilesOf&& tiles, int raw_bytes, int scratch_bytes, const DecodeMachine& machine,
                 Body&& body) {
  const auto attempt = [&](auto rows_tag, auto depth) {
    using Rows = typename decltype(rows_tag)::type;
    const Layout layout = layout_for<Rows, depth>(rows, phases, tiles(Type<Rows>{}), raw_bytes, scratch_bytes);
    if (layout.total > machine.shared_bytes) return false;
    body(chain_kernel<Rows, depth>, layout);
    return true;
  };
  const auto deepest = [&](auto rows_tag, auto depth) {
    return attempt(rows_tag, depth) || attempt(rows_tag, std::integral_constant<int, 2>{});
  };
  using Four = std::integral_constant<int, 4>;
  using Three = std::integral_constant<int, 3>;
  if (rows == 1) return deepest(Type<RowsInt8<1>>{}, Four{});
  if (rows == 2) return deepest(Type<RowsInt8<2>>{}, Four{});
  if (rows <= 8) return deepest(Type<RowsBf16<1>>{}, Three{});
  return deepest(Type<RowsBf16<2>>{}, Three{});
}

int rows_of_group(int rows) { return rows <= kFusedNormRows ? RowsInt8<1>::Tiles::kGroup : RowsBf16<1>::Tiles::kGroup; }

int raw_of(int rows, int norm_width) { return rows <= kFusedNormRows ? rows * norm_width * 2 : 0; }

}  // namespace

int decode_items(int rows, const DecodeProduct& product) {
  const int group = rows_of_group(rows);
  if (product.paired) return product.matrix[0].outputs / (group / 2);
  int items = 0;
  for (int m = 0; m < product.matrices; ++m) items += (product.matrix[m].outputs + group - 1) / group;
  return items;
}

int decode_splits(int rows, int width) {
  const int most = rows <= kFusedNormRows ? kMostWidthOfFew : kMostWidth;
  return (width + most - 1) / most;
}

bool decode_fits(int rows, int width, bool whole, const DecodeMachine& machine) {
  if (rows > kDecodeRows || width % 32 != 0 || width <= 0) return false;
  if (whole) {
    // What finish's reciprocals are exact for, and what Pending holds.
    if (width > 16384) return false;
    if (rows <= kFusedNormRows && rows * width / 8 > Pending::kPieces / 2 * machine.processors) return false;
  } else if (decode_splits(rows, width) > machine.processors) {
    return false;
  }
  // With all that the phases of a layer need beside it.
  const auto tiles = [&](auto type) {
    return tiles_of<typename decltype(type)::type>(width, whole ? 1 : decode_splits(rows, width));
  };
  return with_kernel(rows, kChainPhases, tiles, whole ? raw_of(rows, width) : 0, std::max(attention_bytes(), 2 * width),
                     machine, [](auto*, const Layout&) {});
}

bool decode_pair_fits(int rows, int outputs) { return outputs % (rows_of_group(rows) / 2) == 0; }

void decode_chain(const DecodeChain& chain, const DecodeMachine& machine, cudaStream_t stream) {
  static_assert(sizeof(DecodeChain) + sizeof(Layout) <= 32764, "more than a kernel's parameters may hold");
  int raw = 0, scratch = 0;
  for (int p = 0; p < chain.phases; ++p) {
    const DecodePhase& phase = chain.phase[p];
    if (phase.kind == PhaseKind::product && phase.norm.weight)
      raw = std::max(raw, raw_of(chain.rows, phase.norm.width));
    if (phase.kind == PhaseKind::attention) scratch = std::max(scratch, attention_bytes());
    if (phase.kind == PhaseKind::norm) scratch = std::max(scratch, phase.norm.width * 2);
  }
  const auto tiles = [&](auto type) {
    int most = 1;
    for (int p = 0; p < chain.phases; ++p)
      if (chain.phase[p].kind == PhaseKind::product)
        most = std::max(
            most, tiles_of<typename decltype(type)::type>(chain.phase[p].product.width, chain.phase[p].product.splits));
    return most;
  };
  const bool run =
      with_kernel(chain.rows, chain.phases, tiles, raw, scratch, machine, [&](auto* kernel, const Layout& layout) {
        allow_shared(kernel, static_cast<size_t>(layout.total));
        cudaLaunchConfig_t config{};
        config.gridDim = dim3(static_cast<unsigned>(machine.processors));
        config.blockDim = dim3(kThreads);
        config.dynamicSmemBytes = static_cast<size_t>(layout.total);
        config.stream = stream;
        cudaLaunchAttribute attribute{};
        attribute.id = cudaLaunchAttributeCooperative;
        attribute.val.cooperative = 1;
        config.attrs = &attribute;
        config.numAttrs = 1;
        Q4_CHECK(cudaLaunchKernelEx(&config, kernel, chain, layout));
      });
  if (!run) throw Error("Q4900", "a decode chain does not fit into shared memory");
}

}  // namespace q4::gpu
