// Decode chains on the host: what fits, how products are shared out, and the launch (the kernel: decode_phases.cuh).
#include "cuda/decode_chain.h"

#include <cstring>
#include <limits>
#include <type_traits>

#include "core/error.h"
#include "cuda/decode_deal.cuh"
#include "cuda/decode_phases.cuh"

namespace q4::gpu {
namespace sm90 {
CUtensorMap code_map(const void* data, int64_t row_bytes, int64_t rows, int64_t apart, int lines);
CUtensorMap scale_map(const void* data, int64_t row_bytes, int64_t rows, int64_t apart, int box_bytes);
CUtensorMap cache_map(const void* data, int64_t row_bytes, int64_t rows, int box_rows);
}  // namespace sm90
namespace {

using namespace decode;

constexpr int divide_up(int a, int b) { return (a + b - 1) / b; }

// However many rows there are, tiles, groups and teams are the same.
constexpr int kGroup = RowsInt8<1>::Tiles::kGroup, kTeam = RowsInt8<1>::Tiles::kTeam,
              kTeams = RowsInt8<1>::Tiles::kTeams;
static_assert(RowsBf16<1>::Tiles::kRow == RowsInt8<1>::Tiles::kRow && RowsBf16<1>::Tiles::kGroup == kGroup &&
              RowsBf16<1>::Tiles::kTeam == kTeam);

constexpr int items_of_round(int rows) {
  return rows <= kWholeRows ? RowsInt8<1>::Tiles::kSingleItems
         : rows <= 8        ? RowsBf16<1>::Tiles::kSingleItems
                            : RowsBf16<2>::Tiles::kSingleItems;
}

// Of a share, where the width may be split, so that x has room; and in how many pieces it is split where there is enough
// of it, so that a block has little of x to stage, and groups of rows can be dealt out evenly; and in how many at most.
constexpr int kMostWidth = 2560, kSplits = 4, kMostSplits = 6;

// Tiles of the widest share.
template <typename Rows>
int tiles_of(int width, int splits) {
  const int all = divide_up(width, Rows::kTile), strips = Rows::Tiles::strips(all);
  return std::min(all, divide_up(strips, splits) * Rows::Tiles::kTeam);
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
    const Layout layout = layout_for<Rows, depth>(rows, needs(Type<Rows>{}), machine.shared_bytes);
    if (layout.total > machine.shared_bytes) return false;
    body(chain_kernel<Rows, depth>, layout);
    return true;
  };
  const auto deepest = [&](auto rows_tag, auto... depths) {
    return (attempt(rows_tag, depths) || ...) || attempt(rows_tag, std::integral_constant<int, 2>{});
  };
  using Five = std::integral_constant<int, 5>;
  using Four = std::integral_constant<int, 4>;
  using Three = std::integral_constant<int, 3>;
  if (rows == 1) return deepest(Type<RowsInt8<1>>{}, Five{}, Four{});
  if (rows == 2) return deepest(Type<RowsInt8<2>>{}, Four{});
  if (rows <= 8) return deepest(Type<RowsBf16<1>>{}, Four{}, Three{});
  return deepest(Type<RowsBf16<2>>{}, Three{});
}

// Elements of x that a block keeps.
int kept_of(int rows, int width, int blocks) {
  const int groups = divide_up(width, kElements);
  return (rows <= kWholeRows ? divide_up(groups, blocks) * rows
                             : divide_up(divide_up(groups * rows, kNumbered), blocks) * kNumbered) *
         kElements;
}

// Of a width.
int strips_of(int width) { return RowsBf16<1>::Tiles::strips(divide_up(width, RowsBf16<1>::kTile)); }

// Blocks that all pieces of a width take when none may have more than `most` strips; more than there are where that is less
// than a piece has of one group.
int blocks_of(int groups, int strips, int splits, int most) {
  int blocks = 0;
  for (int k = 0; k < splits; ++k) {
    const int piece = strips_of_piece(strips, splits, k);
    if (most < piece) return std::numeric_limits<int>::max();
    blocks += blocks_of_piece(groups, piece, most);
  }
  return blocks;
}

// Items of a product that a block has at most.
int items_of(const DecodeProduct& product, int blocks) {
  const int pair = product.paired ? 1 : 0, groups = (product.items + pair) >> pair;
  if (product.splits == 1) return divide_up(groups, blocks) << pair;
  int most = 0;
  for (int k = 0; k < product.splits; ++k)
    most = std::max(most, product.most_strips / strips_of_piece(strips_of(product.width), product.splits, k));
  return std::min(most, groups);
}

// Segments of so many items, at most.
constexpr int segments_of(int rows, int items) { return items + divide_up(items, items_of_round(rows)) * kTeams; }

// Blocks that have any.
int busy_blocks(const DecodeProduct& product, int blocks) {
  const int pair = product.paired ? 1 : 0, groups = (product.items + pair) >> pair;
  return product.splits == 1 ? std::min(blocks, groups)
                             : blocks_of(groups, strips_of(product.width), product.splits, product.most_strips);
}

bool same_shares(const DecodeProduct& a, const DecodeProduct& b) {
  for (int m = 0; m < std::max(a.matrices, b.matrices); ++m)
    if (a.matrix[m].outputs != b.matrix[m].outputs) return false;
  return a.matrices == b.matrices && a.width == b.width && a.items == b.items && a.splits == b.splits &&
         a.most_strips == b.most_strips && a.paired == b.paired && a.adds == b.adds;
}

}  // namespace

DecodeMaps decode_maps(const Tensor& weight, const Tensor& second) {
  const auto apart = [&](const void* a, const void* b) {
    return second ? static_cast<const char*>(b) - static_cast<const char*>(a) : 0;
  };
  const int64_t rows = weight.rows(), width = weight.cols();
  return {sm90::code_map(weight.data, width / 2, rows, apart(weight.data, second.data), kTeam),
          sm90::scale_map(weight.scale, width / 16, rows, apart(weight.scale, second.scale),
                          kTeam * RowsInt8<1>::Tiles::kScales)};
}

DecodeMaps decode_maps_of_cache(const Tensor& keys, const Tensor& values) {
  const auto map = [](const Tensor& cache) {
    return sm90::cache_map(cache.data, cache.cols() * 2, cache.rows(), StagedCache::kBoxKeys);
  };
  return {map(keys), map(values)};
}

int decode_items(const DecodeProduct& product) {
  if (product.paired) return product.matrix[0].outputs / (kGroup / 2);
  int items = 0;
  for (int m = 0; m < product.matrices; ++m) items += divide_up(product.matrix[m].outputs, kGroup);
  return items;
}

namespace {

// Strips that a block has at most when `splits` pieces of a width are shared out so that none has more than need be; `limit` where
// that is too few.
int most_strips_of(int groups, int strips, int splits, int limit, int blocks) {
  int most = divide_up(strips, splits);
  while (most < limit && blocks_of(groups, strips, splits, most) > blocks) ++most;
  return most;
}

}  // namespace

DecodeSplit decode_split(int rows, int width, int outputs, const DecodeMachine& machine) {
  const int strips = strips_of(width), groups = divide_up(outputs, kGroup), blocks = machine.processors;
  if (rows <= kWholeRows) return {};
  const int least = std::max(divide_up(width, kMostWidth), std::min(kSplits, std::max(1, strips / 2)));
  // The slowest block is what all wait for. More pieces only where its teams of warps have a strip less then: each is one more
  // sum to add.
  DecodeSplit best{};
  for (int splits = least; splits == least || splits <= std::min(kMostSplits, strips); ++splits) {
    const int most = most_strips_of(groups, strips, splits, groups * strips, blocks);
    if (splits == least || divide_up(most, kTeams) < divide_up(best.most_strips, kTeams)) best = {splits, most};
  }
  return best.splits > 1 ? best : DecodeSplit{};
}

DecodeSplit decode_halves(int rows, int width, int outputs, const DecodeMachine& machine) {
  const int strips = strips_of(width), groups = divide_up(outputs, kGroup), blocks = machine.processors;
  DecodeProduct product{};
  product.matrices = 1, product.matrix[0].outputs = outputs, product.splits = 2;
  if (rows <= kWholeRows || strips < 2 || !decode_hands_on(rows, product)) return {};
  const int alone = divide_up(groups, blocks) * strips;
  const int most = most_strips_of(groups, strips, 2, alone, blocks);
  return blocks_of(groups, strips, 2, most) <= blocks ? DecodeSplit{2, most} : DecodeSplit{};
}

bool decode_fits(int rows, int width, int outputs, const DecodeSplit& split, const DecodeMachine& machine) {
  // The copy engine takes rows of scales that are whole pieces of 16 bytes.
  if (machine.capability < 90 || machine.processors > kDecodeBlocks || rows > kDecodeRows || width % 256 != 0 ||
      width <= 0)
    return false;
  DecodeProduct product{};
  product.width = width, product.splits = split.splits, product.most_strips = split.most_strips;
  // Pairs, which are dealt out two by two, and three matrices may have some groups more than outputs alone say.
  product.items = outputs / kGroup + 3;
  // What the blocks that share an attention's keys leave has room.
  if (machine.processors * kDecodeQueries * kPartLanes * 2 > kCopyPieces - kPartPieces) return false;
  // What item_of_strip's reciprocal is exact for, and segments have bits for.
  if (divide_up(width, split.splits) > kMostTiles * 256 || split.splits > machine.processors) return false;
  if (items_of(product, machine.processors) + 1 > kProductItems) return false;
  // With all that a chain may need beside it.
  const auto needs = [&](auto type) {
    return Needs{kChainPhases,
                 kChainShapes,
                 kChainItems,
                 segments_of(rows, kChainItems) + kChainShapes * kTeams,
                 tiles_of<typename decltype(type)::type>(width, split.splits),
                 kept_of(rows, width, machine.processors),
                 attention_bytes(kDecodeQueries, rows <= kWholeRows)};
  };
  return with_kernel(rows, needs, machine, [](auto*, const Layout&) {});
}

bool decode_pair_fits(const Tensor& first, const Tensor& second) {
  // One map finds both: their codes and their scales must lie in the same order.
  return first.rows() == second.rows() && first.rows() % (kGroup / 2) == 0 && first.data != second.data &&
         (first.as<char>() < second.as<char>()) == (first.scale < second.scale);
}

bool decode_hands_on(int rows, const DecodeProduct& product) {
  int64_t outputs = 0;
  for (int m = 0; m < product.matrices; ++m) {
    if (product.matrix[m].outputs % (product.paired ? kElements / 2 : kElements) != 0) return false;
    outputs += product.matrix[m].outputs;
  }
  const int64_t groups = rows * outputs / kElements;
  if (product.splits > 1) return product.splits * groups * kGroupPieces * 16 <= kTaggedBytes;
  // Of few rows, four copies, each with room behind it.
  return groups * kGroupPieces * 16 <= (rows <= kWholeRows ? kPartPieces * 16 : kTaggedBytes) &&
         groups * kElements * 2 <= kRowsBytes && groups / kNumbered * 4 <= kNumbersBytes;
}

namespace {

// What the phases need at most; says of every product what shape it has.
Needs deal_out(DecodePlan& plan, const DecodeMachine& machine) {
  DecodeChain& chain = plan.chain;
  const int blocks = machine.processors;
  Needs needs{};
  needs.tiles = 1;
  chain.products = 0, plan.first_of_shape.clear();
  for (size_t p = 0; p < plan.phases.size(); ++p) {
    DecodePhase& phase = plan.phases[p];
    if (phase.kind == PhaseKind::attention)
      needs.attention = std::max(
          needs.attention, attention_bytes(phase.attention.heads / phase.attention.kv_heads, chain.rows <= kWholeRows));
    if (phase.kind == PhaseKind::sum || phase.norm.weight)
      needs.kept = std::max(needs.kept, kept_of(chain.rows, phase.norm.width, blocks));
    phase.arrivals = phase.kind == PhaseKind::attention
                         ? chain.rows * phase.attention.kv_heads * value_parts(chain.rows <= kWholeRows)
                     : phase.kind == PhaseKind::product ? busy_blocks(phase.product, blocks)
                                                        : blocks;
    if (phase.kind != PhaseKind::product) continue;
    ++chain.products;
    DecodeProduct& product = phase.product;
    const bool last = p + 1 >= plan.phases.size() || plan.phases[p + 1].kind == PhaseKind::choice;
    product.hands_on = last                                            ? HandsOn::nothing
                       : product.splits > 1                            ? HandsOn::sums
                       : plan.phases[p + 1].kind == PhaseKind::product ? HandsOn::rows
                                                                       : HandsOn::halves;
    product.leaves = product.activated;
    for (int m = 0, groups = 0; m < product.matrices; ++m) {
      product.matrix[m].first_group = groups;
      if (!product.paired) groups += divide_up(product.matrix[m].outputs, kGroup);
      product.leaves = product.leaves || product.matrix[m].y;
    }
    product.shape = 0;
    for (const int first : plan.first_of_shape) {
      if (same_shares(product, plan.phases[static_cast<size_t>(first)].product)) break;
      ++product.shape;
    }
    const int shapes = static_cast<int>(plan.first_of_shape.size());
    if (product.shape < shapes || shapes == kChainShapes) continue;
    plan.first_of_shape.push_back(static_cast<int>(p));
    product.done = needs.items, product.segments = needs.segments;
    const int items = items_of(product, blocks);
    needs.items += items, needs.segments += segments_of(chain.rows, items);
  }
  needs.products = chain.products, needs.shapes = static_cast<int>(plan.first_of_shape.size());
  return needs;
}

}  // namespace

bool decode_has_room(DecodePlan& plan, int phases, const DecodeMachine& machine) {
  if (static_cast<int>(plan.phases.size()) + phases > kChainPhases) return false;
  const Needs needs = deal_out(plan, machine);
  return needs.shapes < kChainShapes && needs.items + kProductItems <= kChainItems;
}

namespace {

// What every block has of the products, one block after the other.
template <typename Tiles>
std::vector<char> lists_of(const DecodePlan& plan, const Lists& lists, int blocks) {
  std::vector<char> all(static_cast<size_t>(blocks) * static_cast<size_t>(lists.bytes));
  for (int block = 0; block < blocks; ++block) {
    char* const of_block = all.data() + int64_t{block} * lists.bytes;
    Share* const shares = reinterpret_cast<Share*>(of_block);
    for (const int first : plan.first_of_shape) {
      const DecodeProduct& product = plan.phases[static_cast<size_t>(first)].product;
      Share& share = shares[product.shape];
      share = share_of<Tiles>(product, plan.chain.rows, block, blocks);
      list_segments<Tiles>(share, product, product.segments, reinterpret_cast<Segment*>(of_block + lists.segments));
      list_done<Tiles>(share, product, reinterpret_cast<Done*>(of_block + lists.done));
    }
  }
  return all;
}

}  // namespace

std::vector<char> decode_script(DecodePlan& plan, const char* place, const DecodeMachine& machine) {
  DecodeChain& chain = plan.chain;
  const Lists lists(deal_out(plan, machine));
  static_assert(Lists::align(kChainShapes * sizeof(Share)) + Lists::align(kChainItems * sizeof(Done)) +
                    Lists::align((segments_of(kDecodeRows, kChainItems) + kChainShapes * kTeams) * sizeof(Segment)) <=
                kListBytes);
  std::vector<DecodeWeights> weights;
  bool attended = false;  // by the phase before
  for (const DecodePhase& phase : plan.phases) {
    if (phase.kind == PhaseKind::product)
      weights.push_back({phase.product.maps, static_cast<uint8_t>(phase.product.shape), phase.product.paired,
                         attended && chain.rows > RowsBf16<1>::kMostRows});
    attended = phase.kind == PhaseKind::attention;
  }
  std::vector<char> script;
  const auto add = [&](const auto& list) {
    using T = typename std::decay_t<decltype(list)>::value_type;
    const size_t at = script.size(), bytes = list.size() * sizeof(T);
    script.resize((at + bytes + 127) / 128 * 128);
    if (bytes > 0) std::memcpy(script.data() + at, list.data(), bytes);
    return reinterpret_cast<const T*>(place + at);
  };
  chain.phases = static_cast<int>(plan.phases.size());
  chain.linked = chain.phases - (plan.phases.back().kind == PhaseKind::choice ? 1 : 0);
  chain.maps = add(plan.maps), chain.phase = add(plan.phases), chain.weights = add(weights);
  const int rows = chain.rows, blocks = machine.processors;
  chain.lists = add(rows <= kWholeRows ? lists_of<RowsInt8<1>::Tiles>(plan, lists, blocks)
                    : rows <= 8        ? lists_of<RowsBf16<1>::Tiles>(plan, lists, blocks)
                                       : lists_of<RowsBf16<2>::Tiles>(plan, lists, blocks));
  return script;
}

namespace {

// A multiprocessor's copies keep maps that they have read, and must be told of what lies there now. As nobody writes it later
// once is enough; by all blocks of every chain it took five microseconds of each step.
__global__ void announce_kernel(const DecodeMaps* maps, int count) {
#if __CUDA_ARCH__ >= 900
  for (int i = threadIdx.x; i < count * 2; i += blockDim.x)
    asm volatile(
        "fence.proxy.tensormap::generic.acquire.gpu [%0], 128;" ::"l"(i % 2 ? &maps[i / 2].scales : &maps[i / 2].codes)
        : "memory");
#endif
}

cudaLaunchConfig_t one_block_each(const DecodeMachine& machine, int threads, int shared_bytes, cudaStream_t stream) {
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(machine.processors));
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = static_cast<size_t>(shared_bytes);
  config.stream = stream;
  return config;
}
cudaLaunchAttribute all_at_once() {
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeCooperative;
  attribute.val.cooperative = 1;
  return attribute;
}

}  // namespace

void decode_announce(const DecodeMaps* maps, int count, const DecodeMachine& machine, cudaStream_t stream) {
  // With so much shared memory no multiprocessor takes two blocks, so that each takes one.
  allow_shared(announce_kernel, static_cast<size_t>(machine.shared_bytes));
  cudaLaunchConfig_t config = one_block_each(machine, 256, machine.shared_bytes, stream);
  cudaLaunchAttribute attribute = all_at_once();
  config.attrs = &attribute, config.numAttrs = 1;
  Q4_CHECK(cudaLaunchKernelEx(&config, announce_kernel, maps, count));
}

DecodeLaunch decode_launch(DecodePlan& plan, const DecodeMachine& machine) {
  const Needs most = deal_out(plan, machine);
  const auto needs = [&](auto type) {
    Needs n = most;
    for (const DecodePhase& phase : plan.phases)
      if (phase.kind == PhaseKind::product)
        n.tiles = std::max(n.tiles, tiles_of<typename decltype(type)::type>(phase.product.width, phase.product.splits));
    return n;
  };
  DecodeLaunch result;
  result.rows = plan.chain.rows;
  if (plan.phases.back().kind == PhaseKind::choice) result.ids = plan.phases.back().choice.ids;
  with_kernel(plan.chain.rows, needs, machine, [&](auto* kernel, const Layout& layout) {
    allow_shared(kernel, static_cast<size_t>(layout.total));
    result.launch = [kernel, layout, machine, chain = plan.chain](cudaStream_t stream, const DecodeTold& told) mutable {
      chain.told = told;
      const int threads = chain.rows <= kWholeRows ? kBlockThreads<true> : kBlockThreads<false>;
      cudaLaunchConfig_t config = one_block_each(machine, threads, layout.total, stream);
      cudaLaunchAttribute attributes[2]{all_at_once()};
      attributes[1].id = cudaLaunchAttributeProgrammaticStreamSerialization;
      attributes[1].val.programmaticStreamSerializationAllowed = chain.overlaps;
      config.attrs = attributes;
      config.numAttrs = 2;
      Q4_CHECK(cudaLaunchKernelEx(&config, kernel, chain, layout));
    };
  });
  if (!result.launch) throw Error("Q4900", "a decode chain does not fit into shared memory");
  return result;
}

}  // namespace q4::gpu
