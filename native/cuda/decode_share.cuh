// How the products of a decode chain are dealt out: to blocks by groups of rows of W, in a block to teams of warps by strips.
#pragma once
#include "cuda/decode_chain.h"
#include "cuda/mma.cuh"

namespace q4::gpu::decode {

// The warps of a block: those that compute, those that have the weights brought, and one that finishes outputs, of few rows
// (kFew), or of more one that prepares what is to come (decode_phases.cuh).
constexpr int kWarps = 16, kThreads = kWarps * 32, kFinishThreads = 32;
template <bool kFew>
constexpr int kBringers = kFew ? 2 : 3;
template <bool kFew>
constexpr int kServants = kFew ? 2 : 4;  // those that choose tokens at the end
template <bool kFew>
constexpr int kBlockThreads = kThreads + kServants<kFew> * 32 + (kFew ? kFinishThreads : 0);
// Registers of more rows: of 96 a thread, which so many threads may have, those that do not compute leave most to the others.
constexpr int kComputeRegisters = 112, kServantRegisters = 32;
static_assert(kThreads * kComputeRegisters + kServants<false> * 32 * kServantRegisters <= kBlockThreads<false> * 96);
// At the end, when they choose tokens, they get some back.
constexpr int kLeftRegisters = 64, kChooseRegisters = 96;
static_assert(kThreads * kLeftRegisters + kServants<false> * 32 * kChooseRegisters <= kBlockThreads<false> * 96);

constexpr int kUnit = 128;  // inputs of a step of a product

// Barriers: of those that compute alone; and, with the warp that finishes, that x is staged, and that the sums of a round are
// left, or have been read, in either buffer.
__device__ inline void block_sync() { asm volatile("bar.sync 1, %0;" ::"n"(kThreads) : "memory"); }
constexpr int kStagedBarrier = 2, kLeftBarrier = 3, kReadBarrier = 5;
template <int kBarrier, bool kWaits>
__device__ inline void at_barrier() {
  if (kWaits)
    asm volatile("bar.sync %0, %1;" ::"n"(kBarrier), "n"(kThreads + kFinishThreads) : "memory");
  else
    asm volatile("bar.arrive %0, %1;" ::"n"(kBarrier), "n"(kThreads + kFinishThreads) : "memory");
}
// (Numbers known to the compiler: with numbers in registers racecheck reports what it does not report with these.)
template <int kBarrier>
__device__ inline void meet(int buffer = 0) {
  buffer ? at_barrier<kBarrier + 1, true>() : at_barrier<kBarrier, true>();
}
template <int kBarrier>
__device__ inline void tell(int buffer) {
  buffer ? at_barrier<kBarrier + 1, false>() : at_barrier<kBarrier, false>();
}

// How many blocks there are, read anew each time: the compiler would hold the number in a register, or spill it.
__device__ inline int blocks_of_grid() {
  int n;
  asm volatile("mov.u32 %0, %%nctaid.x;" : "=r"(n));
  return n;
}

// What is in shared memory, read again: without this the compiler holds dozens of pointers in registers all along.
template <typename T>
__device__ inline const T& reread(const T& x) {
  uint32_t address = shared_address(&x);
  asm volatile("" : "+r"(address));
  return *static_cast<const T*>(__cvta_shared_to_generic(address));
}

// Tiles of W: kGroup rows (of a pair, half of them of each matrix) and kTile inputs. A warp multiplies one at a time, and
// the kTeam warps of a team those of a strip, side by side. In shared memory a tile's codes lie row by row, 128 bytes each,
// swizzled by the copy engine: piece q of row r, 16 bytes, is where q ^ r % 8 would be; scales lie in rows of the strip.
// kRoundItems: groups of rows, at most, that are multiplied before their sums are added up; of products without pairs,
// kSingleItems: twice as many outputs each.
template <int kGroup_, int kTile_, int kTeam_, int kRoundItems_, int kSingleItems_>
struct Tiles {
  static constexpr int kGroup = kGroup_, kTile = kTile_, kTeam = kTeam_, kTeams = kWarps / kTeam,
                       kRoundItems = kRoundItems_, kSingleItems = kSingleItems_;
  static_assert(kSingleItems <= kRoundItems);
  static constexpr int kRow = kTile / 2, kScales = kTile / 16;  // bytes of a row's codes and scales
  static constexpr int kCodes = kGroup * kRow, kAllScales = kGroup * kScales;
  static constexpr int kStrip = kTeam * (kCodes + kAllScales);
  static_assert(kRow == 128 && kScales == 16 && kGroup % 16 == 0 && kWarps % kTeam == 0);
  __host__ __device__ static int strips(int tiles) { return (tiles + kTeam - 1) / kTeam; }
  __device__ static uint32_t place(int r, int q) { return r * kRow + (q ^ (r & 7)) * 16; }
};

// Strips of piece k of a width.
__host__ __device__ constexpr int strips_of_piece(int strips, int pieces, int k) {
  return strips * (k + 1) / pieces - strips * k / pieces;
}
// Blocks that share `groups` groups of rows of a piece when none has more than `most` strips: pieces are not all as wide.
__host__ __device__ constexpr int blocks_of_piece(int groups, int strips, int most) {
  return (groups + most / strips - 1) / (most / strips);
}

// What a block computes of a product: tiles [first_tile, +tiles) of the width, of `count` items.
struct Share {
  int piece, first_tile, tiles, strips, first_item, step, count;
  int pair;                       // 1: two neighbouring items at a time, which together have sixteen outputs
  uint32_t per_strip, per_row;    // n / strips = n · per_strip >> 20, and so of rows of x, for the n that occur here
  int done;                       // where its items are in the list of what is to be finished
  uint16_t segments[kWarps + 1];  // where those of each team begin, in the list of all

  __device__ int item(int i) const { return (first_item + (i >> pair) * step << pair) | (i & pair); }
  __device__ int item_of_strip(int n) const { return static_cast<int>(static_cast<uint32_t>(n) * per_strip >> 20); }
  // Of outputs row after row, which quads are.
  __device__ int divide_by_rows(int n) const { return static_cast<int>(static_cast<uint32_t>(n) * per_row >> 20); }
  template <typename Tiles>
  __device__ int round_items() const {
    return Tiles::kSingleItems == Tiles::kRoundItems || pair ? Tiles::kRoundItems : Tiles::kSingleItems;
  }
  template <typename Tiles>
  __device__ int items(int round) const {
    return min(round_items<Tiles>(), count - round * round_items<Tiles>());
  }
  template <typename Tiles>
  __device__ int rounds() const {
    return (count + round_items<Tiles>() - 1) / round_items<Tiles>();
  }
};

template <typename Tiles>
__device__ inline void share_out(Share& share, const DecodeProduct& product, int rows) {
  const int pieces = product.splits, pair = product.paired ? 1 : 0, groups = (product.items + pair) >> pair;
  const int all = (product.width + Tiles::kTile - 1) / Tiles::kTile, all_strips = Tiles::strips(all);
  // Blocks of a piece are neighbours.
  int piece = 0, place = static_cast<int>(blockIdx.x), per_piece = static_cast<int>(gridDim.x);
  if (pieces > 1)
    for (;; ++piece) {
      per_piece = blocks_of_piece(groups, strips_of_piece(all_strips, pieces, piece), product.most_strips);
      if (place < per_piece || piece + 1 == pieces) break;
      place -= per_piece;
    }
  // Sums are where x is kept. Of other products the blocks that have one group more are others, that no block has all the
  // more to bring.
  if (!product.adds && groups >= per_piece && place < per_piece) place = (place + per_piece / 2) % per_piece;
  const int first = all_strips * piece / pieces * Tiles::kTeam;
  const int tiles = min(all, all_strips * (piece + 1) / pieces * Tiles::kTeam) - first;
  int count = place < per_piece && place < groups ? ((groups - place + per_piece - 1) / per_piece) << pair : 0;
  // The last group of all may be half of one.
  if (count && (product.items & pair) && (groups - 1 - place) % per_piece == 0) --count;
  const int strips = Tiles::strips(tiles);
  share.piece = piece, share.first_tile = first, share.tiles = tiles, share.first_item = place, share.step = per_piece,
  share.count = count;
  share.strips = strips, share.per_strip = ((1u << 20) + strips - 1) / max(1, strips);
  share.per_row = ((1u << 20) + rows - 1) / rows;
  share.pair = pair, share.done = product.done;
}

// The strips of a round's items are dealt to the teams in order, in equal numbers; where they cannot be equal the first
// have one less: those finish the outputs.
struct Range {
  int begin, end;  // end > begin where the team has work
};
template <typename Tiles>
__device__ inline Range range_of(const Share& share, int round, int team) {
  constexpr int kTeams = Tiles::kTeams;
  const int total = share.items<Tiles>(round) * share.strips;
  if (total < kTeams) return {min(team, total), min(team + 1, total)};
  const int each = total / kTeams, with_less = kTeams - total % kTeams, begin = each * team + max(0, team - with_less);
  return {begin, begin + each + (team >= with_less)};
}
// The team that has strip n of a round.
template <typename Tiles>
__device__ inline int team_of_strip(int n, int total) {
  constexpr int kTeams = Tiles::kTeams;
  if (total < kTeams) return n;
  const int each = total / kTeams, with_less = kTeams - total % kTeams;
  return n < each * with_less ? n / each : with_less + (n - each * with_less) / (each + 1);
}

// Which matrix and which of its groups of rows item `i` of a product is.
struct Item {
  int matrix, group;
};
template <typename Tiles>
__device__ inline Item item_of(const DecodeProduct& product, int i) {
  int matrix = 0;
  if (!product.paired)
    for (; matrix + 1 < product.matrices; ++matrix) {
      const int groups = (product.matrix[matrix].outputs + Tiles::kGroup - 1) / Tiles::kGroup;
      if (i < groups) break;
      i -= groups;
    }
  return {matrix, i};
}

// Neighbouring strips of one item, for one team: which its warps multiply and leave the sums of. A team has at least one in
// every round, if without strips.
struct alignas(8) Segment {
  uint8_t strip, count;          // of the share's
  uint8_t which;                 // item of the round
  uint8_t matrix : 7, last : 1;  // last: of the round
  int group;
};
constexpr int kMostTiles = 128;  // of a share
// Of a round, the sums that warps leave: of every segment, by every warp of the team.
template <typename Tiles>
constexpr int kRoundSums = (Tiles::kRoundItems + Tiles::kTeams) * Tiles::kTeam;
template <typename Tiles>
__device__ inline int place_of_sums(int which, int team, int warp_of_team) {
  return (which + team) * Tiles::kTeam + warp_of_team;
}

// By one warp: what each of all teams does, in lists one after the other, from place `first` on.
template <typename Tiles>
__device__ inline void list_segments(Share& share, const DecodeProduct& product, int first, Segment* segments) {
  const int lane = threadIdx.x % 32, rounds = share.rounds<Tiles>();
  int count = 0;
  if (lane < Tiles::kTeams)
    for (int round = 0; round < rounds; ++round) {
      const Range range = range_of<Tiles>(share, round, lane);
      count += range.begin == range.end ? 1 : share.item_of_strip(range.end - 1) - share.item_of_strip(range.begin) + 1;
    }
  int end = count;
#pragma unroll
  for (int offset = 1; offset < 32; offset *= 2) {
    const int before = __shfl_up_sync(0xffffffffu, end, offset);
    if (lane >= offset) end += before;
  }
  if (lane == 0) share.segments[0] = static_cast<uint16_t>(first);
  if (lane >= Tiles::kTeams) return;
  share.segments[lane + 1] = static_cast<uint16_t>(first + end);
  Segment* to = segments + first + end - count;
  for (int round = 0; round < rounds; ++round) {
    const Range range = range_of<Tiles>(share, round, lane);
    int at = range.begin, which = share.item_of_strip(at);
    if (at == range.end) *to++ = {0, 0, 0, 0, 1, 0};
    for (; at < range.end; ++which) {
      const int strip = at - which * share.strips, strips = min(share.strips - strip, range.end - at);
      const Item item = item_of<Tiles>(product, share.item(round * share.round_items<Tiles>() + which));
      at += strips;
      *to++ = {static_cast<uint8_t>(strip),
               static_cast<uint8_t>(strips),
               static_cast<uint8_t>(which),
               static_cast<uint8_t>(item.matrix),
               at == range.end,
               item.group};
    }
  }
}

// An item whose warps have left their sums: how many, where the first did, and which outputs they are.
struct Done {
  uint16_t first;
  uint8_t parts, matrix;
  int group;
};

// The items of a share, by all threads that compute.
template <typename Tiles>
__device__ inline void list_done(const Share& share, const DecodeProduct& product, Done* done) {
#pragma unroll 1
  for (int i = threadIdx.x; i < share.count; i += kThreads) {
    const int round = i / share.round_items<Tiles>(), which = i % share.round_items<Tiles>(),
              total = share.items<Tiles>(round) * share.strips;
    const int first = team_of_strip<Tiles>(which * share.strips, total),
              last = team_of_strip<Tiles>((which + 1) * share.strips - 1, total);
    const Item item = item_of<Tiles>(product, share.item(i));
    done[share.done + i] = {static_cast<uint16_t>(place_of_sums<Tiles>(which, first, 0)),
                            static_cast<uint8_t>((last - first + 1) * Tiles::kTeam), static_cast<uint8_t>(item.matrix),
                            item.group};
  }
}

// The phases of a chain come to shared memory in batches, one of which is there before any of its phases begins, and still
// there in the next.
constexpr int kBatch = 8, kWindow = 4 * kBatch;
__device__ inline int slot_of(int p) { return static_cast<int>(static_cast<uint32_t>(p) % kWindow); }
struct Table {
  const DecodePhase* window;
  const Share* share;  // of this block, by DecodeProduct::shape
  const Segment* segments;
  const DecodeWeights* weights;
  int products;

  __device__ const DecodePhase& phase(int p) const { return window[slot_of(p)]; }
};

}  // namespace q4::gpu::decode
