// How a decode chain keeps the rows of x in shared memory and multiplies tiles of W with them. Two ways:
//   RowsBf16: W becomes bf16, code · block scale exactly, for mma m16n8k16; eight rows of x a product.
//   RowsInt8: for one or two rows, where decoding W is what costs: codes become int8 by table look-up, four times their
//     value; x, block by block of sixteen, is a scale and two int8 digits to base 16 (11 bits and sign: 8 times finer than
//     bf16's rounding of the block's largest element). The products of a block are exact; both scales are applied to its
//     sum.
// A lane (g = lane / 4, c = lane % 4) decodes 64 neighbouring codes of rows g and g + 8 of a tile, half of them a unit.
#pragma once
#include "core/nvfp4.h"
#include "cuda/decode_exchange.cuh"
#include "cuda/nvfp4_bf16.cuh"

namespace q4::gpu::decode {

__device__ inline uint4 shared_load(uint32_t address) {
  uint4 v;
  asm volatile("ld.shared.v4.u32 {%0,%1,%2,%3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "r"(address));
  return v;
}
// What a lane reads of a tile, of its rows g and g + 8: of unit `unit` the codes, pieces 2c + unit; the scales of all its
// four blocks, of both units. A stage is where those of unit 0 and of row g are.
template <typename Tiles>
struct LaneCodes {
  uint32_t word[2][4];
  __device__ LaneCodes(const Stage& stage, int unit) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const uint4 v = shared_load((unit ? stage.codes ^ 16 : stage.codes) + half * 8 * Tiles::kRow);
      word[half][0] = v.x, word[half][1] = v.y, word[half][2] = v.z, word[half][3] = v.w;
    }
  }
};
template <typename Tiles>
struct LaneScales {
  uint32_t word[2];
  __device__ explicit LaneScales(const Stage& stage) {
#pragma unroll
    for (int half = 0; half < 2; ++half)
      word[half] = shared_load_u32(stage.scales + half * 8 * Tiles::kTeam * Tiles::kScales);
  }
};

template <int kTiles>  // of eight rows of x
struct RowsBf16 {
  static constexpr int kExactly = 0, kMostRows = kTiles * 8;  // any number of rows that fit
  // With sixteen rows as many outputs as threads have quads.
  using Tiles = decode::Tiles<16, 256, 2, 10, kTiles == 2 ? 8 : 10>;
  static constexpr int kTile = Tiles::kTile;
  static constexpr float kEpilogue = kPairEpilogue;

  // Bytes of a row of x; an odd number of 64-byte pieces, so that neighbouring rows lie in different banks.
  __host__ __device__ static int row_bytes(int tiles) { return tiles * (kTile * 2) + 64; }
  __host__ __device__ static int bytes(int rows, int tiles) { return rows * row_bytes(tiles); }

  // Rows of x are handed on as products read them: many blocks read many rows, and a tag in every piece, and looking at it,
  // would cost more than a fence. Behind them are numbers, one of kNumbered groups.
  // Of a tile's 32 pieces of eight elements lane c multiplies 8c … 8c + 7; in the order of their places, 4i + c is its
  // i-th. A piece is four pairs of elements p and p + 4.
  static constexpr int kTileBytes = kTile * 2;
  __device__ static uint32_t place(uint32_t group, uint32_t quad) {
    const uint32_t eight = group % 16 * 2 + quad / 2;
    return group / 16 * kTileBytes + ((eight & 7) << 2 | eight >> 3) * 16;
  }
  // Four neighbouring lanes hand on a group: called by whole warps.
  __device__ static void post(const Exchange& to, int group, const float (&v)[kQuad], bool inside) {
    const uint32_t quad = threadIdx.x % 4, odd = quad & 1;
    const uint32_t first = pack_bf16(v[0], v[1]), second = pack_bf16(v[2], v[3]);
    const uint32_t other = __shfl_xor_sync(0xffffffffu, odd ? first : second, 1);
    const uint32_t low = odd ? other : first, high = odd ? second : other;
    if (!inside) return;
    put_half(rows_in(to) + place(group, quad) + odd * 8, __byte_perm(low, high, 0x5410),
             __byte_perm(low, high, 0x7632));
  }
  // Four elements of what was handed on.
  __device__ static void read(float (&v)[kQuad], const Exchange& from, int group, int quad) {
    uint4 w;
    do w = peek(reinterpret_cast<const uint4*>(rows_in(from) + place(group, quad)));
    while (!is_written(w));
    const bool upper = quad & 1;
    v[0] = upper ? high_bf16(w.x) : low_bf16(w.x), v[1] = upper ? high_bf16(w.y) : low_bf16(w.y);
    v[2] = upper ? high_bf16(w.z) : low_bf16(w.z), v[3] = upper ? high_bf16(w.w) : low_bf16(w.w);
  }
  uint32_t x[kTiles];
  float sum[kTiles][4];

  static constexpr int kConstants = 0;
  __device__ static void set_constants(uint8_t*) {}
  __device__ RowsBf16(const uint8_t* memory, const uint8_t*, int tiles, int rows) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
      x[t] = shared_address(memory) + min(lane / 4 + t * 8, rows - 1) * row_bytes(tiles) + lane % 4 * 16;
      asm volatile("" : "+r"(x[t]));  // found now, not when x is there
    }
    reset();
  }
  __device__ void reset() {
#pragma unroll
    for (int t = 0; t < kTiles; ++t)
#pragma unroll
      for (int e = 0; e < 4; ++e) sum[t][e] = 0;
  }

  // Adds the product with the tile in `stage`, which is tile `tile` of the share's width. give(): that the stage is read; of
  // sixteen rows, whose rings are shallow, as soon as its codes are in registers, so that the next may come meanwhile.
  template <typename Give>
  __device__ void multiply(const Stage& stage, int tile, Give&& give) {
    constexpr bool kGivesEarly = kTiles > 1;
    static_assert(kTile == 2 * kUnit);
    const LaneScales<Tiles> scales(stage);
    const LaneCodes<Tiles> codes[2] = {{stage, 0}, {stage, 1}};
    if (kGivesEarly) give();
#pragma unroll
    for (int unit = 0; unit < kTile / kUnit; ++unit) {
      const LaneCodes<Tiles>& w = codes[unit];
      uint32_t factors[2];
#pragma unroll
      for (int half = 0; half < 2; ++half)
        factors[half] = scale_pair(__byte_perm(scales.word[half], 0, unit ? 0x4342 : 0x4140));
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        uint32_t a[2][4];
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          code_pairs(w.word[half][i], a[half]);
#pragma unroll
          for (int p = 0; p < 4; ++p) a[half][p] = mul_bf16x2_by(a[half][p], factors[half], i / 2);
        }
        const uint32_t first[4] = {a[0][0], a[1][0], a[0][1], a[1][1]},
                       second[4] = {a[0][2], a[1][2], a[0][3], a[1][3]};
        uint4 v[kTiles];
#pragma unroll
        for (int t = 0; t < kTiles; ++t) v[t] = shared_load(x[t] + tile * (kTile * 2) + (unit * 4 + i) * 64);
#pragma unroll
        for (int t = 0; t < kTiles; ++t) mma(sum[t], first, v[t].x, v[t].y);
#pragma unroll
        for (int t = 0; t < kTiles; ++t) mma(sum[t], second, v[t].z, v[t].w);
      }
    }
    if (!kGivesEarly) give();
  }

  // Of a segment, in pairs of rows of x, swizzled, so that what a warp writes at a time lies in different banks. Rows that are
  // not there have a place too.
  static constexpr int kSumFloats = kMostRows * Tiles::kGroup, kHalfPlace = Tiles::kGroup / 2;
  static_assert(kSumFloats % 32 == 0);
  __device__ static int sum_place(int row, int r) { return row / 2 * 32 + ((row % 2 * 16 + r) ^ (row / 2 % 4 * 8)); }
  // From gate's sums to up's.
  __device__ static int to_up(int gate, bool) { return (gate ^ kHalfPlace) - gate; }
  // to: at a multiple of 128 bytes.
  __device__ void leave(float* to) const {
    const int lane = threadIdx.x % 32, g = lane / 4, c = lane % 4;
    const uint32_t first = shared_address(to) + sum_place(2 * c, g) * 4;
#pragma unroll
    for (int t = 0; t < kTiles; ++t)
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        constexpr int kRowPlace = 16, kTilePlace = 4 * 32;
        const uint32_t place = (first ^ ((e & 1) * kRowPlace + (e >> 1) * kHalfPlace) * 4) + t * kTilePlace * 4;
        shared_store(place, __float_as_uint(sum[t][e]));
      }
  }
};

// d = a·b + c, int8, [16,32]·[32,8] in int32, exactly.
__device__ inline void mma_int8(int (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, const int (&c)[4]) {
  asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%10,%11,%12,%13};"
      : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "r"(c[0]), "r"(c[1]), "r"(c[2]), "r"(c[3]));
}

// Four bytes of a table of eight, by the low three bits of four nibbles; a nibble's fourth bit asks for the byte's sign
// instead, eight times. (__byte_perm promises nothing of that bit.)
__device__ inline uint32_t look_up(uint32_t low, uint32_t high, uint32_t nibbles) {
  uint32_t bytes;
  asm("prmt.b32 %0, %1, %2, %3;" : "=r"(bytes) : "r"(low), "r"(high), "r"(nibbles));
  return bytes;
}

// Eight codes become signed bytes, 2m or −2m with m = twice the code's magnitude. Entries of the tables are below 128, so
// that a nibble with its top bit set finds 0. The positive codes find 2m in one table, by themselves; the negative ones
// find 128 − m in the other, by their complement: the sum of the first and twice the second is the byte, and nothing is
// carried into the next.
// Some numbers are read from shared memory, because the compiler must not know them. The first half of a
// table, were it known, would be moved into a register anew for every look-up. The complement, a product with −1, and the
// sum, one with 2, would become logic and additions: those and the look-ups share a pipe, which is the bottleneck here;
// products have another.
struct Decoder {
  static constexpr uint32_t kPositiveLow = 0x06040200, kPositiveHigh = 0x18100c08;
  static constexpr uint32_t kNegativeLow = 0x7c7a7874, kNegativeHigh = 0x007f7e7d;  // by 7 − the magnitude's bits
  static constexpr int kMagic = 0x4b400000;  // the float 1.5 · 2^23: an integer added to its bits is added to its value
  static constexpr int kBase = 16, kWords = 12;

  uint32_t positive, negative, two, minus_one;
  int start[4];  // what sums of products start from: those of high digits, and of low ones
  int base;

  __device__ static uint32_t word(int i) {
    constexpr uint32_t kNumbers[kWords] = {kPositiveLow, kNegativeLow, 2, 0xffffffffu, 0, kMagic, 0, kMagic, kBase};
    uint32_t word = 0;
#pragma unroll
    for (int j = 0; j < kWords; ++j)
      if (i == j) word = kNumbers[j];
    return word;
  }
  __device__ explicit Decoder(uint32_t words) {
    const uint4 numbers = shared_load(words), starts = shared_load(words + 16);
    positive = numbers.x, negative = numbers.y, two = numbers.z, minus_one = numbers.w;
    start[0] = static_cast<int>(starts.x), start[1] = static_cast<int>(starts.y);
    start[2] = static_cast<int>(starts.z), start[3] = static_cast<int>(starts.w);
    base = static_cast<int>(shared_load_u32(words + 32));
  }
  // The sum of a block's products, of both digits.
  __device__ float both(int high, int low) const { return __int_as_float(high * base + low) - __int_as_float(kMagic); }

  // Of the low four codes.
  __device__ uint32_t bytes(uint32_t codes) const {
    const uint32_t complement = codes * minus_one + minus_one;
    return look_up(negative, kNegativeHigh, complement) * two + look_up(positive, kPositiveHigh, codes);
  }
};

constexpr bool tables_hold() {
  constexpr uint32_t kMagnitudes[8] = {0, 1, 2, 3, 4, 6, 8, 12};
  for (uint32_t i = 0; i < 8; ++i) {
    const uint32_t positive = (i < 4 ? Decoder::kPositiveLow : Decoder::kPositiveHigh) >> i % 4 * 8 & 255u,
                   negative = (i > 3 ? Decoder::kNegativeLow : Decoder::kNegativeHigh) >> (7 - i) % 4 * 8 & 255u;
    if (positive != 2 * kMagnitudes[i] || positive >= 128u) return false;
    if (2 * negative != (i ? 256 - 2 * kMagnitudes[i] : 0) || negative >= 128u) return false;
  }
  return true;
}
static_assert(tables_hold());

template <int kCount>  // rows of x
struct RowsInt8 {
  static constexpr int kExactly = kCount, kMostRows = kCount;
  static_assert(kCount <= kWholeRows);
  using Tiles = decode::Tiles<16, 256, 2, 16, 16>;
  static constexpr int kTile = Tiles::kTile;
  // Codes count four times; scale bytes, put into the exponent of a float, read 2^-120 too small, and those of x are kept
  // 2^100 too large to make up for most of it.
  static constexpr float kEpilogue = 0.25f * 1048576.0f;
  static constexpr int kBase = Decoder::kBase;
  static constexpr float kLargest = 127 * kBase + kBase - 1;
  // Below what may be added to the bits of kMagic.
  static_assert(16 * 24 * (128 * kBase) < 1 << 22);

  // A row of x: for every tile, unit and block of a lane, the high and low digits of lane c = 0, 1, 2, 3; then for every
  // block its scale. Columns 2c and 2c + 1 of a product are the
  // digits that only lanes c multiply, so that its four lanes keep their blocks apart.
  static constexpr int kUnits = kTile / kUnit, kBlocks = 2 * kUnits;  // blocks: of a lane and tile
  static constexpr int kBlockBytes = 4 * 2 * 16, kTileBytes = kBlocks * kBlockBytes, kScaleBytes = 4 * kBlocks * 4;
  static constexpr int kZeros = 128, kConstants = kZeros + Decoder::kWords * 4;
  static_assert(kUnits == 2);
  __host__ __device__ static int row_bytes(int tiles) { return tiles * (kTileBytes + kScaleBytes); }
  __host__ __device__ static int bytes(int rows, int tiles) { return rows * row_bytes(tiles); }

  // Four neighbouring lanes hand on a group, which is a block, with a number of it that is not negative: called by whole
  // warps. Of its two pieces, of eight elements each, the first words are the high digits; the third has the low ones, of
  // the first four elements in the lower halves of its bytes; the fourth a tag and half a word: of the first piece the scale,
  // of the second the number.
  static constexpr int kPieces = 2, kOfPiece = kElements / kPieces;
  __device__ static uint32_t high_half_tag(uint32_t tag) { return (tag | kShortTags) << 16; }  // not that of zeros
  __device__ static bool has_tag(const uint4& piece, uint32_t tag) { return ((piece.w ^ tag) & 0xffff0000u) == 0; }
  __device__ static void post(const Exchange& to, int group, const float (&v)[kQuad], float extra, bool inside) {
    float largest = 0;
#pragma unroll
    for (int j = 0; j < kQuad; ++j) largest = largest_magnitude(largest, v[j]);
    largest = largest_magnitude(largest, __shfl_xor_sync(0xffffffffu, largest, 1));
    largest = largest_magnitude(largest, __shfl_xor_sync(0xffffffffu, largest, 2));
    // The scale as bf16, cut off, and before that larger by as much as cutting off may take.
    const float scale = __uint_as_float(__float_as_uint(largest * (1.0078125f / kLargest)) & 0xffff0000u);
    const float inverse = largest > 0x1p-100f ? reciprocal(scale) : 0.0f;
    // Rounded to an integer by adding 1.5 · 2^23, below which a float has no more bits. Of twelve bits the upper eight are the
    // high digit, and the lower four the low one, which is not negative.
    static_assert(kBase == 16);
    uint32_t number[kQuad];
#pragma unroll
    for (int j = 0; j < kQuad; ++j) number[j] = __float_as_uint(fmaf(v[j], inverse, __int_as_float(Decoder::kMagic)));
    const uint32_t low =
        __byte_perm(__byte_perm(number[0], number[1], 0x0040), __byte_perm(number[2], number[3], 0x0040), 0x5410) &
        0x0f0f0f0fu;
#pragma unroll
    for (int j = 0; j < kQuad; ++j) number[j] <<= 4;
    const uint32_t high =
        __byte_perm(__byte_perm(number[0], number[1], 0x0051), __byte_perm(number[2], number[3], 0x0051), 0x5410);
    const uint32_t other_low = __shfl_xor_sync(0xffffffffu, low, 1), other_high = __shfl_xor_sync(0xffffffffu, high, 1);
    const int k = threadIdx.x % 4;
    const bool odd = k & 1;
    // A number without its sign, cut off in the middle of what that makes of it.
    const uint32_t half =
        k < 2 ? __float_as_uint(scale * 0x1p100f) >> 16 : __float_as_uint(extra * (1.0f + 0x1p-10f)) >> 15 & 0xffffu;
    if (!inside) return;
    // Each of the two lanes that have a piece writes half of its copies.
    static_assert(kExchangeCopies % 2 == 0);
    uint4* const piece = to.slot + (odd ? kExchangeCopies / 2 * kCopyPieces : 0) + group * kPieces + k / 2;
#pragma unroll
    for (int i = 0; i < kExchangeCopies / 2; ++i)
      put_piece(piece + i * kCopyPieces, odd ? other_high : high, odd ? high : other_high,
                odd ? low << 4 | other_low : other_low << 4 | low, high_half_tag(to.tag) | half);
  }
  // Where nobody wants a number.
  __device__ static void post(const Exchange& to, int group, const float (&v)[kQuad], bool inside) {
    post(to, group, v, 0, inside);
  }
  __device__ static float scale_in(const uint4& piece) { return __uint_as_float(piece.w << 16); }
  __device__ static float number_in(const uint4& piece) { return __uint_as_float((piece.w & 0xffffu) << 15); }
  // Where, of a row in shared memory, a piece is kept: its high digits, the low ones 16 bytes further, and the scale of its
  // block.
  __device__ static uint32_t digits_of(uint32_t x, uint32_t piece) {
    const uint32_t block = piece / kPieces;
    return x + block / 16 * kTileBytes + block % 4 * kBlockBytes + block / 4 % 4 * 32 + piece % kPieces * kOfPiece;
  }
  __device__ static uint32_t scales_of(uint32_t x, int tiles, uint32_t piece) {
    return x + tiles * kTileBytes + piece / kPieces * 4;
  }
  static_assert(kThreads % (kTile / kOfPiece) == 0);  // pieces so far apart lie kTilesApart tiles apart
  static constexpr int kTilesApart = kThreads / (kTile / kOfPiece);
  // Four elements of what was handed on.
  __device__ static void read(float (&v)[kQuad], const Exchange& from, int group, int quad) {
    const uint4* const pieces = from.slot + group * kPieces;
    const uint32_t tag = high_half_tag(from.tag);
    uint4 first, piece;
    do first = peek(pieces), piece = peek(pieces + quad / 2);
    while (!has_tag(first, tag) || !has_tag(piece, tag));
    const bool upper = quad & 1;
    const uint32_t high = upper ? piece.y : piece.x, low = piece.z >> (upper ? 4 : 0);
#pragma unroll
    for (int j = 0; j < kQuad; ++j)
      v[j] =
          static_cast<float>(static_cast<int8_t>(high >> j * 8 & 255u) * kBase + static_cast<int>(low >> j * 8 & 15u)) *
          (scale_in(first) * 0x1p-100f);
  }
  // What products need beside x: zeros, and the decoder's numbers. By the first threads of the block.
  __device__ static void set_constants(uint8_t* constants) {
    const int i = threadIdx.x;
    if (i < kConstants / 4)
      reinterpret_cast<uint32_t*>(constants)[i] = i < kZeros / 4 ? 0 : Decoder::word(i - kZeros / 4);
  }

  Decoder decoder;
  uint32_t x[kCount], scales[kCount], step;
  float sum[kCount][2];  // of rows g and g + 8 of W, of this lane's blocks

  // constants: at a multiple of 128, as memory is.
  __device__ RowsInt8(const uint8_t* memory, const uint8_t* constants, int tiles, int)
      : decoder(shared_address(constants) + kZeros) {
    const int lane = threadIdx.x % 32, g = lane / 4, c = lane % 4;
    const bool mine = g / 2 == c;
    step = mine ? kBlockBytes : 0;
#pragma unroll
    for (int r = 0; r < kCount; ++r) {
      const uint32_t row = shared_address(memory) + r * row_bytes(tiles);
      // The zeros are read from banks that the others, in the same moment, do not use.
      x[r] = mine ? row + g * 16 : shared_address(constants) + ((g / 2 * 32 + 64) & 127);
      scales[r] = row + tiles * kTileBytes + c * 16;
    }
    reset();
  }
  __device__ void reset() {
#pragma unroll
    for (int r = 0; r < kCount; ++r)
#pragma unroll
      for (int e = 0; e < 2; ++e) sum[r][e] = 0;
  }

  template <typename Give>
  __device__ void multiply(const Stage& stage, int tile, Give&& give) {
    const LaneScales<Tiles> w_scales(stage);
    float x_scales[kCount][kBlocks];
#pragma unroll
    for (int r = 0; r < kCount; ++r) {
      const uint4 v = shared_load(scales[r] + tile * kScaleBytes);
      x_scales[r][0] = __uint_as_float(v.x), x_scales[r][1] = __uint_as_float(v.y);
      x_scales[r][2] = __uint_as_float(v.z), x_scales[r][3] = __uint_as_float(v.w);
    }
#pragma unroll
    for (int unit = 0; unit < kUnits; ++unit) {
      const LaneCodes<Tiles> w(stage, unit);
#pragma unroll
      for (int odd = 0; odd < 2; ++odd) {
        const int block = unit * 2 + odd;
        uint4 digits[kCount];
#pragma unroll
        for (int r = 0; r < kCount; ++r) digits[r] = shared_load(x[r] + (tile * kBlocks + block) * step);
        int d[kCount][4];
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const uint32_t low = w.word[0][odd * 2 + i], high = w.word[1][odd * 2 + i];
          const uint32_t a[4] = {decoder.bytes(low), decoder.bytes(high), decoder.bytes(low >> 16),
                                 decoder.bytes(high >> 16)};
#pragma unroll
          for (int r = 0; r < kCount; ++r)
            mma_int8(d[r], a, i ? digits[r].z : digits[r].x, i ? digits[r].w : digits[r].y, i ? d[r] : decoder.start);
        }
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const uint32_t bits = w_scales.word[half];
          const float scale = __uint_as_float((block == 3 ? bits >> 4 : bits << (20 - 8 * block)) & 0x07f00000u);
#pragma unroll
          for (int r = 0; r < kCount; ++r)
            sum[r][half] += decoder.both(d[r][half * 2], d[r][half * 2 + 1]) * (scale * x_scales[r][block]);
        }
      }
    }
    give();
  }

  // Of a segment, rows padded, so that the sums of many, read at a time, lie in different banks.
  static constexpr int kSumPitch = Tiles::kGroup + 4;
  static constexpr int kSumFloats = kCount * kSumPitch;
  __device__ static int sum_place(int row, int r) { return row * kSumPitch + r; }
  __device__ static int to_up(int, bool swapped) { return swapped ? -Tiles::kGroup / 2 : Tiles::kGroup / 2; }
  __device__ void leave(float* to) const {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int r = 0; r < kCount; ++r)
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        float total = sum[r][e];
        total += __shfl_xor_sync(0xffffffffu, total, 1);
        total += __shfl_xor_sync(0xffffffffu, total, 2);
        if (lane % 4 == 0) to[sum_place(r, lane / 4 + e * 8)] = total;
      }
  }
};

}  // namespace q4::gpu::decode
