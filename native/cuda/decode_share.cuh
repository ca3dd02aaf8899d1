// What a block has of the products of a decode chain, which are dealt out on the host (decode_deal.cuh): to blocks by groups of
// rows of W, in a block to teams of warps by strips.
#pragma once
#include "cuda/decode_chain.h"
#include "cuda/mma.cuh"

namespace q4::gpu::decode {

// The warps of a block: those that compute, those that have the weights brought, and one that finishes outputs, of few rows
// (kFew), or of more one that prepares what is to come (decode_preparation.cuh).
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

// Which this is, likewise.
__device__ inline int block_of_grid() {
  int i;
  asm volatile("mov.u32 %0, %%ctaid.x;" : "=r"(i));
  return i;
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
  int pair;            // 1: two neighbouring items at a time, which together have sixteen outputs
  uint32_t per_strip;  // n / strips = n · per_strip >> 20, for the n that occur here
  int rounds;
  int done;                       // where its items are in the list of what is to be finished
  int first_group, row_groups;    // of outputs that are handed on: the first of the piece's, and how many a row has
  uint16_t segments[kWarps + 1];  // where those of each team begin, in the list of all

  __host__ __device__ int item(int i) const { return (first_item + (i >> pair) * step << pair) | (i & pair); }
  __host__ __device__ int item_of_strip(int n) const {
    return static_cast<int>(static_cast<uint32_t>(n) * per_strip >> 20);
  }
  template <typename Tiles>
  __host__ __device__ int round_items() const {
    return Tiles::kSingleItems == Tiles::kRoundItems || pair ? Tiles::kRoundItems : Tiles::kSingleItems;
  }
  template <typename Tiles>
  __host__ __device__ int items(int round) const {
    const int left = count - round * round_items<Tiles>();
    return left < round_items<Tiles>() ? left : round_items<Tiles>();
  }
};

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
constexpr int kRoundSums = (Tiles::kRoundItems + Tiles::kTeams - 1) * Tiles::kTeam;
// And of one item.
template <typename Tiles>
constexpr int kMostParts = Tiles::kTeams * Tiles::kTeam;
template <typename Tiles>
__host__ __device__ constexpr int place_of_sums(int which, int team, int warp_of_team) {
  return (which + team) * Tiles::kTeam + warp_of_team;
}

// An item whose warps have left their sums: how many, where the first did, and which outputs they are, by their group of
// sixteen among those of all matrices.
struct Done {
  uint16_t first;
  uint8_t parts, matrix;
  int group;
};

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
