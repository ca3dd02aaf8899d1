// How a decode chain keeps the rows of x in shared memory and multiplies tiles of W with them. Two ways:
//   RowsBf16: W becomes bf16, code · block scale exactly, for mma m16n8k16; eight rows of x a product.
//   RowsInt8: for one or two rows, where decoding W is what costs: codes become int8 by table look-up, twice their value;
//     x, block by block of sixteen, is a scale and two int8 digits (14 bits and sign: 64 times finer than bf16's rounding
//     of the block's largest element). The products of a block are exact; both scales are applied to its sum.
// A lane (g = lane / 4, c = lane % 4) decodes 32 neighbouring codes of rows g and g + 8 a unit: 16 contiguous bytes each.
#pragma once
#include "core/nvfp4.h"
#include "cuda/decode_weights.cuh"
#include "cuda/nvfp4_bf16.cuh"

namespace q4::gpu::decode {

__device__ inline uint4 shared_load(uint32_t address) {
  uint4 v;
  asm volatile("ld.shared.v4.u32 {%0,%1,%2,%3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "r"(address));
  return v;
}
__device__ inline uint32_t shared_load_u16(uint32_t address) {
  uint16_t v;
  asm volatile("ld.shared.u16 %0, [%1];" : "=h"(v) : "r"(address));
  return v;
}
// What a lane reads of unit `unit` of a tile: its codes of rows first + g and first + g + 8, and their two block scales each.
template <typename Tiles>
struct LaneWeights {
  uint32_t word[2][4], scales[2];
  __device__ LaneWeights(uint32_t stage, int first, int unit) {
    const int lane = threadIdx.x % 32, g = lane / 4, c = lane % 4;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const uint4 v = shared_load(stage + Tiles::place(first + g + half * 8, unit * 4 + c));
      word[half][0] = v.x, word[half][1] = v.y, word[half][2] = v.z, word[half][3] = v.w;
      scales[half] =
          shared_load_u16(stage + Tiles::kCodes + (first + g + half * 8) * Tiles::kScales + unit * 8 + c * 2);
    }
  }
};

template <int kTiles>  // of eight rows of x
struct RowsBf16 {
  using Tiles = decode::Tiles<16, 256>;
  static constexpr int kTile = Tiles::kTile;
  static constexpr float kEpilogue = kPairEpilogue;
  static constexpr bool kNormalisesItself = false;

  // Bytes of a row of x; an odd number of 64-byte pieces, so that neighbouring rows lie in different banks.
  __host__ __device__ static int row_bytes(int tiles) { return tiles * (kTile * 2) + 64; }
  __host__ __device__ static int bytes(int rows, int tiles) { return rows * row_bytes(tiles); }

  // Keeps eight neighbouring elements, as four pairs of elements p and p + 4; `piece` counts within the block's share.
  __device__ static void put(uint8_t* x, int tiles, int row, int piece, bool inside, const Pack<8>& v) {
    const int slot = (piece & ~15) | (piece & 3) << 2 | (piece >> 2 & 3);
    if (inside)
      *reinterpret_cast<uint4*>(x + row * row_bytes(tiles) + slot * 16) = make_uint4(
          pack_bf16(v.v[0], v.v[4]), pack_bf16(v.v[1], v.v[5]), pack_bf16(v.v[2], v.v[6]), pack_bf16(v.v[3], v.v[7]));
  }
  __device__ static void clear(uint8_t*, int, int) {}

  uint32_t x[kTiles];
  float sum[kTiles][4], other[kTiles][4];  // two, so that products need not wait for each other

  __device__ RowsBf16(const uint8_t* memory, int tiles, int rows) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int t = 0; t < kTiles; ++t)
      x[t] = shared_address(memory) + min(lane / 4 + t * 8, rows - 1) * row_bytes(tiles) + lane % 4 * 16;
    reset();
  }
  __device__ void reset() {
#pragma unroll
    for (int t = 0; t < kTiles; ++t)
#pragma unroll
      for (int e = 0; e < 4; ++e) sum[t][e] = other[t][e] = 0;
  }

  // Adds the product with the tile in `stage`, which is tile `tile` of the share's width.
  __device__ void multiply(uint32_t stage, int tile) {
#pragma unroll 1
    for (int unit = 0; unit < kTile / kUnit; ++unit) {
      const LaneWeights<Tiles> w(stage, 0, unit);
      uint32_t both[2];
#pragma unroll
      for (int half = 0; half < 2; ++half)
        both[half] = scale_pair((w.scales[half] & 0xffu) | (w.scales[half] & 0xff00u) << 8);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        uint32_t a[2][4];
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          code_pairs(w.word[half][i], a[half]);
          const uint32_t factor = __byte_perm(both[half], both[half], i < 2 ? 0x1010 : 0x3232);
#pragma unroll
          for (int p = 0; p < 4; ++p) a[half][p] = mul_bf16x2(a[half][p], factor);
        }
        const uint32_t first[4] = {a[0][0], a[1][0], a[0][1], a[1][1]},
                       second[4] = {a[0][2], a[1][2], a[0][3], a[1][3]};
#pragma unroll
        for (int t = 0; t < kTiles; ++t) {
          const uint4 v = shared_load(x[t] + tile * (kTile * 2) + (unit * 4 + i) * 64);
          mma(sum[t], first, v.x, v.y);
          mma(other[t], second, v.z, v.w);
        }
      }
    }
  }

  // to[row of W][row of x]
  __device__ void leave(float* to, int rows) const {
    const int lane = threadIdx.x % 32, g = lane / 4, c = lane % 4;
#pragma unroll
    for (int t = 0; t < kTiles; ++t)
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int row = t * 8 + 2 * c + (e & 1);
        if (row < rows) to[(g + (e >> 1) * 8) * rows + row] = sum[t][e] + other[t][e];
      }
  }
};

// d += a·b, a unsigned and b signed int8, [16,32]·[32,8] in int32, exactly.
__device__ inline void mma_int8(int (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Four bytes of a table of eight, by the low three bits of four nibbles; a nibble's fourth bit asks for the byte's sign
// instead, eight times. (__byte_perm promises nothing of that bit.)
__device__ inline uint32_t look_up(uint32_t low, uint32_t high, uint32_t nibbles) {
  uint32_t bytes;
  asm("prmt.b32 %0, %1, %2, %3;" : "=r"(bytes) : "r"(low), "r"(high), "r"(nibbles));
  return bytes;
}

// Eight codes as bytes, 12 plus twice their value. A table is looked up by the magnitude, another by all four bits, whose
// entries have their own top bit set: it gives ones for negative codes. What differs between the two, without the top bit,
// is 12 + m or 12 − m.
struct Bytes {
  static constexpr uint32_t kLow = 0x76757473, kHigh = 0x7f7b7977;  // 127 ^ (12 − m), m = 0, 1, 2, 3; 4, 6, 8, 12
  static constexpr uint32_t kLowSigned = 0xf9fbf9ff, kHighSigned = 0xe7efebe7;  // those ^ (12 + m), and the top bit
  uint32_t first, second;
  __device__ explicit Bytes(uint32_t codes) {
    const uint32_t magnitudes = codes & 0x77777777u;
    first = (look_up(kLow, kHigh, magnitudes) ^ look_up(kLowSigned, kHighSigned, codes)) & 0x7f7f7f7fu;
    second = (look_up(kLow, kHigh, magnitudes >> 16) ^ look_up(kLowSigned, kHighSigned, codes >> 16)) & 0x7f7f7f7fu;
  }
};

constexpr bool tables_hold() {
  constexpr int kMagnitudes[8] = {0, 1, 2, 3, 4, 6, 8, 12};
  for (int i = 0; i < 8; ++i) {
    const uint32_t plain = (i < 4 ? Bytes::kLow : Bytes::kHigh) >> i % 4 * 8 & 255u,
                   other = (i < 4 ? Bytes::kLowSigned : Bytes::kHighSigned) >> i % 4 * 8 & 255u;
    const bool positive = ((plain ^ other) & 127u) == 12u + kMagnitudes[i],
               negative = ((plain ^ 255u) & 127u) == 12u - kMagnitudes[i];
    if (!positive || !negative || plain >= 128u || other < 128u) return false;
  }
  return true;
}
static_assert(tables_hold());

template <int kCount>  // rows of x
struct RowsInt8 {
  using Tiles = decode::Tiles<16, 256>;
  static constexpr int kTile = Tiles::kTile;
  // Codes count double; scale bytes, put into the exponent of a float, read 2^-120 too small, and those of x are kept
  // 2^100 too large to make up for most of it.
  static constexpr float kEpilogue = 0.5f * 1048576.0f;
  static constexpr bool kNormalisesItself = true;
  static constexpr float kLargest = 127 * 128;
  static constexpr int kMagic = 0x4b400000;  // the float 1.5 · 2^23: an integer added to its bits is added to its value

  // A row of x: for every unit and lane c, the high digits of 32 elements, then the low; then for every block its scale and
  // kMagic − 12 · (its sum), which takes the codes' offset out again; in front of all rows a piece of zeros. Columns 2c and 2c + 1 of a product are the digits that only lanes c multiply, so that
  // its four lanes keep their blocks apart.
  static constexpr int kUnits = kTile / kUnit, kUnitBytes = 4 * 2 * 32, kBlocksBytes = 8 * 8, kZeros = 128;
  __host__ __device__ static int row_bytes(int tiles) { return tiles * kUnits * (kUnitBytes + kBlocksBytes); }
  __host__ __device__ static int bytes(int rows, int tiles) { return kZeros + rows * row_bytes(tiles); }

  // Called by all threads of a warp, neighbouring threads with neighbouring pieces: two make up a block.
  __device__ static void put(uint8_t* x, int tiles, int row, int piece, bool inside, const Pack<8>& v) {
    float largest = 0;
#pragma unroll
    for (int j = 0; j < 8; ++j) largest = amax_step(largest, v.v[j]);
    largest = amax_step(largest, __shfl_xor_sync(0xffffffffu, largest, 1));
    const float scale = largest * (1.0f / kLargest), inverse = largest > 0 ? kLargest / largest : 0.0f;
    uint32_t digits[2][2] = {};  // [high, low][word]
    int total = 0;
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      const int value = __float2int_rn(v.v[j] * inverse), high = (value + 64) >> 7, low = value - high * 128;
      total += value;
      digits[0][j / 4] |= (high & 255u) << j % 4 * 8, digits[1][j / 4] |= (low & 255u) << j % 4 * 8;
    }
    total += __shfl_xor_sync(0xffffffffu, total, 1);
    if (!inside) return;
    uint8_t* const base = x + kZeros + row * row_bytes(tiles);
    uint8_t* const to = base + piece / 4 * 64 + piece % 4 * 8;
#pragma unroll
    for (int digit = 0; digit < 2; ++digit)
      *reinterpret_cast<uint2*>(to + digit * 32) = make_uint2(digits[digit][0], digits[digit][1]);
    if (piece % 2 == 0)
      reinterpret_cast<int2*>(base + tiles * kUnits * kUnitBytes)[piece / 2] =
          make_int2(__float_as_int(scale * 0x1p100f), kMagic - 12 * total);
  }
  __device__ static void clear(uint8_t* x, int thread, int threads) {
    for (int i = thread; i < kZeros / 4; i += threads) reinterpret_cast<uint32_t*>(x)[i] = 0;
  }

  uint32_t x[kCount], blocks[kCount], step;
  float sum[kCount][2];  // of rows g and g + 8 of W, of this lane's blocks

  __device__ RowsInt8(const uint8_t* memory, int tiles, int) {
    const int lane = threadIdx.x % 32, g = lane / 4, c = lane % 4;
    const uint32_t base = shared_address(memory);
    const bool mine = g / 2 == c;
    step = mine ? kUnitBytes : 0;
#pragma unroll
    for (int r = 0; r < kCount; ++r) {
      const uint32_t row = base + kZeros + r * row_bytes(tiles);
      // The zeros are read from banks that the others, in the same moment, do not use.
      x[r] = mine ? row + c * 64 + (g & 1) * 32 : base + (g & 2 ? 16 : 80);
      blocks[r] = row + tiles * kUnits * kUnitBytes + c * 16;
    }
    reset();
  }
  __device__ void reset() {
#pragma unroll
    for (int r = 0; r < kCount; ++r)
#pragma unroll
      for (int e = 0; e < 2; ++e) sum[r][e] = 0;
  }

  __device__ void multiply(uint32_t stage, int tile) {
#pragma unroll
    for (int unit = 0; unit < kUnits; ++unit) {
      const LaneWeights<Tiles> w(stage, 0, unit);
      int4 x_blocks[kCount];  // scale and offset of both blocks
#pragma unroll
      for (int r = 0; r < kCount; ++r) {
        const uint4 v = shared_load(blocks[r] + (tile * kUnits + unit) * kBlocksBytes);
        x_blocks[r] =
            make_int4(static_cast<int>(v.x), static_cast<int>(v.y), static_cast<int>(v.z), static_cast<int>(v.w));
      }
#pragma unroll
      for (int block = 0; block < 2; ++block) {
        int d[kCount][4] = {};
        uint4 digits[kCount];
#pragma unroll
        for (int r = 0; r < kCount; ++r) digits[r] = shared_load(x[r] + (tile * kUnits + unit) * step + block * 16);
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const Bytes low(w.word[0][block * 2 + i]), high(w.word[1][block * 2 + i]);
          const uint32_t a[4] = {low.first, high.first, low.second, high.second};
#pragma unroll
          for (int r = 0; r < kCount; ++r)
            mma_int8(d[r], a, i ? digits[r].z : digits[r].x, i ? digits[r].w : digits[r].y);
        }
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const float scale = __uint_as_float(w.scales[half] << (block ? 12 : 20) & 0x07f00000u);
#pragma unroll
          for (int r = 0; r < kCount; ++r) {
            const int whole = d[r][half * 2] * 128 + d[r][half * 2 + 1] + (block ? x_blocks[r].w : x_blocks[r].y);
            const float value = __int_as_float(whole) - __int_as_float(kMagic);
            sum[r][half] += value * (scale * __int_as_float(block ? x_blocks[r].z : x_blocks[r].x));
          }
        }
      }
    }
  }

  __device__ void leave(float* to, int rows) const {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int r = 0; r < kCount; ++r)
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        float total = sum[r][e];
        total += __shfl_xor_sync(0xffffffffu, total, 1);
        total += __shfl_xor_sync(0xffffffffu, total, 2);
        if (lane % 4 == 0 && r < rows) to[(lane / 4 + e * 8) * rows + r] = total;
      }
  }
};

}  // namespace q4::gpu::decode
