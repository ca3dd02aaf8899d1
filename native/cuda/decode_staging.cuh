// The rows of x that a product of a decode chain takes, from where the phase before hands them on to shared memory.
#pragma once
#include "cuda/decode_rows.cuh"

namespace q4::gpu::decode {

// Partial sums of squares a row, which whoever needs the norm's scale adds up; of more rows the scale itself.
template <typename Rows>
constexpr int kSquares = Rows::kExactly ? kThreads / 2 : 1;

// The rows of a product's x from the phase before, piece by piece, where rows are few: every thread takes each kThreads-th
// piece of a row. Which those are, and where they go, is found before the phase before is done with, as a hundred
// instructions by all warps take as long as a piece.
template <typename Rows>
class PieceStager {
 public:
  // x: where rows are kept; squares: [rows][kSquares], written where the product's x is normalised.
  __device__ PieceStager(const DecodePhase& phase, const Exchange& source, const Share& share, uint8_t* x,
                         float* squares)
      : tag_(Rows::high_half_tag(source.tag)),
        left_(share.tiles * kRowOfTile - static_cast<int>(threadIdx.x)),
        tiles_(share.tiles) {
    uint32_t piece = threadIdx.x;
    // What follows from the thread alone the compiler would keep from phase to phase; of two rows there are no registers for that.
    if (Rows::kExactly > 1) asm volatile("" : "+r"(piece));
    from_ = source.slot + piece;
    digits_ = Rows::digits_of(shared_address(x), piece), scales_ = Rows::scales_of(shared_address(x), tiles_, piece);
    // The second piece of each group has its sum of squares. (Where nobody wants them, those of an earlier phase may still be
    // read.)
    static_assert(Rows::kPieces == 2 && kThreads / 2 == kSquares<Rows>);
    squares_ = phase.norm.weight && piece % 2 == 1 ? shared_address(squares + piece / 2) : 0;
    asm volatile("" : "+l"(from_), "+r"(digits_), "+r"(scales_), "+r"(left_), "+r"(tag_), "+r"(squares_));
  }

  __device__ void stage() const {
    constexpr int kFew = 1, kMany = 3;
#pragma unroll
    for (int row = 0; row < Rows::kExactly; ++row) {
      const int to = row * Rows::row_bytes(tiles_);
      const uint4* from = from_ + row * tiles_ * kRowOfTile;
      uint32_t digits = digits_ + to, scales = scales_ + to;
      float square = 0;
      for (int left = left_; left > -static_cast<int>(threadIdx.x);) {
        if (left + static_cast<int>(threadIdx.x) <= kFew * kThreads)
          take<kFew>(from, left, digits, scales, square);
        else
          take<kMany>(from, left, digits, scales, square);
        left -= kMany * kThreads, from += kMany * kThreads;
        digits += kMany * Rows::kTilesApart * Rows::kTileBytes, scales += kMany * (kThreads / Rows::kPieces) * 4;
      }
      shared_store_if(squares_ != 0, squares_ + row * kSquares<Rows> * 4, __float_as_uint(square));
    }
  }

 private:
  static constexpr int kRowOfTile = Rows::kTile / Rows::kOfPiece;

  // Of a row, the first kCount pieces, of which `left` are there.
  template <int kCount>
  __device__ void take(const uint4* from, int left, uint32_t digits, uint32_t scales, float& square) const {
    uint4 v[kCount];
    for (;;) {
      bool arrived = true;
#pragma unroll
      for (int j = 0; j < kCount; ++j) {
        v[j] = make_uint4(0, 0, 0, tag_);  // and a number of 0
        if (j * kThreads < left) v[j] = peek(from + j * kThreads);
      }
#pragma unroll
      for (int j = 0; j < kCount; ++j) arrived &= Rows::has_tag(v[j], tag_);
      if (arrived) break;
      __nanosleep(kPollPause);
    }
    const bool first = threadIdx.x % Rows::kPieces == 0;
#pragma unroll
    for (int j = 0; j < kCount; ++j) {
      const bool inside = j * kThreads < left;
      const uint32_t to = digits + j * Rows::kTilesApart * Rows::kTileBytes;
      shared_store2_if(inside, to, v[j].x, v[j].y);
      shared_store2_if(inside, to + 16, v[j].z & 0x0f0f0f0fu, v[j].z >> 4 & 0x0f0f0f0fu);
      shared_store_if(inside && first, scales + j * (kThreads / Rows::kPieces) * 4,
                      __float_as_uint(Rows::scale_in(v[j])));
      square += Rows::number_in(v[j]);
    }
  }

  const uint4* from_;
  uint32_t digits_, scales_, squares_, tag_;  // places in shared memory; squares: 0 where nobody wants them
  int left_, tiles_;
};

// The same of more rows, which come without tags: as many warps a row as there are for it, each every so many tiles, a lane
// sixteen bytes. All that a lane takes is asked for at once; the copy engine, which needs no registers for that, brings a
// multiprocessor half as many bytes a cycle.
template <typename Rows>
class RowStager {
 public:
  // squares: [rows], where the norm's scales go if the product's x is normalised.
  __device__ RowStager(const DecodePhase& phase, const Exchange& source, const Share& share, uint8_t* x, float* squares,
                       int rows)
      : shift_(rows > 4 ? 1 : 2) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, row = warp >> shift(),
              part = warp & ((1 << shift()) - 1), groups = phase.product.width / kElements,
              numbers = groups / kNumbered;
    tiles_ = row < rows ? share.tiles - part : 0;
    from_ = rows_in(source) + (int64_t{row} * groups / 16 + share.first_tile + part) * Rows::kTileBytes + lane * 16;
    to_ = shared_address(x) + row * Rows::row_bytes(share.tiles) + part * Rows::kTileBytes + lane * 16;
    from_number_ = numbers_in(source) + row * numbers;
    numbers_ = phase.norm.weight && part == 0 && row < rows ? numbers : 0, eps_ = phase.norm.eps;
    inverse_width_ = reciprocal(static_cast<float>(groups * kElements));
    squares_ = shared_address(squares + row);
    asm volatile(""
                 : "+l"(from_), "+l"(from_number_), "+r"(to_), "+r"(squares_), "+r"(tiles_), "+r"(numbers_),
                   "+f"(inverse_width_));
  }

  __device__ void stage() const {
    constexpr int kAtOnce = Rows::kMostRows > 8 ? 10 : 5;
    const int lane = threadIdx.x % 32;
    const float number = lane < numbers_ ? peek_number(from_number_ + lane) : 0.0f;
    const char* from = from_;
    uint32_t to = to_;
    for (int left = (tiles_ + (1 << shift()) - 1) >> shift(); left > 0;) {
      if (left >= kAtOnce)
        take<kAtOnce>(from, to, left);
      else if (kAtOnce > 8 && left >= 8)
        take<8>(from, to, left);
      else if (left >= 4)
        take<4>(from, to, left);
      else if (left == 3)
        take<3>(from, to, left);
      else if (left == 2)
        take<2>(from, to, left);
      else
        take<1>(from, to, left);
    }
    if (numbers_ == 0) return;
    float square = written(number, lane);
#pragma unroll 1
    for (int n = lane + 32; n < numbers_; n += 32) square += written(peek_number(from_number_ + n), n);
    square = warp_sum(square);
    if (lane == 0) shared_store(squares_, __float_as_uint(rsqrt_fast(fmaf(square, inverse_width_, eps_))));
  }

 private:
  __device__ int shift() const { return Rows::kMostRows > 8 ? 0 : shift_; }
  __device__ float written(float number, int which) const {
    while (!is_written(number)) number = peek_number(from_number_ + which);
    return number;
  }
  // The next kCount of the `left` tiles that are the warp's.
  template <int kCount>
  __device__ void take(const char*& from, uint32_t& to, int& left) const {
    const int apart = Rows::kTileBytes << shift();
    uint4 v[kCount];
    for (;;) {
      bool arrived = true;
#pragma unroll
      for (int j = 0; j < kCount; ++j) v[j] = peek(reinterpret_cast<const uint4*>(from + j * apart));
#pragma unroll
      for (int j = 0; j < kCount; ++j) arrived &= is_written(v[j]);
      if (arrived) break;
      __nanosleep(kPollPause);
    }
#pragma unroll
    for (int j = 0; j < kCount; ++j) shared_store(to + j * apart, v[j]);
    from += kCount * apart, to += kCount * apart, left -= kCount;
  }

  const char* from_;
  const float* from_number_;
  uint32_t to_, squares_;
  int shift_, tiles_, numbers_;
  float eps_, inverse_width_;
};

}  // namespace q4::gpu::decode
