// NVFP4 weights on their way to the products of a decode chain. Every warp has a ring of its own in shared memory and
// fills it with asynchronous copies of the tiles that it will multiply, in order, across items and phases: weights do not
// depend on what is computed, so that memory is read without a pause while the blocks wait for each other.
#pragma once
#include "cuda/decode_chain.h"
#include "cuda/mma.cuh"

namespace q4::gpu::decode {

constexpr int kWarps = 16, kThreads = kWarps * 32;
constexpr int kUnit = 128;  // inputs of a step of a product

// Tiles of W: kGroup rows (of a pair, half of them of each matrix) and kTile inputs. In shared memory the codes lie row
// by row, followed by the scales.
template <int kGroup_, int kTile_>
struct Tiles {
  static constexpr int kGroup = kGroup_, kTile = kTile_;
  static constexpr int kRow = kTile / 2, kScales = kTile / 16;  // bytes of a row's codes and scales
  static constexpr int kPieces = kRow / 16;                     // of 16 bytes, in a row
  static constexpr int kCodes = kGroup * kRow, kStage = kCodes + kGroup * kScales;
  static_assert(kGroup * kPieces == 128, "four pieces a lane");
  // Where row r keeps its piece q: the two rows that are read together lie in different banks.
  __device__ static uint32_t place(int r, int q) { return r * kRow + (kPieces == 4 ? q : q ^ (r & 1) << 2) * 16; }
};

// What a block computes of a product: tiles [first_tile, +tiles) of the width, of items first_item + i·step, i < count.
struct Share {
  int first_tile, tiles, first_item, step, count;
  uint32_t per_tile;  // n / tiles = n · per_tile >> 20, for the n that occur here

  __device__ int item_of_tile(int n) const { return static_cast<int>(static_cast<uint32_t>(n) * per_tile >> 20); }
};

template <typename Tiles>
__device__ inline Share share_of(const DecodeProduct& product) {
  const int per_piece = static_cast<int>(gridDim.x) / product.splits, piece = blockIdx.x % product.splits,
            place = blockIdx.x / product.splits;
  const int all = (product.width + Tiles::kTile - 1) / Tiles::kTile, first = all * piece / product.splits;
  const int tiles = all * (piece + 1) / product.splits - first;
  return {first,
          tiles,
          place,
          per_piece,
          place < per_piece && place < product.items ? (product.items - place + per_piece - 1) / per_piece : 0,
          ((1u << 20) + tiles - 1) / max(1, tiles)};
}

// A round is up to kWarps items, whose tiles are dealt to the warps in order, in equal numbers.
struct Range {
  int items, begin, end;  // end > begin where the warp has work
};
__device__ inline Range range_of(const Share& share, int round, int warp) {
  const int items = min(kWarps, share.count - round * kWarps), total = items * share.tiles;
  return {items, total * warp / kWarps, total * (warp + 1) / kWarps};
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

// The phases of a chain, in shared memory: reading them from the kernel's parameters would miss the constant cache in
// every phase anew.
struct Table {
  const DecodePhase* phase;
  const Share* share;  // of this block in each
  int phases, rows;
};

template <typename Tiles, int kDepth>
class WeightStream {
  static constexpr int kStage = Tiles::kStage;

 public:
  __device__ WeightStream(const Table& table, uint32_t ring)
      : phase_of_(table.phase),
        share_of_(table.share),
        phases_(table.phases),
        ring_(ring + threadIdx.x / 32 * kDepth * kStage) {
#pragma unroll 1
    for (int i = 0; i < kDepth - 1; ++i) issue(i);
  }

  // The stage of the next tile, once it has arrived; starts the copy of the tile kDepth − 1 further on, over the tile
  // taken before, which all lanes have read.
  __device__ uint32_t take() {
    copy_wait<kDepth - 2>();
    __syncwarp();
    const int taken = taken_, before = taken == 0 ? kDepth - 1 : taken - 1;
    taken_ = taken + 1 == kDepth ? 0 : taken + 1;
    issue(before);
    return ring_ + taken * kStage;
  }

  // For phases that need registers for other things: between them only where the stream stands is kept.
  __device__ void pause() { left_ = 0; }

 private:
  __device__ void issue(int stage) {
    if (left_ == 0) seek();
    if (phase_ < phases_) copy_tile(ring_ + stage * kStage);
    copy_commit();
  }

  // Finds tile `at_` of its round, or the first of the next round in which this warp has any: the lane's pointers into
  // its item, rows lane / 8 of the group's halves, and the scales of row lane.
  __device__ void seek() {
    const int lane = threadIdx.x % 32;
    while (phase_ < phases_) {
      if (phase_ >= 0 && phase_of_[phase_].kind == PhaseKind::product) {
        const DecodeProduct& product = phase_of_[phase_].product;
        const Share& share = share_of_[phase_];
        while (at_ == end_ && (round_ + 1) * kWarps < share.count) {
          const Range range = range_of(share, ++round_, threadIdx.x / 32);
          at_ = range.begin, end_ = range.end;
        }
        if (at_ != end_) {
          const int which = share.item_of_tile(at_), in_item = at_ - which * share.tiles,
                    tile = share.first_tile + in_item;
          const Item item = item_of<Tiles>(product, share.first_item + (round_ * kWarps + which) * share.step);
          const DecodeMatrix &matrix = product.matrix[item.matrix],
                             &other = product.matrix[product.paired ? 1 : item.matrix];
          constexpr int kHalf = Tiles::kGroup / 2;
          left_ = min(share.tiles - in_item, end_ - at_);
          row_bytes_ = product.width / 2;
          const int64_t first = int64_t{item.group} * (product.paired ? kHalf : Tiles::kGroup);
          const int to_other =
              product.paired ? 0 : kHalf;  // rows from the first of the lower half to that of the upper
          rows_ = product.paired ? Tiles::kGroup : min(Tiles::kGroup, matrix.outputs - static_cast<int>(first));
          const int64_t offset =
              (first + lane / Tiles::kPieces) * row_bytes_ + tile * Tiles::kRow + lane % Tiles::kPieces * 16;
          low_ = matrix.codes + offset;
          high_ = other.codes + offset + to_other * row_bytes_;
          const int row = lane % Tiles::kGroup;
          scales_ = (row < kHalf ? matrix.scales + (first + row) * (row_bytes_ / 8)
                                 : other.scales + (first + row - kHalf + to_other) * (row_bytes_ / 8)) +
                    tile * Tiles::kScales;
          bytes_left_ = row_bytes_ - tile * Tiles::kRow - lane % Tiles::kPieces * 16;
          return;
        }
      }
      ++phase_, round_ = -1, at_ = end_ = 0;
    }
  }

  __device__ void copy_tile(uint32_t to) {
    const int lane = threadIdx.x % 32, row = lane / Tiles::kPieces, piece = lane % Tiles::kPieces;
    constexpr int kStep = 32 / Tiles::kPieces;  // rows that the warp copies at a time
    const uint8_t* const somewhere = phase_of_[phase_].product.matrix[0].codes;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int r = row + kStep * i;
      const bool inside = bytes_left_ > 0 && r < rows_;
      const uint8_t* from = (i < 2 ? low_ : high_) + (i & 1) * kStep * row_bytes_;
      copy_async(to + Tiles::place(r, piece), inside ? from : somewhere, inside);
    }
    if (lane < Tiles::kGroup) {
      const uint32_t place = to + Tiles::kCodes + lane * Tiles::kScales;
      const bool inside = lane < rows_;
      if (row_bytes_ % Tiles::kRow == 0) {
        asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(place), "l"(inside ? scales_ : somewhere),
                     "n"(Tiles::kScales), "r"(inside ? Tiles::kScales : 0));
      } else {
        // Rows of scales are not whole pieces. bytes_left_ is that of the lane's piece.
        const int count = inside ? min(Tiles::kScales, (bytes_left_ + piece * 16) / 8) : 0;
#pragma unroll 1
        for (int i = 0; i < Tiles::kScales; ++i) {
          const uint32_t scale = i < count ? scales_[i] : 0;
          asm volatile("st.shared.u8 [%0], %1;" ::"r"(place + i), "r"(scale) : "memory");
        }
      }
    }
    ++at_, --left_;
    low_ += Tiles::kRow, high_ += Tiles::kRow, scales_ += Tiles::kScales, bytes_left_ -= Tiles::kRow;
  }

  const DecodePhase* const phase_of_;
  const Share* const share_of_;
  const int phases_;
  const uint32_t ring_;
  const uint8_t *low_ = nullptr, *high_ = nullptr, *scales_ = nullptr;
  int phase_ = -1, round_ = -1, at_ = 0, end_ = 0;
  int left_ = 0;  // tiles that the pointers serve: of the item, in this warp's range
  int row_bytes_ = 0, bytes_left_ = 0, rows_ = 0, taken_ = 0;
};

}  // namespace q4::gpu::decode
