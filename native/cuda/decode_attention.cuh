// Attention of a decode chain: one token a sequence, from raw projections to the output. q and k are normalised and
// rotated, k and v appended to the cache, and the cache is attended to. A block takes a sequence and a key head, or a
// piece of its keys where they are many; every warp keeps a softmax of its own over its keys, joined in order of the
// warps, then of the pieces by the block that finishes last.
//   Sᵀ[16 keys, 8 queries] = K·Qᵀ and Oᵀ[dims, 8 queries] = Vᵀ·Pᵀ by mma m16n8k16; the k dimension of the first and the
// rows of the second are permuted so that a lane reads 16 contiguous bytes of a key and 32 of a value.
#pragma once
#include "cuda/decode_norm.cuh"

namespace q4::gpu::decode {

constexpr int D = 128;                    // elements of a head
constexpr int kQueries = kDecodeQueries;  // heads of a group, at most
constexpr int kKeys = 16;                 // that a warp takes at a time
constexpr int kPieceKeys = 512;           // keys from which on another block helps
constexpr int kHeadPitch = D + 8;         // so that the eight rows of q lie in different banks

// Followed by what the warps leave.
struct AttentionMemory {
  bf16 q[kQueries][kHeadPitch];
  bf16 new_row[2][D];  // this step's key and value
  uint32_t last;
  alignas(16) float parts[];  // [kWarps][queries][kPartFloats]
};
// A part of the softmax: its maximum, its sum, and its weighted values.
constexpr int kPartFloats = D + 4;
constexpr int attention_bytes(int queries) {
  return static_cast<int>(sizeof(AttentionMemory)) + kWarps * queries * kPartFloats * 4;
}

// A lane's elements of a head as it comes from the projections: 2·lane, 2·lane + 1, and those D/2 further.
struct RawHead {
  uint32_t low, high;
  __device__ RawHead(const Exchange& from, int group) {
    const int lane = threadIdx.x % 32;
    const uint4* const pieces = from.slot + group * kGroupPieces + lane / 2;
    uint4 v, w;
    do v = peek(pieces), w = peek(pieces + 16);
    while (v.w != from.tag || w.w != from.tag);
    low = lane % 2 ? v.y : v.x, high = lane % 2 ? w.y : w.x;
  }
};

// One head, normalised and rotated by a warp, to shared memory; what the separate op would leave, where asked.
__device__ inline void rotate_head(const RawHead& x, float2 low_weight, float2 high_weight, const float2* turns,
                                   float eps, bf16* to, bf16* rotated, bf16* raw, float* rstd) {
  constexpr int kHalf = D / 2;
  const int i = threadIdx.x % 32 * 2;
  const float a[2] = {low_bf16(x.low), high_bf16(x.low)}, b[2] = {low_bf16(x.high), high_bf16(x.high)};
  const float scale =
      rsqrtf(warp_sum(a[0] * a[0] + a[1] * a[1] + b[0] * b[0] + b[1] * b[1]) / static_cast<float>(D) + eps);
  if (rstd && i == 0) *rstd = scale;
  float first[2], second[2];
#pragma unroll
  for (int e = 0; e < 2; ++e) {
    const float cosine = turns[i + e].x, sine = turns[i + e].y;
    const float x0 = rounded<bf16>(a[e] * scale) * (e ? low_weight.y : low_weight.x),
                x1 = rounded<bf16>(b[e] * scale) * (e ? high_weight.y : high_weight.x);
    first[e] = x0 * cosine - x1 * sine, second[e] = x1 * cosine + x0 * sine;
  }
  const auto leave = [&](bf16* place, uint32_t low_word, uint32_t high_word) {
    *reinterpret_cast<uint32_t*>(place + i) = low_word, *reinterpret_cast<uint32_t*>(place + i + kHalf) = high_word;
  };
  const uint32_t first_word = pack_bf16(first[0], first[1]), second_word = pack_bf16(second[0], second[1]);
  leave(to, first_word, second_word);
  if (rotated) leave(rotated, first_word, second_word);
  if (raw) leave(raw, x.low, x.high);
}

// Sixteen keys and values of a warp: g = lane / 4, c = lane % 4.
struct Fetched {
  uint4 keys[2][4];    // of keys g and g + 8: pieces 4j + c
  uint4 values[2][2];  // of keys 2c and 2c + 1, of the first eight or the last: elements [16g, +16)

  __device__ void load_keys(const bf16* k, int stride, int first, int end) {
    const int lane = threadIdx.x % 32, g = lane / 4, c = lane % 4;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int j = first + g + half * 8;
      const uint4* from = reinterpret_cast<const uint4*>(k + j * stride) + c;
#pragma unroll
      for (int i = 0; i < 4; ++i) keys[half][i] = j < end ? from[i * 4] : make_uint4(0, 0, 0, 0);
    }
  }
  __device__ void load_values(const bf16* v, int stride, int first, int end) {
    const int lane = threadIdx.x % 32, g = lane / 4, c = lane % 4;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int j = first + 2 * c + i;
      const uint4* from = reinterpret_cast<const uint4*>(v + j * stride + g * 16);
#pragma unroll
      for (int half = 0; half < 2; ++half) values[i][half] = j < end ? from[half] : make_uint4(0, 0, 0, 0);
    }
  }
  // The key and value of this step, which are not in the cache that was read.
  __device__ void patch_keys(const AttentionMemory& m, int first, int past) {
    const int lane = threadIdx.x % 32, g = lane / 4, c = lane % 4;
#pragma unroll
    for (int half = 0; half < 2; ++half)
      if (first + g + half * 8 == past)
#pragma unroll
        for (int i = 0; i < 4; ++i) keys[half][i] = reinterpret_cast<const uint4*>(m.new_row[0])[i * 4 + c];
  }
  __device__ void patch_values(const AttentionMemory& m, int first, int past) {
    const int lane = threadIdx.x % 32, g = lane / 4, c = lane % 4;
#pragma unroll
    for (int i = 0; i < 2; ++i)
      if (first + 2 * c + i == past)
#pragma unroll
        for (int half = 0; half < 2; ++half)
          values[i][half] = reinterpret_cast<const uint4*>(m.new_row[1])[g * 2 + half];
  }
};

// d += a·b, 16×8 · 8×8.
__device__ inline void mma_k8(float (&d)[4], uint32_t a0, uint32_t a1, uint32_t b) {
  asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
               : "r"(a0), "r"(a1), "r"(b));
}

// The softmax of a warp over the keys it has seen: of queries 2c and 2c + 1.
struct WarpSoftmax {
  float top[2] = {-INFINITY, -INFINITY}, sum[2] = {0, 0}, shrink[2];
  float out[8][4];  // [t]: elements 16g + 2t and 16g + 2t + 1 of both queries

  // score: keys g, g + 8 (e / 2) of queries 2c, 2c + 1 (e % 2); `first` is that of key 0.
  __device__ static void multiply_keys(float (&score)[4], const Fetched& f, const AttentionMemory& m) {
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
  __device__ void exponentiate(float (&score)[4], int first, int from, int end, float scale) {
    const int g = threadIdx.x % 32 / 4;
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const int j = first + g + e / 2 * 8;
      score[e] = j < end && j >= from ? score[e] * scale : -INFINITY;
    }
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      float largest = fmaxf(score[e], score[e + 2]);
#pragma unroll
      for (int offset = 4; offset < 32; offset *= 2)
        largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, offset));
      largest = fmaxf(largest, top[e]);
      const float origin = largest == -INFINITY ? 0.0f : largest;
      shrink[e] = expf(top[e] - origin), top[e] = largest;
      score[e] = expf(score[e] - origin), score[e + 2] = expf(score[e + 2] - origin);
      float added = score[e] + score[e + 2];
#pragma unroll
      for (int offset = 4; offset < 32; offset *= 2) added += __shfl_xor_sync(0xffffffffu, added, offset);
      sum[e] = sum[e] * shrink[e] + added;
    }
  }
  // What is there already, brought to the new maximum.
  __device__ void shrink_out() {
#pragma unroll
    for (int t = 0; t < 8; ++t)
#pragma unroll
      for (int e = 0; e < 4; ++e) out[t][e] *= shrink[e & 1];
  }
  // Eight keys: score0, score1 are those of key g. kFirst: `out` is written, not added to; it takes no registers before.
  template <bool kFirst>
  __device__ void multiply_values(float score0, float score1, const Fetched& f) {
    uint32_t weights;  // of key g, turned into a column
    asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(weights) : "r"(pack_bf16(score0, score1)));
    const auto word = [&](int row, int t) {
      const uint4& v = f.values[row][t / 4];
      return t % 4 == 0 ? v.x : t % 4 == 1 ? v.y : t % 4 == 2 ? v.z : v.w;
    };
#pragma unroll
    for (int t = 0; t < 8; ++t) {
      if (kFirst) out[t][0] = out[t][1] = out[t][2] = out[t][3] = 0;
      mma_k8(out[t], __byte_perm(word(0, t), word(1, t), 0x5410), __byte_perm(word(0, t), word(1, t), 0x7632), weights);
    }
  }

  __device__ void leave(float* parts, int queries) const {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, c = lane % 4;
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      if (2 * c + e >= queries) continue;
      float* const to = parts + (warp * queries + 2 * c + e) * kPartFloats;
      if (g == 0) to[0] = top[e], to[1] = sum[e];
#pragma unroll
      for (int t = 0; t < 8; t += 2)
        *reinterpret_cast<float4*>(to + 4 + g * 16 + t * 2) =
            make_float4(out[t][e], out[t][e + 2], out[t + 1][e], out[t + 1][e + 2]);
    }
  }
};

// Parts of one query joined in order, `step` floats apart, by a warp: of the values elements 4·lane …, with the maximum
// and the sum. shared: parts are this block's own; else other blocks may have written them.
struct Joined {
  float largest, total;
  float4 value;
};
template <bool kShared>
__device__ inline Joined join_softmax(const float* parts, int count, int step) {
  constexpr int kAtOnce = 16;
  const int lane = threadIdx.x % 32;
  Joined j{-INFINITY, 0, {0, 0, 0, 0}};
#pragma unroll 1
  for (int first = 0; first < count; first += kAtOnce) {
    const float* const mine = parts + (first + lane) * step;
    float2 head = make_float2(-INFINITY, 0);
    if (lane < kAtOnce && first + lane < count)
      head = kShared ? *reinterpret_cast<const float2*>(mine) : __ldcg(reinterpret_cast<const float2*>(mine));
    const float largest = fmaxf(j.largest, warp_max(head.x)), origin = largest == -INFINITY ? 0.0f : largest,
                factor = __expf(head.x - origin), shrink = __expf(j.largest - origin);
    j.largest = largest, j.total = j.total * shrink + warp_sum(factor * head.y);
    j.value.x *= shrink, j.value.y *= shrink, j.value.z *= shrink, j.value.w *= shrink;
#pragma unroll 4
    for (int i = 0; i < min(kAtOnce, count - first); ++i) {
      const float4* const from = reinterpret_cast<const float4*>(parts + (first + i) * step + 4) + lane;
      const float4 v = kShared ? *from : __ldcg(from);
      const float f = __shfl_sync(0xffffffffu, factor, i);
      j.value.x += f * v.x, j.value.y += f * v.y, j.value.z += f * v.z, j.value.w += f * v.w;
    }
  }
  return j;
}

// The operands, read again from shared memory: without this the compiler holds two dozen pointers in registers all along.
template <typename T>
__device__ inline const T& reread(const T& x) {
  const T* p = &x;
  asm volatile("" : "+l"(p));
  return *p;
}

// What attentions share, in shared memory.
struct Sequences {
  int past[kDecodeRows], from[kDecodeRows];
  float2 turns[][D / 2];  // [rows] cosine and sine of each pair of elements
};

// source: q, k and v, as groups in this order.
// await: until the blocks have left them. arrive: after a pair's output.
template <typename Rows, typename Await, typename Arrive>
__device__ inline void attend(const DecodeAttention& operands, const Exchange& source, const Exchange& to,
                              const Table& table, const Sequences& sequences, float* attention_parts, uint32_t* tickets,
                              AttentionMemory& m, Await&& await, Arrive&& arrive) {
  constexpr int kGroups = D / kElements;  // of a head
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, kv_heads = operands.kv_heads, heads = operands.heads,
            group = heads / kv_heads, stride = kv_heads * D;
  const int pairs = table.rows * kv_heads, most = max(1, static_cast<int>(gridDim.x) / pairs);
#pragma unroll 1
  for (int item = blockIdx.x; item < pairs * most; item += gridDim.x) {
    const int pair = item % pairs, piece = item / pairs, b = pair / kv_heads, kv_head = pair % kv_heads;
    const int keys = operands.keys, past = sequences.past[b], length = min(keys, past + 1), from = sequences.from[b];
    const int pieces = min(most, (length + kPieceKeys - 1) / kPieceKeys);
    if (piece >= pieces) continue;
    const int each = ((length + pieces - 1) / pieces + kKeys - 1) / kKeys * kKeys, begin = piece * each,
              end = min(length, begin + each);
    const int64_t base = int64_t{b} * keys * stride + kv_head * D;
    bf16 *const k = reread(operands).k_cache + base, *const v = reread(operands).v_cache + base;
    int first = begin + warp * kKeys;
    Fetched fetched;
    fetched.load_keys(k, stride, first, min(end, past));

    float2 low_weight, high_weight;
    {
      const float* const weight = warp == kQueries ? reread(operands).k_weight : reread(operands).q_weight;
      low_weight = *reinterpret_cast<const float2*>(weight + lane * 2);
      high_weight = *reinterpret_cast<const float2*>(weight + D / 2 + lane * 2);
    }
    await();

    // The heads of q, and the new key: which, where it does not fit, is dropped, but its projections are results like any
    // other.
    const bool leader = piece == 0, owner = past >= begin && past < end;
    static_assert(kQueries < kWarps);
    const int i = warp;
    const bool is_key = i == kQueries;
    if (i < kQueries && i >= group) {
      // A column that nobody reads; but no stray NaN may stand in it.
      *reinterpret_cast<uint2*>(&m.q[i][lane * 4]) = make_uint2(0, 0);
    } else if (i < kQueries || (is_key && (owner || (past >= keys && leader)))) {
      const DecodeAttention& call = reread(operands);
      // Of the row's groups: heads of q, then of k, then of v.
      const int row = is_key ? pair : pair * group + i, in_row = (heads + 2 * kv_heads) * kGroups * b,
                head = is_key ? heads + kv_head : kv_head * group + i;
      const int64_t at = int64_t{row} * D;
      const bool writes = is_key || leader;
      bf16 *const rotated = is_key ? call.k_rotated : call.q_rotated, *const raw = is_key ? call.k_out : call.q_out;
      float* const rstd = is_key ? call.k_rstd : call.q_rstd;
      rotate_head(RawHead(source, in_row + head * kGroups), low_weight, high_weight, sequences.turns[b],
                  is_key ? call.k_eps : call.q_eps, is_key ? m.new_row[0] : m.q[i],
                  writes && rotated ? rotated + at : nullptr, writes && raw ? raw + at : nullptr,
                  writes && rstd ? rstd + row : nullptr);
      if (is_key) {
        __syncwarp();
        uint4 piece_of_v[1];
        collect(piece_of_v, source.slot + (in_row + (head + kv_heads) * kGroups) * kGroupPieces + lane, source.tag);
        const uint2 value = make_uint2(piece_of_v[0].x, piece_of_v[0].y);
        reinterpret_cast<uint2*>(m.new_row[1])[lane] = value;
        if (call.v_out) reinterpret_cast<uint2*>(call.v_out + at)[lane] = value;
        if (owner) {
          const int64_t place = int64_t{past} * stride;
          reinterpret_cast<uint2*>(k + place)[lane] = reinterpret_cast<const uint2*>(m.new_row[0])[lane];
          reinterpret_cast<uint2*>(v + place)[lane] = value;
        }
      }
    }
    block_sync();

    const float scale = reread(operands).scale;
    WarpSoftmax softmax;
    const auto step = [&](auto is_first) {
      constexpr bool kFirst = decltype(is_first)::value;
      const bool patched = owner && past >= first && past < first + kKeys;
      float score[4] = {};
      if (patched) fetched.patch_keys(m, first, past);
      softmax.multiply_keys(score, fetched, m);
      // Only now, and by halves: more of them at a time would take too many registers.
      fetched.load_values(v, stride, first, min(end, past));
      softmax.exponentiate(score, first, from, end, scale);
      if (patched) fetched.patch_values(m, first, past);
      if (!kFirst) softmax.shrink_out();
      softmax.template multiply_values<kFirst>(score[0], score[1], fetched);
      fetched.load_values(v, stride, first + 8, min(end, past));
      if (patched) fetched.patch_values(m, first + 8, past);
      softmax.template multiply_values<false>(score[2], score[3], fetched);
    };
    step(std::true_type{});
#pragma unroll 1
    for (first += kWarps * kKeys; first < end; first += kWarps * kKeys) {
      fetched.load_keys(k, stride, first, min(end, past));
      step(std::false_type{});
    }
    softmax.leave(m.parts, group);
    block_sync();

    float* const left = attention_parts + int64_t{pair} * most * group * kPartFloats;  // [piece][query]
    const int active = max(1, min(kWarps, (end - begin + kKeys - 1) / kKeys));         // warps that had keys
    bool complete = pieces == 1;
    if (!complete) {
      if (warp < group) {
        const Joined j = join_softmax<true>(m.parts + warp * kPartFloats, active, group * kPartFloats);
        float* const own = left + (piece * group + warp) * kPartFloats;
        reinterpret_cast<float4*>(own + 4)[lane] = j.value;
        if (lane == 0) own[0] = j.largest, own[1] = j.total;
      }
      block_sync();
      if (threadIdx.x == 0) {
        __threadfence();
        m.last = atomicAdd(tickets + pair, 1u) == static_cast<unsigned>(pieces - 1);
        if (m.last) tickets[pair] = 0;
        __threadfence();
      }
      block_sync();
      complete = m.last;
    }
    if (complete && warp < group) {
      const DecodeAttention& call = reread(operands);
      const int row = pair * group + warp;
      const Joined j = pieces == 1 ? join_softmax<true>(m.parts + warp * kPartFloats, active, group * kPartFloats)
                                   : join_softmax<false>(left + warp * kPartFloats, pieces, group * kPartFloats);
      const float inverse = j.total > 0 ? __fdividef(1.0f, j.total) : 0.0f;
      const uint2 words = make_uint2(pack_bf16(j.value.x * inverse, j.value.y * inverse),
                                     pack_bf16(j.value.z * inverse, j.value.w * inverse));
      if (lane == 0 && call.lse) call.lse[row] = j.largest + logf(j.total);
      if (call.out) reinterpret_cast<uint2*>(call.out + int64_t{row} * D)[lane] = words;
      const float value[4] = {low_bf16(words.x), high_bf16(words.x), low_bf16(words.y), high_bf16(words.y)};
      Rows::post(to, row * kGroups + lane / 4, value, 0, true);
    }
    block_sync();  // before another item takes the same memory
    if (complete) arrive();
  }
}

}  // namespace q4::gpu::decode
