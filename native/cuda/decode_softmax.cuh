// The softmax of a decode chain's attention: a warp's part over its keys, and parts joined.
//   Sᵀ[16 keys, 8 queries] = K·Qᵀ and Oᵀ[dims, 8 queries] = Vᵀ·Pᵀ by mma m16n8k16; the k dimension of the first and the
// rows of the second are permuted so that a lane reads 16 contiguous bytes of a key and 8 or 16 of a value.
#pragma once
#include "cuda/decode_norm.cuh"

namespace q4::gpu::decode {

constexpr int D = 128;                    // elements of a head
constexpr int kQueries = kDecodeQueries;  // heads of a group, at most
constexpr int kKeys = 16;                 // that a warp takes at a time
// Keys from which on another block helps, where what it leaves comes with tags, and where it does not.
constexpr int piece_keys(bool few_rows) { return few_rows ? 96 : 512; }
constexpr int kHeadPitch = D + 8;       // so that the eight rows of q lie in different banks
constexpr int kGroups = D / kElements;  // of a head
// Blocks that share the values' elements, of few rows. All of them multiply all of the keys; but what a warp then needs
// of its values has room in registers before it is known that q is there.
constexpr int value_parts(bool few_rows) { return few_rows ? 4 : 1; }

// What a block does at a time: of a sequence and a key head (a pair) one piece of the keys and one part of the values'
// elements.
struct Task {
  int item, heads, kv_heads, keys;   // what it was made for
  int pair, b, kv_head, part, unit;  // unit: pair and part
  int group;                         // queries
  int piece, pieces;                 // nothing to do where piece >= pieces
  int past, from, begin, end;        // keys
  bool owner, news;                  // whether the new key is one of the piece's, and whether its results are due here
  __device__ bool leads() const { return piece == 0 && part == 0; }
  __device__ int warps() const { return max(1, min(kWarps, (end - begin + kKeys - 1) / kKeys)); }  // that have keys
  __device__ int cached() const { return min(end, past); }
};

// With what the warps leave: [kWarps][queries][part_floats].
struct alignas(16) AttentionMemory {
  bf16 q[kQueries][kHeadPitch];
  bf16 new_row[2][D];  // this step's key, and the block's elements of its value
  uint32_t last;
  alignas(8) uint32_t top[kQueries];  // of scores, as keys of their order (decode_attention_staged.cuh)
};
// A part of the softmax: its maximum (of scores times log2 e), its sum, and so many weighted values.
constexpr int part_floats(int values) { return values + 4; }
constexpr int attention_bytes(int queries, bool few_rows) {
  return static_cast<int>(sizeof(AttentionMemory)) + kWarps * queries * part_floats(D / value_parts(few_rows)) * 4;
}

// Of more rows a block has its first cached keys and values brought to shared memory while it waits for q, by the copy
// engine: as loads of so many bytes they would come late. A box is 32 keys, or values, halves of a row after one another,
// 128 bytes each, swizzled as tiles of codes are. Boxes of keys come first, then at once those of values: what is at the beginning
// of the place is there first.
struct StagedCache {
  static constexpr int kBoxKeys = 32, kHalfBytes = kBoxKeys * 128, kBoxBytes = 2 * kHalfBytes, kMostBoxes = 8;
  uint32_t memory;
  int key_boxes, value_boxes;  // at most
  int first_value;             // box

  // Sixteen keys, the first `at` places from the task's first.
  __device__ bool has_keys(int at) const { return at + kKeys <= key_boxes * kBoxKeys; }
  __device__ bool has_values(int at) const { return at + kKeys <= value_boxes * kBoxKeys; }
  template <typename Fetched>
  __device__ void load_keys(Fetched& fetched, int at) const {
    const int lane = threadIdx.x % 32, g = lane / 4, c = lane % 4;
    const uint32_t row = memory + at / kBoxKeys * kBoxBytes + (at % kBoxKeys + g) * 128;
#pragma unroll
    for (int half = 0; half < 2; ++half)
#pragma unroll
      for (int i = 0; i < 4; ++i)
        fetched.keys[half][i] = shared_load(row + half * 8 * 128 + i / 2 * kHalfBytes + ((i % 2 * 4 + c) ^ g) * 16);
  }
  // Where 16 bytes of a key are, and of a value, `at` places from the task's first.
  __device__ uint32_t key(int at, int piece) const {
    return memory + at / kBoxKeys * kBoxBytes + piece / 8 * kHalfBytes + at % kBoxKeys * 128 +
           ((piece % 8 ^ at % 8) * 16);
  }
  __device__ uint32_t value(int at, int piece) const { return key(first_value * kBoxKeys + at, piece); }
  // Of so many that are there, half `half`.
  template <typename Fetched>
  __device__ void load_values(Fetched& fetched, int at, int half, int rows) const {
    static_assert(Fetched::kWidth == D / 2);
    const int g = threadIdx.x % 32 / 4;
    const uint32_t box = memory + (first_value + at / kBoxKeys) * kBoxBytes + half * kHalfBytes;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int j = Fetched::key_of_value(i);
      fetched.values[i] =
          j < rows ? shared_load(box + (at % kBoxKeys + j) * 128 + (g ^ (j & 7)) * 16) : make_uint4(0, 0, 0, 0);
    }
  }
};

// What exponents of a softmax are counted from: its maximum, where it has one.
__device__ inline float origin_of(float largest) { return largest == -INFINITY ? 0.0f : largest; }

// A matrix of 8 × 8 16-bit elements, transposed.
__device__ inline uint32_t turned(uint32_t x) {
  uint32_t y;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(y) : "r"(x));
  return y;
}

// Sixteen keys of a warp, and kWide elements at a time of their values: g = lane / 4, c = lane % 4.
template <int kWide>
struct Fetched {
  static constexpr int kWidth = kWide, kEach = kWide / 8, kWords = kEach / 2;  // a lane's of a value
  using Word = std::conditional_t<kWords == 4, uint4, uint2>;
  static_assert(sizeof(Word) == kWords * 4);
  uint4 keys[2][4];  // of keys g and g + 8: pieces 4j + c
  Word values[4];    // of keys 2c, 2c + 1, 2c + 8, 2c + 9: elements [kEach·g, +kEach)

  __device__ static int key_of_value(int i) { return threadIdx.x % 4 * 2 + i % 2 + i / 2 * 8; }
  // Of so many rows that are there.
  __device__ void load_keys(const bf16* k, int stride, int rows) {
    const int lane = threadIdx.x % 32, g = lane / 4, c = lane % 4;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int j = g + half * 8;
      const uint4* from = reinterpret_cast<const uint4*>(k + j * stride) + c;
#pragma unroll
      for (int i = 0; i < 4; ++i) keys[half][i] = j < rows ? from[i * 4] : make_uint4(0, 0, 0, 0);
    }
  }
  __device__ void load_values(const bf16* v, int stride, int rows) {
    const int g = threadIdx.x % 32 / 4;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int j = key_of_value(i);
      values[i] = j < rows ? *reinterpret_cast<const Word*>(v + j * stride + g * kEach) : Word{};
    }
  }
  // The key and value of this step, which are not in the cache that was read.
  __device__ void patch_keys(const bf16* key, int first, int past) {
    const int lane = threadIdx.x % 32, g = lane / 4, c = lane % 4;
#pragma unroll
    for (int half = 0; half < 2; ++half)
      if (first + g + half * 8 == past)
#pragma unroll
        for (int i = 0; i < 4; ++i) keys[half][i] = reinterpret_cast<const uint4*>(key)[i * 4 + c];
  }
  __device__ void patch_values(const bf16* value, int first, int past) {
    const int g = threadIdx.x % 32 / 4;
#pragma unroll
    for (int i = 0; i < 4; ++i)
      if (first + key_of_value(i) == past) values[i] = reinterpret_cast<const Word*>(value)[g];
  }
  __device__ uint32_t word(int i, int t) const {
    if constexpr (kWords == 4)
      return t == 0 ? values[i].x : t == 1 ? values[i].y : t == 2 ? values[i].z : values[i].w;
    else
      return t == 0 ? values[i].x : values[i].y;
  }
};

// The softmax of a warp over the keys it has seen: of queries 2c and 2c + 1, with kSlice elements of the values.
template <int kSlice, int kWide>
struct WarpSoftmax {
  static constexpr int kChunks = kSlice / kWide, kWords = Fetched<kWide>::kWords;
  float top[2] = {-INFINITY, -INFINITY}, shrink[2];
  float out[kChunks][kWords][4];  // [t]: elements kEach·g + 2t and kEach·g + 2t + 1 of both queries
  float sum[2];                   // of the weights as they are multiplied

  // score: keys g, g + 8 (e / 2) of queries 2c, 2c + 1 (e % 2); `first` is that of key 0.
  __device__ static void multiply_keys(float (&score)[4], const Fetched<kWide>& f, const AttentionMemory& m) {
    const int lane = threadIdx.x % 32, g = lane / 4, c = lane % 4;
    float other[4] = {};  // two, so that products need not wait for each other
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const uint4 q = *reinterpret_cast<const uint4*>(&m.q[g][(j * 4 + c) * 8]);
      const uint4 &a = f.keys[0][j], &b = f.keys[1][j];
      const uint32_t low[4] = {a.x, b.x, a.y, b.y}, high[4] = {a.z, b.z, a.w, b.w};
      mma(score, low, q.x, q.y);
      mma(other, high, q.z, q.w);
    }
#pragma unroll
    for (int e = 0; e < 4; ++e) score[e] += other[e];
  }
  // Scores become weights. scale: with log2 e.
  __device__ void exponentiate(float (&score)[4], int first, int from, int end, float scale) {
    const int g = threadIdx.x % 32 / 4;
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const int j = first + g + e / 2 * 8;
      score[e] = j < end && j >= from ? score[e] * scale : -INFINITY;
    }
    float largest[2] = {fmaxf(score[0], score[2]), fmaxf(score[1], score[3])};
#pragma unroll
    for (int offset = 4; offset < 32; offset *= 2)
#pragma unroll
      for (int e = 0; e < 2; ++e) largest[e] = fmaxf(largest[e], __shfl_xor_sync(0xffffffffu, largest[e], offset));
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      largest[e] = fmaxf(largest[e], top[e]);
      const float origin = origin_of(largest[e]);
      shrink[e] = exp2_fast(top[e] - origin), top[e] = largest[e];
      score[e] = exp2_fast(score[e] - origin), score[e + 2] = exp2_fast(score[e + 2] - origin);
    }
  }
  // What is there already, brought to the new maximum. kFirst: nothing is, and it takes no registers before.
  template <bool kFirst>
  __device__ void shrink_out() {
#pragma unroll
    for (int h = 0; h < kChunks; ++h)
#pragma unroll
      for (int t = 0; t < kWords; ++t)
#pragma unroll
        for (int e = 0; e < 4; ++e) out[h][t][e] = kFirst ? 0.0f : out[h][t][e] * shrink[e & 1];
#pragma unroll
    for (int e = 0; e < 2; ++e) sum[e] = kFirst ? 0.0f : sum[e] * shrink[e];
  }
  // The weights of keys g and g + 8, turned into columns.
  struct Weights {
    uint32_t low, high;
    __device__ explicit Weights(const float (&score)[4])
        : low(turned(pack_bf16(score[0], score[1]))), high(turned(pack_bf16(score[2], score[3]))) {}
  };
  __device__ void multiply_values(int chunk, const Weights& weights, const Fetched<kWide>& f) {
#pragma unroll
    for (int t = 0; t < kWords; ++t) {
      uint32_t a[4];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        a[i * 2] = __byte_perm(f.word(i * 2, t), f.word(i * 2 + 1, t), 0x5410);
        a[i * 2 + 1] = __byte_perm(f.word(i * 2, t), f.word(i * 2 + 1, t), 0x7632);
      }
      mma(out[chunk][t], a, weights.low, weights.high);
    }
  }
  // As a product with ones the sum needs no lane to wait for another.
  __device__ void add_weights(const Weights& weights) {
    constexpr uint32_t kOnes = 0x3f803f80;
    const uint32_t ones[4] = {kOnes, kOnes, kOnes, kOnes};
    float sums[4] = {sum[0], sum[1], 0, 0};  // eight times each; the last two are the same again
    mma(sums, ones, weights.low, weights.high);
    sum[0] = sums[0], sum[1] = sums[1];
  }

  __device__ void leave(float* parts, int queries) const {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, c = lane % 4;
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      if (2 * c + e >= queries) continue;
      float* const to = parts + (warp * queries + 2 * c + e) * part_floats(kSlice);
      if (g == 0) to[0] = top[e], to[1] = sum[e];
#pragma unroll
      for (int h = 0; h < kChunks; ++h)
#pragma unroll
        for (int t = 0; t < kWords; t += 2)
          *reinterpret_cast<float4*>(to + 4 + h * kWide + g * Fetched<kWide>::kEach + t * 2) =
              make_float4(out[h][t][e], out[h][t][e + 2], out[h][t + 1][e], out[h][t + 1][e + 2]);
    }
  }
};

// Parts of one query joined in order, `step` floats apart, by a warp: four values a lane, the maximum and the sum.
// Where the values are fewer than the warp has room for, groups of lanes, kSets of them, take every kSets-th part; all
// end up with the same. shared: parts are this block's own; else other blocks may have written them.
template <int kSlice, bool kShared>
struct Joined {
  static constexpr int kLanes = kSlice / kQuad, kSets = 32 / kLanes, kAtOnce = 4;
  float largest = -INFINITY, total = 0, value[kQuad] = {};

  __device__ Joined(const float* parts, int count, int step) {
    const float* const mine = parts + threadIdx.x % 32 / kLanes * step;
    const int left = count - static_cast<int>(threadIdx.x % 32) / kLanes;
#pragma unroll 1
    for (int first = 0; first < count; first += kAtOnce * kSets) add(mine + first * step, left - first, kSets * step);
    if constexpr (kSets > 1) join_sets();
  }
  template <typename T>
  __device__ static T read(const float* p) {
    return kShared ? *reinterpret_cast<const T*>(p) : __ldcg(reinterpret_cast<const T*>(p));
  }
  __device__ void scale(float factor) {
    total *= factor;
#pragma unroll
    for (int j = 0; j < kQuad; ++j) value[j] *= factor;
  }
  // Up to kAtOnce of this set's; `left`: how many parts of all sets there are from its next one on.
  __device__ void add(const float* parts, int left, int step) {
    float2 head[kAtOnce];
    float4 v[kAtOnce];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      head[i] = make_float2(-INFINITY, 0), v[i] = make_float4(0, 0, 0, 0);
      if (i * kSets >= left) continue;
      head[i] = read<float2>(parts + i * step);
      v[i] = read<float4>(parts + i * step + 4 + threadIdx.x % kLanes * kQuad);
    }
    const float before = largest;
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) largest = fmaxf(largest, head[i].x);
    const float origin = origin_of(largest);
    scale(exp2_fast(before - origin));
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const float f = exp2_fast(head[i].x - origin);
      total += f * head[i].y;
      value[0] += f * v[i].x, value[1] += f * v[i].y, value[2] += f * v[i].z, value[3] += f * v[i].w;
    }
  }
  // What one set has and what it gets, from pieces of a part.
  __device__ void merge(const uint4 (&piece)[2]) {
    const float theirs = __uint_as_float(piece[1].y), before = largest;
    largest = fmaxf(largest, theirs);
    const float origin = origin_of(largest), factor = exp2_fast(theirs - origin);
    scale(exp2_fast(before - origin));
    total += factor * __uint_as_float(piece[1].z);
    value[0] += factor * __uint_as_float(piece[0].x), value[1] += factor * __uint_as_float(piece[0].y);
    value[2] += factor * __uint_as_float(piece[0].z), value[3] += factor * __uint_as_float(piece[1].x);
  }
  __device__ void post(const Exchange& to, int query) const {
    if (threadIdx.x % 32 >= kLanes) return;
    uint4* const place = part_of(to, blockIdx.x, query, threadIdx.x % kLanes);
    const auto word = [](float x) { return __float_as_uint(x); };
    put_piece(place, word(value[0]), word(value[1]), word(value[2]), to.tag);
    put_piece(place + 1, word(value[3]), word(largest), word(total), to.tag);
  }
  // With what `pieces` - 1 other blocks posted, every step-th from this one on.
  __device__ void collect_from(const Exchange& from, int query, int pieces, int step) {
    const int set = threadIdx.x % 32 / kLanes;
    if (set > 0) largest = -INFINITY, total = 0, value[0] = value[1] = value[2] = value[3] = 0;
    for (int n = set > 0 ? set : kSets; n < pieces; n += kSets) {
      uint4 piece[2];
      collect(piece, part_of(from, blockIdx.x + n * step, query, threadIdx.x % kLanes), from.tag);
      merge(piece);
    }
    __syncwarp();
    join_sets();
  }
  __device__ void join_sets() {
    const float before = largest;
    const auto other = [](float x, int offset) { return __shfl_xor_sync(0xffffffffu, x, offset); };
#pragma unroll
    for (int offset = kLanes; offset < 32; offset *= 2) largest = fmaxf(largest, other(largest, offset));
    scale(exp2_fast(before - origin_of(largest)));
#pragma unroll
    for (int offset = kLanes; offset < 32; offset *= 2) {
      total += other(total, offset);
#pragma unroll
      for (int j = 0; j < kQuad; ++j) value[j] += other(value[j], offset);
    }
  }
};

}  // namespace q4::gpu::decode
