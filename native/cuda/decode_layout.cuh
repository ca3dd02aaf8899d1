// What the kernel of a decode chain keeps in shared memory, and where.
#pragma once
#include <algorithm>

#include "cuda/decode_attention.cuh"
#include "cuda/decode_finish.cuh"

namespace q4::gpu::decode {

// Shared memory: rings | some of the chain's phases | a list of its products | what attentions share | the block's shares of
// the products | lists of their items | and of the teams' segments | what norms keep of x | constants of products | squares |
// globals of the phases that are there | what else a block remembers | x | sums. Attentions of few rows use the place of x,
// others that of both: for keys and values, what the warps leave of them, and what else they need.
struct Layout {
  int table, weights, sequences, shares, done, segments, kept, constants, squares, globals, common, x, sums, parts,
      attention, total;
  int sums_buffers;  // one or two
  int value_boxes, key_boxes;
};

// What a block remembers from phase to phase.
struct Common {
  uint64_t cache_barrier;   // of keys and values that are copied
  uint64_t logits_barrier;  // passed when the block has left its logits, of which tokens are chosen
  // Of more rows: passed when a phase begins, and when what the block clears in it is clear; when there is room for keys and
  // values of the next attention beside x and sums, beside sums, and everywhere; when an attention has its queries.
  uint64_t begun, cleared, early_fits, cache_fits, rest_fits, q_came;
  uint64_t described;  // of what set_up has brought
  uint32_t cache_parity, first_tag;
};

// What the phases of a chain need at most.
struct Needs {
  int products, shapes;
  int items, segments;  // in the lists of a block
  int tiles;            // of a share
  int kept;             // elements of x
  int attention;        // bytes
};

// What a block has of the products, one after the other: its shares of each shape (Share), its items (Done), and its teams'
// segments (Segment). From where on the latter two begin, and all bytes.
struct Lists {
  int done, segments, bytes;
  explicit Lists(const Needs& needs)
      : done(align(needs.shapes * static_cast<int>(sizeof(Share)))),
        segments(done + align(needs.items * static_cast<int>(sizeof(Done)))),
        bytes(segments + align(needs.segments * static_cast<int>(sizeof(Segment)))) {}
  static constexpr int align(int bytes) { return (bytes + 127) / 128 * 128; }
};

// shared_bytes: what there is.
template <typename Rows, int kDepth>
Layout layout_for(int rows, const Needs& needs, int shared_bytes) {
  constexpr bool kFew = Rows::kExactly > 0;
  const auto align = Lists::align;
  const Lists lists(needs);
  Layout l{};
  l.sums_buffers = rows <= 4 ? 2 : 1;
  l.table = align(Rings<typename Rows::Tiles, kDepth>::kBytes);
  l.weights = l.table + align(kWindow * static_cast<int>(sizeof(DecodePhase)));
  l.sequences = l.weights + align(needs.products * static_cast<int>(sizeof(DecodeWeights)));
  l.shares = l.sequences + align(static_cast<int>(sizeof(Sequences)) + rows * D / 2 * 8);
  l.done = l.shares + lists.done, l.segments = l.shares + lists.segments, l.kept = l.shares + lists.bytes;
  l.constants = l.kept + align(needs.kept * 2);
  l.squares = l.constants + align(Rows::kConstants);
  l.globals = l.squares + align(rows * kSquares<Rows> * 4);
  l.common = l.globals + align(kWindow * 3 * 4);
  l.x = l.common + align(static_cast<int>(sizeof(Common)));
  const int x = align(Rows::bytes(rows, needs.tiles)), attention = align(needs.attention),
            sums = align(l.sums_buffers * kRoundSums<typename Rows::Tiles> * Rows::kSumFloats * 4);
  constexpr int kFixed = static_cast<int>(sizeof(AttentionMemory));
  if (kFew) {
    l.attention = l.x, l.parts = l.x + kFixed, l.sums = l.x + std::max(x, attention);
    l.total = l.sums + sums;
  } else {
    // Keys and values get as much room as is left.
    constexpr int kBox = StagedCache::kBoxBytes, kMost = StagedCache::kMostBoxes;
    l.x = (l.x + 1023) / 1024 * 1024;
    const int wanted = attention > 0 ? 2 * kMost * kBox + align(kFixed) : 0;
    l.total = l.x + std::max({x + sums, attention, std::min(shared_bytes - l.x, wanted) / 128 * 128});
    l.sums = l.total - sums, l.attention = l.total - align(kFixed);
    l.parts = l.attention - (attention > 0 ? align(needs.attention - kFixed) : 0);
    if (attention > 0) {
      const int boxes = std::min(2 * kMost, (l.attention - l.x) / kBox);
      l.key_boxes = boxes / 2, l.value_boxes = boxes - l.key_boxes;
    }
  }
  return l;
}

__device__ inline Table table_of(const DecodeChain& chain, const Layout& layout) {
  return {&place<DecodePhase>(layout.table), &place<Share>(layout.shares), &place<Segment>(layout.segments),
          &place<DecodeWeights>(layout.weights), chain.products};
}
// Where a product's x is: of more rows right before the sums, so that as much as can be is left for what comes early of keys and
// values.
template <typename Rows>
__device__ inline int place_of_x(const Layout& layout, const Share& share, int rows) {
  return Rows::kExactly ? layout.x : layout.sums - Rows::bytes(rows, share.tiles);
}
// Of few rows.
__device__ inline Finish finish_of(const DecodeChain& chain, const Layout& layout, int p) {
  return {&place<float>(layout.globals) + slot_of(p) * 3, &place<bf16>(layout.kept),
          exchange_of<true>(chain, place<Common>(layout.common).first_tag, p),
          p + 1 == chain.linked ? nullptr : &place<DecodePhase>(layout.table) + slot_of(p + 1)};
}
template <typename Rows>
__device__ inline float* sums_of(const Layout& layout, int buffer) {
  return &place<float>(layout.sums) + buffer * (kRoundSums<typename Rows::Tiles> * Rows::kSumFloats);
}

}  // namespace q4::gpu::decode
