// The persistent kernel of a decode step: one block a multiprocessor runs all phases of a chain; what a phase leaves is
// handed to the next piece by piece (decode_exchange.cuh). What bounds it is reading the weights once; decode_weights.cuh
// keeps that going. Needs cooperative launches: all blocks must be resident at once.
#include "cuda/decode_chain.h"

#include <algorithm>

#include "core/error.h"
#include "cuda/decode_attention.cuh"
#include "cuda/decode_finish.cuh"

namespace q4::gpu {
namespace sm90 {
CUtensorMap codes_map(const void* data, int64_t row_bytes, int64_t rows, int64_t apart);
}
namespace {

using namespace decode;

// Shared memory: rings | the chain's phases | what attentions share | the block's shares of the phases | lists of their items
// | what norms keep of x | x, or what attentions need | sums | squares | globals | the barrier of copied rows.
struct Layout {
  int table, sequences, shares, done, kept, x, sums, squares, globals, barrier, total;
  int sums_buffers;
};

constexpr int kSegments = 2 * kWarps;  // runs of tiles of one item in one warp, of a round

// What the phases of a chain need at most.
struct Needs {
  int phases, items;  // in the lists of a block
  int tiles;          // of a share
  int kept;           // elements of x
  int attention;      // bytes, never together with x
};

template <typename Rows, int kDepth>
Layout layout_for(int rows, const Needs& needs) {
  const auto align = [](int bytes) { return (bytes + 127) / 128 * 128; };
  Layout l{};
  l.sums_buffers = rows <= 4 ? 2 : 1;
  l.table = align(WeightStream<typename Rows::Tiles, kDepth>::kBytes);
  l.sequences = l.table + align(needs.phases * static_cast<int>(sizeof(DecodePhase)));
  l.shares = l.sequences + align(static_cast<int>(sizeof(Sequences)) + rows * D / 2 * 8);
  l.done = l.shares + align(needs.phases * static_cast<int>(sizeof(Share)));
  l.kept = l.done + align(needs.items * static_cast<int>(sizeof(Done)));
  l.x = l.kept + align(needs.kept * 2);
  l.sums = l.x + std::max(align(Rows::bytes(rows, needs.tiles)), align(needs.attention));
  l.squares = l.sums + l.sums_buffers * kSegments * Rows::Tiles::kGroup * rows * 4;
  l.globals = l.squares + rows * kWarps * 4;
  l.barrier = l.globals + align(needs.phases * 3 * 4);
  l.total = l.barrier + 8;
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

template <typename Rows, int kDepth>
__device__ inline void multiply_phase(const DecodePhase& phase, int rows, const Share& share, const Done* done,
                                      const uint8_t* x, const Layout& layout,
                                      WeightStream<typename Rows::Tiles, kDepth>& weights, const Finish& f) {
  const int warp = threadIdx.x / 32;
  float* const sums = &place<float>(layout.sums);
  Rows of_x(x, share.tiles, rows);
  for (int round = 0; round * kWarps < share.count; ++round) {
    const Range range = range_of(share, round, warp);
    float* const buffer = sums + (round % layout.sums_buffers) * kSegments * Rows::Tiles::kGroup * rows;
    int which = share.item_of_tile(range.begin), tile = range.begin - which * share.tiles;
    for (int at = range.begin; at < range.end; ++at) {
      of_x.multiply(weights.take(), tile);
      weights.give();
      if (++tile < share.tiles && at + 1 < range.end) continue;
      of_x.leave(buffer + (which + warp) * Rows::Tiles::kGroup * rows, rows);
      of_x.reset();
      tile = 0, ++which;
    }
    Outputs first{};
    if (warp * 8 < ((range.items + share.pair) >> share.pair) * rows)  // whole warps
      first = outputs_of<Rows>(phase, share, range.items, done, rows, round, threadIdx.x, f);
    block_sync();
    finish<Rows>(phase, share, range.items, buffer, rows, round, done, first, f);
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
      Share& share = (&place<Share>(layout.shares))[threadIdx.x];
      share = share_of<Tiles>(phase.product);
      share.done = phase.product.done;
      for (int m = 0; m < phase.product.matrices; ++m)
        (&place<float>(layout.globals))[threadIdx.x * 3 + m] = *phase.product.matrix[m].global;
    }
  }
  if (threadIdx.x == 0) barrier_init(shared_address(&place<uint64_t>(layout.barrier)), 1);
  __syncthreads();
#pragma unroll 1
  for (int p = 0; p < chain.phases; ++p) {
    const DecodePhase& phase = (&place<DecodePhase>(layout.table))[p];
    if (phase.kind != PhaseKind::product || !phase.product.first_of_shape) continue;
    const Share& share = (&place<Share>(layout.shares))[p];
#pragma unroll 1
    for (int i = threadIdx.x; i < share.count; i += kThreads) {
      const int round = i / kWarps, which = i % kWarps, total = range_of(share, round, 0).items * share.tiles;
      const int first = warp_of_tile(which * share.tiles, total),
                last = warp_of_tile((which + 1) * share.tiles - 1, total);
      const Item item = item_of<Tiles>(phase.product, share.item(i));
      (&place<Done>(layout.done))[share.done + i] = {static_cast<uint16_t>(which + first),
                                                     static_cast<uint8_t>(last - first + 1),
                                                     static_cast<uint8_t>(item.matrix), item.group};
    }
  }
  __syncthreads();
}

template <typename Rows, int kDepth>
__global__ void __launch_bounds__(kThreads, 1)
    chain_kernel(const __grid_constant__ DecodeChain chain, const __grid_constant__ Layout layout) {
#if __CUDA_ARCH__ >= 900 && __CUDA_ARCH__ < 1200  // 12.x has not the shared memory
  copy_parameters<typename Rows::Tiles>(chain, layout);
  const Table table{&place<DecodePhase>(layout.table), &place<Share>(layout.shares), chain.phases, chain.rows};
  WeightStream<typename Rows::Tiles, kDepth> weights(chain.maps, table, shared_address(shared_memory()));
  const uint32_t first_tag = chain.counters[2] + 1;
  constexpr bool kWhole = Rows::kExactly > 0;
  uint32_t rows_parity = 0;
  const int rows = rows_of<Rows>(table.rows);
  // The first phase reads what others may write over.
  const auto settle = [&] { grid_sync(chain.counters); };

#pragma unroll 1
  for (int p = 0; p < table.phases; ++p) {
    const DecodePhase& phase = table.phase[p];
    const bool last = p + 1 == table.phases;
    if (!last && table.phase[p + 1].kind == PhaseKind::attention)
      prefetch(table.phase[p + 1].attention, rows, place<Sequences>(layout.sequences));
    const Exchange to = exchange_of(chain, first_tag, p), from = copy_of<kWhole>(exchange_of(chain, first_tag, p - 1));
    bf16* const kept = &place<bf16>(layout.kept);
    uint32_t* const arrived = chain.counters + 3 + p;
    // Nobody waits for the last phase, and its count would come too late to be set back.
    const auto arrive_here = [&] {
      if (!last) arrive<!kWhole>(arrived);
    };
    const auto await_before = [&] { await<!kWhole>(arrived - 1, table.phase[p - 1].arrivals); };
    if (phase.kind == PhaseKind::attention) {
      attend<Rows>(phase.attention, from, to, table, place<Sequences>(layout.sequences), chain.attention_parts,
                   chain.tickets, place<AttentionMemory>(layout.x), await_before, arrive_here);
    } else if (phase.kind == PhaseKind::product) {
      const Share& share = table.share[p];
      if (share.count > 0) {
        uint8_t* const x = &place<uint8_t>(layout.x);
        float* const squares = &place<float>(layout.squares);
        const DecodePhase* const next = last ? nullptr : &phase + 1;
        const Done* const done = &place<Done>(layout.done) + share.done;
        float4 norm_weight{};
        if (kWhole && phase.product.adds && static_cast<int>(threadIdx.x) < share.count * rows * (kElements / kQuad))
          norm_weight = *reinterpret_cast<const float4*>(
              next->norm.weight + share.item(threadIdx.x / 4 / rows) * kElements + threadIdx.x % 4 * kQuad);
        await_before();
        if constexpr (kWhole)
          stage_pieces<Rows>(phase, from, share, x, squares);
        else
          stage_rows<Rows>(phase, from, rows, share, x, squares, shared_address(&place<uint64_t>(layout.barrier)),
                           rows_parity);
        block_sync();
        multiply_phase<Rows, kDepth>(phase, rows, share, done, x, layout, weights,
                                     {&place<float>(layout.globals) + p * 3, squares, kept, norm_weight, to, next});
        if (phase.norm.weight)
          leave_norm<Rows>(phase.norm, from, squares, rows, (phase.product.items + share.pair) >> share.pair);
        arrive_here();
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
    for (int i = 0; i < 3 + table.phases; ++i) chain.counters[i] = 0;
    chain.counters[2] = first_tag + table.phases;
  }
#endif
}

// Of a share, where the width may be split, so that a block has little of x to stage.
constexpr int kMostWidth = 1280;

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
template <typename NeedsOf, typename Body>
bool with_kernel(int rows, NeedsOf&& needs, const DecodeMachine& machine, Body&& body) {
  const auto attempt = [&](auto rows_tag, auto depth) {
    using Rows = typename decltype(rows_tag)::type;
    const Layout layout = layout_for<Rows, depth>(rows, needs(Type<Rows>{}));
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

int rows_of_group(int rows) { return rows <= kWholeRows ? RowsInt8<1>::Tiles::kGroup : RowsBf16<1>::Tiles::kGroup; }

int divide_up(int a, int b) { return (a + b - 1) / b; }

// Elements of x that a block keeps.
int kept_of(int rows, int width, int blocks) {
  const int groups = divide_up(width, kElements);
  return (rows <= kWholeRows ? divide_up(groups, blocks) * rows : divide_up(groups * rows, blocks)) * kElements;
}

// Items of a product that a block has at most.
int items_of(const DecodeProduct& product, int blocks) {
  const int pair = product.paired ? 1 : 0;
  return divide_up((product.items + pair) >> pair, std::max(1, blocks / product.splits)) << pair;
}

// Blocks that have any.
int busy_blocks(const DecodeProduct& product, int blocks) {
  const int pair = product.paired ? 1 : 0;
  return std::min(blocks / product.splits, (product.items + pair) >> pair) * product.splits;
}

bool same_shares(const DecodeProduct& a, const DecodeProduct& b) {
  for (int m = 0; m < std::max(a.matrices, b.matrices); ++m)
    if (a.matrix[m].outputs != b.matrix[m].outputs) return false;
  return a.matrices == b.matrices && a.width == b.width && a.items == b.items && a.splits == b.splits &&
         a.paired == b.paired;
}

}  // namespace

CUtensorMap decode_map(const uint8_t* codes, const uint8_t* second, int outputs, int width) {
  return sm90::codes_map(codes, width / 2, outputs, second ? second - codes : 0);
}

int decode_items(int rows, const DecodeProduct& product) {
  const int group = rows_of_group(rows);
  if (product.paired) return product.matrix[0].outputs / (group / 2);
  int items = 0;
  for (int m = 0; m < product.matrices; ++m) items += (product.matrix[m].outputs + group - 1) / group;
  return items;
}

int decode_splits(int rows, int width) { return rows <= kWholeRows ? 1 : divide_up(width, kMostWidth); }

bool decode_fits(int rows, int width, bool whole, const DecodeMachine& machine) {
  // The copy engine takes rows of scales that are whole pieces of 16 bytes.
  if (machine.capability < 90 || rows > kDecodeRows || width % 256 != 0 || width <= 0) return false;
  const int splits = whole ? 1 : decode_splits(rows, width);
  // What item_of_tile's reciprocal is exact for; every piece of the width a block.
  if (divide_up(width, splits) > 32768 || splits > machine.processors) return false;
  // With all that the phases of a layer need beside it.
  const auto needs = [&](auto type) {
    return Needs{kChainPhases, 256, tiles_of<typename decltype(type)::type>(width, splits),
                 kept_of(rows, width, machine.processors), attention_bytes(kDecodeQueries)};
  };
  return with_kernel(rows, needs, machine, [](auto*, const Layout&) {});
}

bool decode_pair_fits(int rows, int outputs) { return outputs % (rows_of_group(rows) / 2) == 0; }

bool decode_hands_on(int rows, const DecodeProduct& product) {
  int64_t outputs = 0;
  for (int m = 0; m < product.matrices; ++m) {
    if (product.matrix[m].outputs % (product.paired ? kElements / 2 : kElements) != 0) return false;
    outputs += product.matrix[m].outputs;
  }
  const int64_t groups = rows * outputs / kElements;
  if (product.splits > 1) return product.splits * groups * kElements * 4 <= kRowsBytes;
  return groups * kGroupPieces * 16 <= (rows <= kWholeRows ? kTaggedBytes / kExchangeCopies : kTaggedBytes) &&
         groups * kElements * 2 <= kRowsBytes && groups * 4 <= kNumbersBytes;
}

void decode_chain(DecodeChain& chain, const DecodeMachine& machine, cudaStream_t stream) {
  static_assert(sizeof(DecodeChain) + sizeof(Layout) <= 32764, "more than a kernel's parameters may hold");
  const int blocks = machine.processors;
  Needs most{chain.phases, 0, 1, 0, 0};
  for (int p = 0; p < chain.phases; ++p) {
    DecodePhase& phase = chain.phase[p];
    if (phase.kind == PhaseKind::attention)
      most.attention = std::max(most.attention, attention_bytes(phase.attention.heads / phase.attention.kv_heads));
    if (phase.kind == PhaseKind::sum || phase.norm.weight)
      most.kept = std::max(most.kept, kept_of(chain.rows, phase.norm.width, blocks));
    phase.arrivals = phase.kind == PhaseKind::attention ? chain.rows * phase.attention.kv_heads
                     : phase.kind == PhaseKind::product ? busy_blocks(phase.product, blocks)
                                                        : blocks;
    if (phase.kind != PhaseKind::product) continue;
    DecodeProduct& product = phase.product;
    product.first_of_shape = true, product.done = most.items;
    for (int q = 0; q < p && product.first_of_shape; ++q)
      if (chain.phase[q].kind == PhaseKind::product && same_shares(product, chain.phase[q].product))
        product.first_of_shape = false, product.done = chain.phase[q].product.done;
    if (product.first_of_shape) most.items += items_of(product, blocks);
  }
  const auto needs = [&](auto type) {
    Needs n = most;
    for (int p = 0; p < chain.phases; ++p)
      if (chain.phase[p].kind == PhaseKind::product)
        n.tiles = std::max(n.tiles, tiles_of<typename decltype(type)::type>(chain.phase[p].product.width,
                                                                            chain.phase[p].product.splits));
    return n;
  };
  const bool run = with_kernel(chain.rows, needs, machine, [&](auto* kernel, const Layout& layout) {
    allow_shared(kernel, static_cast<size_t>(layout.total));
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(static_cast<unsigned>(blocks));
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
