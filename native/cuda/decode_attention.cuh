// Attention of a decode chain: one token a sequence, from raw projections to the output. q and k are normalised and
// rotated, k and v appended to the cache, and the cache is attended to. A block takes a sequence and a key head, or a
// piece of its keys where they are many; of few rows several blocks take the same keys, and each a part of the values'
// elements, and pieces are small: a multiprocessor has few loads under way at a time, so that keys, were there many, would
// come late. Every warp keeps a softmax of its own over its keys, joined in order of the warps, then of the pieces: by the
// block that finishes last, or of few rows by the block of the first piece, which the others send theirs. Of more rows the
// copy engine brings keys and values to shared memory while q is waited for; where it brings all of them, warps need no softmax
// of their own (decode_attention_staged.cuh).
#pragma once
#include "cuda/decode_attention_staged.cuh"

namespace q4::gpu::decode {

// What the projections leave: of their width in one piece bf16, in two (of more rows) sums, `apart` groups apart. apart: 0 of one.
struct Projected {
  Exchange from;
  int apart;
  // Four elements as bf16 from such a piece, and from the one second() pieces further.
  __device__ uint2 open(const uint4& piece, const uint4& other) const {
    if (apart == 0) return make_uint2(piece.x, piece.y);
    float v[kQuad] = {};
    add_sums(v, piece), add_sums(v, other);
    return pack4(v);
  }
  __device__ int second() const { return apart * kGroupPieces; }
};

// A lane's elements of a head as it comes from the projections: 2·lane, 2·lane + 1, and those D/2 further.
struct RawHead {
  uint32_t low, high;
  template <bool kMaySplit>
  __device__ static RawHead take(const Projected& projected, int group) {
    const int lane = threadIdx.x % 32;
    const uint32_t tag = projected.from.tag;
    const uint4* const pieces = projected.from.slot + group * kGroupPieces + lane / 2;
    uint4 v, w;
    if constexpr (kMaySplit) {
      const uint4* const others = pieces + projected.second();
      uint4 x, y;
      do v = peek(pieces), w = peek(pieces + 16), x = peek(others), y = peek(others + 16);
      while (v.w != tag || w.w != tag || x.w != tag || y.w != tag);
      const uint2 low = projected.open(v, x), high = projected.open(w, y);
      return {lane % 2 ? low.y : low.x, lane % 2 ? high.y : high.x};
    } else {
      do v = peek(pieces), w = peek(pieces + 16);
      while (v.w != tag || w.w != tag);
      return {lane % 2 ? v.y : v.x, lane % 2 ? w.y : w.x};
    }
  }
};

// A lane's weights of a head's norm, in the same order.
struct HeadWeight {
  float2 low, high;
  __device__ explicit HeadWeight(const float* weight) {
    const int lane = threadIdx.x % 32;
    low = *reinterpret_cast<const float2*>(weight + lane * 2);
    high = *reinterpret_cast<const float2*>(weight + D / 2 + lane * 2);
  }
};
// Where a head goes in memory: what the separate ops would leave, and the cache; any may be null.
struct HeadPlaces {
  bf16 *raw, *rotated, *cached;
  float* rstd;
};

// One head, normalised and rotated by a warp, to shared memory, and to `places`.
__device__ inline void rotate_head(const RawHead& x, const HeadWeight& weight, const float2* turns, float eps, bf16* to,
                                   const HeadPlaces& places) {
  constexpr int kHalf = D / 2;
  const int i = threadIdx.x % 32 * 2;
  const float a[2] = {low_bf16(x.low), high_bf16(x.low)}, b[2] = {low_bf16(x.high), high_bf16(x.high)};
  const float squares = a[0] * a[0] + a[1] * a[1] + (b[0] * b[0] + b[1] * b[1]);
  const float scale = rsqrtf(warp_sum(squares) / static_cast<float>(D) + eps);
  float first[2], second[2];
#pragma unroll
  for (int e = 0; e < 2; ++e) {
    const float cosine = turns[i + e].x, sine = turns[i + e].y;
    const float x0 = rounded<bf16>(a[e] * scale) * (e ? weight.low.y : weight.low.x),
                x1 = rounded<bf16>(b[e] * scale) * (e ? weight.high.y : weight.high.x);
    first[e] = x0 * cosine - x1 * sine, second[e] = x1 * cosine + x0 * sine;
  }
  const auto leave = [&](bf16* place, uint32_t low_word, uint32_t high_word) {
    *reinterpret_cast<uint32_t*>(place + i) = low_word, *reinterpret_cast<uint32_t*>(place + i + kHalf) = high_word;
  };
  const uint32_t first_word = pack_bf16(first[0], first[1]), second_word = pack_bf16(second[0], second[1]);
  leave(to, first_word, second_word);
  if (places.cached) leave(places.cached, first_word, second_word);
  if (places.rotated) leave(places.rotated, first_word, second_word);
  if (places.raw) leave(places.raw, x.low, x.high);
  if (places.rstd && i == 0) *places.rstd = scale;
}

// What attentions share, in shared memory.
struct Sequences {
  Task task;  // the last one: that of the next layer is the same, as a rule
  int past[kDecodeRows], from[kDecodeRows];
  float2 turns[][D / 2];  // [rows] cosine and sine of each pair of elements
};

// Of a unit, where there are blocks for more than one.
__device__ inline int most_pieces(int units, int blocks) { return max(1, blocks / units); }
template <int kParts>
__device__ inline Task task_of(int item, int units, int blocks, const DecodeAttention& operands,
                               const Sequences& sequences) {
  Task t{};  // the bytes behind its flags too, of which the compiler would keep what they were
  t.item = item, t.heads = operands.heads, t.kv_heads = operands.kv_heads, t.keys = operands.keys;
  t.piece = item / units, t.unit = item - t.piece * units;
  t.pair = t.unit / kParts, t.part = t.unit % kParts;
  t.b = t.pair / operands.kv_heads, t.kv_head = t.pair - t.b * operands.kv_heads;
  t.group = operands.heads / operands.kv_heads;
  t.past = sequences.past[t.b], t.from = sequences.from[t.b];
  const int length = min(operands.keys, t.past + 1);
  constexpr int kPieceKeys = piece_keys(kParts > 1);
  t.pieces = min(most_pieces(units, blocks), (length + kPieceKeys - 1) / kPieceKeys);
  const int each = ((length + t.pieces - 1) / t.pieces + kKeys - 1) / kKeys * kKeys;
  t.begin = t.piece * each, t.end = min(length, t.begin + each);
  t.owner = t.past >= t.begin && t.past < t.end;
  t.news = t.owner || (t.past >= operands.keys && t.piece == 0);
  return t;
}

__device__ inline bool is_task(const Task& t, int item, const DecodeAttention& call) {
  return t.item == item && t.heads == call.heads && t.kv_heads == call.kv_heads && t.keys == call.keys;
}

// Where a key of the task, or its value, is in the cache.
__device__ inline int64_t row_of(const Task& t, const DecodeAttention& call, int key) {
  return ((int64_t{t.b} * call.keys + key) * call.kv_heads + t.kv_head) * D;
}
template <typename Fetched>
__device__ inline void fetch_keys(Fetched& fetched, const Task& t, const DecodeAttention& operands, int first) {
  const DecodeAttention& call = reread(operands);
  fetched.load_keys(call.k_cache + row_of(t, call, first), call.kv_heads * D, t.cached() - first);
}
template <int kSlice, typename Fetched>
__device__ inline void fetch_values(Fetched& fetched, const Task& t, const DecodeAttention& operands, int first,
                                    int chunk) {
  const DecodeAttention& call = reread(operands);
  fetched.load_values(call.v_cache + row_of(t, call, first) + t.part * kSlice + chunk * Fetched::kWidth,
                      call.kv_heads * D, t.cached() - first);
}

// Where a task's cached keys and values are, in boxes.
struct CachePlace {
  int boxes, row, half;
  __device__ CachePlace(const Task& t, const DecodeAttention& call)
      : boxes(t.piece < t.pieces ? (max(0, t.cached() - t.begin) + StagedCache::kBoxKeys - 1) / StagedCache::kBoxKeys
                                 : 0),
        row(t.b * call.keys + t.begin),
        half(t.kv_head * 2) {}
};
// By a warp that does not compute, a lane a box: of what is staged of keys and values the boxes [first, end), completing
// `barrier`. expects: these are the first of several parts, or all.
__device__ inline void stage_cache(const CachePlace& place, const DecodeMaps& maps, const StagedCache& staged,
                                   uint32_t barrier, bool expects, int first, int end) {
  static_assert(2 * StagedCache::kMostBoxes <= 32);
  const int lane = threadIdx.x % 32, keys = min(place.boxes, staged.key_boxes),
            values = min(place.boxes, staged.value_boxes);
  if (expects && lane == 0) barrier_expect(barrier, (values + keys) * StagedCache::kBoxBytes);
  const bool is_key = lane < staged.first_value;
  const int box = is_key ? lane : lane - staged.first_value;
  if (lane < first || lane >= end || box >= (is_key ? keys : values)) return;
  copy_box(staged.memory + lane * StagedCache::kBoxBytes, is_key ? maps.codes : maps.scales, 0,
           place.row + box * StagedCache::kBoxKeys, place.half, barrier);
}
// By a warp, from memory into the second-level cache: what an attention of a later phase will read of the cache. The weights
// that flow by evict everything from one token to the next.
__device__ inline void prefetch_cache(const DecodeAttention& call, const DecodeMaps& maps, int rows, const int* past) {
  constexpr int kMost = 1024;  // keys: of very long contexts the end is left to the attention itself
  const int kv_heads = call.kv_heads;
#pragma unroll 1
  for (int pair = blockIdx.x; pair < rows * kv_heads; pair += gridDim.x) {
    const int b = pair / kv_heads,
              boxes = (min(min(past[b], call.keys), kMost) + StagedCache::kBoxKeys - 1) / StagedCache::kBoxKeys;
#pragma unroll 1
    for (int i = threadIdx.x % 32; i < 2 * boxes; i += 32)
      prefetch_box(i & 1 ? maps.scales : maps.codes, 0, b * call.keys + i / 2 * StagedCache::kBoxKeys,
                   (pair - b * kv_heads) * 2);
  }
}

// The heads of q, and the new key and value: these, where they do not fit, are dropped, but the projections are results
// like any other. A warp a head. Of the blocks that share the values' elements the first writes all of these results, the
// others no more than their elements of the value.
constexpr int kKeyWarp = kQueries, kValueWarp = kQueries + 1;
static_assert(kValueWarp < kWarps);
// The first group of the warp's head. Of a row's groups those of the heads of q come first, then of k, then of v.
__device__ inline int head_of_warp(const Task& t, const DecodeAttention& operands) {
  const int warp = threadIdx.x / 32, heads = operands.heads, kv_heads = operands.kv_heads;
  const int head = warp < kQueries    ? t.kv_head * t.group + warp
                   : warp == kKeyWarp ? heads + t.kv_head
                                      : heads + kv_heads + t.kv_head;
  return ((heads + 2 * kv_heads) * t.b + head) * kGroups;
}
template <int kSlice, bool kMaySplit>
__device__ inline void take_heads(const Task& t, const DecodeAttention& operands, const Projected& source, int head,
                                  const Sequences& sequences, const HeadWeight& weight, AttentionMemory& m) {
  constexpr int kLanes = kSlice / kQuad;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const bool is_key = warp == kKeyWarp;
  if (warp < t.group || (is_key && t.news)) {
    const RawHead raw_head = RawHead::take<kMaySplit>(source, head);
    const DecodeAttention& call = reread(operands);
    const int row = is_key ? t.pair : t.pair * t.group + warp;
    const int64_t at = int64_t{row} * D;
    const bool writes = is_key ? t.part == 0 : t.leads();
    bf16 *const rotated = is_key ? call.k_rotated : call.q_rotated, *const raw = is_key ? call.k_out : call.q_out;
    float* const rstd = is_key ? call.k_rstd : call.q_rstd;
    rotate_head(raw_head, weight, sequences.turns[t.b], is_key ? call.k_eps : call.q_eps,
                is_key ? m.new_row[0] : m.q[warp],
                {writes && raw ? raw + at : nullptr, writes && rotated ? rotated + at : nullptr,
                 writes && is_key && t.owner ? call.k_cache + row_of(t, call, t.past) : nullptr,
                 writes && rstd ? rstd + row : nullptr});
  } else if (warp < kQueries) {
    // A column that nobody reads; but no stray NaN may stand in it.
    quad(&m.q[warp][lane * kQuad]) = make_uint2(0, 0);
  } else if (warp == kValueWarp && t.news && lane < kLanes) {
    constexpr int kPieces = kMaySplit ? 2 : 1;
    uint4 piece[kPieces];
    const uint4* const pieces = source.from.slot + head * kGroupPieces + t.part * kLanes + lane;
    collect_at(
        piece, [&](int i) { return pieces + i * source.second(); }, source.from.tag);
    const DecodeAttention& call = reread(operands);
    const uint2 value = kMaySplit ? source.open(piece[0], piece[kPieces - 1]) : make_uint2(piece[0].x, piece[0].y);
    quad(m.new_row[1] + lane * kQuad) = value;
    if (t.owner) quad(call.v_cache + row_of(t, call, t.past) + t.part * kSlice + lane * kQuad) = value;
    if (call.v_out) quad(call.v_out + int64_t{t.pair} * D + t.part * kSlice + lane * kQuad) = value;
  }
}

// Of values of more elements only some at a time, and those late: more would take too many registers.
template <int kSlice>
constexpr int kWideOf = kSlice < D / 2 ? kSlice : D / 2;
template <int kSlice>
constexpr bool kAhead = kWideOf<kSlice> == kSlice;

// The task's keys and values; `fetched` are the warp's first keys, and values where they are fetched ahead.
template <int kSlice, typename Here, typename BeforeLeaving>
__device__ inline void attend_keys(const Task& task, Fetched<kWideOf<kSlice>>& fetched, const DecodeAttention& operands,
                                   const Here& here, AttentionMemory& memory, BeforeLeaving&& before_leaving) {
  constexpr int kWide = kWideOf<kSlice>, kStep = kWarps * kKeys;
  constexpr bool kIsAhead = kAhead<kSlice>;
  using Softmax = WarpSoftmax<kSlice, kWide>;
  int first = task.begin + static_cast<int>(threadIdx.x / 32) * kKeys;
  Softmax softmax;
  const auto take_keys = [&] {
    const int at = first - reread(task).begin;
    if (here.staged().has_keys(at))
      here.staged().load_keys(fetched, at);
    else
      fetch_keys(fetched, reread(task), operands, first);
  };
  const auto take_values = [&](int chunk) {
    const Task& t = reread(task);
    if constexpr (kIsAhead)
      fetch_values<kSlice>(fetched, t, operands, first, chunk);
    else if (here.staged().has_values(first - t.begin))
      here.staged().load_values(fetched, first - t.begin, chunk, t.cached() - first);
    else
      fetch_values<kSlice>(fetched, t, operands, first, chunk);
  };
  const auto step = [&](auto is_first) {
    constexpr bool kFirst = decltype(is_first)::value;
    const AttentionMemory& m = reread(memory);
    const Task& now = reread(task);
    const bool patched = now.owner && now.past >= first && now.past < first + kKeys, more = first + kStep < now.end;
    if (patched) {
      fetched.patch_keys(m.new_row[0], first, now.past);
      if (kIsAhead) fetched.patch_values(m.new_row[1], first, now.past);
    }
    float score[4] = {};
    Softmax::multiply_keys(score, fetched, m);
    if (kIsAhead && more) fetch_keys(fetched, reread(task), operands, first + kStep);
    if (!kIsAhead) take_values(0);
    softmax.exponentiate(score, first, now.from, now.end, reread(operands).scale * kLog2e);
    softmax.template shrink_out<kFirst>();
    const typename Softmax::Weights weights(score);
#pragma unroll
    for (int chunk = 0; chunk < Softmax::kChunks; ++chunk) {
      if (chunk > 0) take_values(chunk);
      if (!kIsAhead && patched) fetched.patch_values(m.new_row[1] + chunk * kWide, first, now.past);
      softmax.multiply_values(chunk, weights, fetched);
    }
    softmax.add_weights(weights);
    if (kIsAhead && more) fetch_values<kSlice>(fetched, reread(task), operands, first + kStep, 0);
    first += kStep;
  };
  if constexpr (!kIsAhead) take_keys();
  step(std::true_type{});
#pragma unroll 1
  while (first < reread(task).end) {
    if (!kIsAhead) take_keys();
    step(std::false_type{});
  }
  before_leaving();
  softmax.leave(here.parts(), reread(task).group);
}

// Leaves the piece's part of the softmax, joined from the warps', with those of the unit's other pieces. True in the block
// that finds all of them there.
template <int kSlice>
__device__ inline bool leave_piece(const Task& t, float* left, uint32_t* ticket, const float* parts,
                                   AttentionMemory& m) {
  constexpr int kFloats = part_floats(kSlice);
  const int group = t.group, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  if (warp < group) {
    const Joined<kSlice, true> j(parts + warp * kFloats, t.warps(), group * kFloats);
    float* const own = left + (t.piece * group + warp) * kFloats;
    if (lane < j.kLanes)
      reinterpret_cast<float4*>(own + 4)[lane] = make_float4(j.value[0], j.value[1], j.value[2], j.value[3]);
    if (lane == 0) own[0] = j.largest, own[1] = j.total;
  }
  block_sync();
  if (threadIdx.x == 0) {
    __threadfence();
    m.last = atomicAdd(ticket, 1u) == static_cast<unsigned>(t.pieces - 1);
    if (m.last) *ticket = 0;
    __threadfence();
  }
  block_sync();
  return m.last;
}

// A query's output, by a warp.
template <typename Rows, int kSlice, bool kShared>
__device__ inline void hand_on(const Task& t, const Joined<kSlice, kShared>& j, const DecodeAttention& operands,
                               const Exchange& to) {
  const int lane = threadIdx.x % 32, row = t.pair * t.group + static_cast<int>(threadIdx.x / 32);
  const float inverse = j.total > 0 ? __fdividef(1.0f, j.total) : 0.0f;
  float value[kQuad];
#pragma unroll
  for (int e = 0; e < kQuad; ++e) value[e] = j.value[e] * inverse;
  const uint2 words = pack4(value);
  unpack4(value, words);
  const bool inside = lane < j.kLanes;
  const int group = row * kGroups + t.part * (kSlice / kElements) + lane % j.kLanes / (kElements / kQuad);
  Rows::post(to, group, value, inside);
  const DecodeAttention& call = reread(operands);
  if (inside && call.out) quad(call.out + int64_t{row} * D + t.part * kSlice + lane * kQuad) = words;
  if (lane == 0 && t.part == 0 && call.lse) call.lse[row] = j.largest * kLog2 + logf(j.total);
}

// The end of an attention's items, of which a block takes those from blockIdx.x on, a grid apart.
__device__ inline int items_of_attention(int units, int blocks) { return max(units, blocks); }

// Where there is as a rule room for all keys and values. (Elsewhere the code alone would cost a percent.)
template <typename Rows>
constexpr bool kAttendsStaged = Rows::kMostRows > 8;

// here: what the phase is linked with (decode_phases.cuh): from() q, k and v, as groups in this order; to() the output.
template <typename Rows, typename Here>
__device__ inline void attend(const DecodeAttention& operands, const Here& here, AttentionMemory& m) {
  constexpr bool kFew = Rows::kExactly > 0;
  constexpr int kParts = value_parts(kFew), kSlice = D / kParts, kFloats = part_floats(kSlice);
  const auto units = [&] { return here.rows() * reread(operands).kv_heads * kParts; };
  const int warp = threadIdx.x / 32;
#pragma unroll 1
  for (int item = kFew ? block_of_grid() : blockIdx.x; item < items_of_attention(units(), here.blocks());
       item += here.blocks()) {
    Fetched<kWideOf<kSlice>> fetched;
    if constexpr (!kFew) {
      // Keys and values are copied to where sums of the phase before may still be read.
      fence_copies();
      block_sync();
    }
    // Its divisions take all warps as long as a trip to the second-level cache.
    if (!is_task(reread(here.sequences()).task, item, reread(operands))) {
      block_sync();
      if (threadIdx.x == 0)
        here.sequences().task = task_of<kParts>(item, units(), here.blocks(), operands, here.sequences());
      block_sync();
    }
    const auto all_came = [&] {
      here.copies_came();
      if (threadIdx.x == 0 && item == static_cast<int>(blockIdx.x)) here.let_weights_come();
    };
    int head = 0;  // found early only where there are registers for it
    {
      const Task& t = reread(here.sequences()).task;
      if (!kFew && threadIdx.x == 0) here.ask_for_rest();
      if (t.piece >= t.pieces) {
        if (!kFew) here.await(), here.await_copies(), block_sync(), all_came();
        continue;
      }
      if (kFew) fetch_keys(fetched, t, operands, t.begin + warp * kKeys);
      if (kAhead<kSlice>) fetch_values<kSlice>(fetched, t, operands, t.begin + warp * kKeys, 0);
      if (kAhead<kSlice>) head = head_of_warp(t, operands);
    }
    const HeadWeight weight(warp == kKeyWarp ? reread(operands).k_weight : reread(operands).q_weight);
    here.await();
    if (!kAhead<kSlice>) head = head_of_warp(reread(here.sequences()).task, reread(operands));
    take_heads<kSlice, !kFew>(reread(here.sequences()).task, operands, {here.from(), here.projected_apart()}, head,
                              here.sequences(), weight, m);
    if constexpr (!kFew) here.await_copies();
    if constexpr (kAttendsStaged<Rows>) forget_top(m);
    block_sync();
    if constexpr (!kFew) all_came();
    const Task& t = reread(here.sequences()).task;
    if constexpr (kAttendsStaged<Rows>) {
      if (is_staged(t, here.staged())) {
        attend_staged<Rows>(
            t, operands, here.staged(), here.to(), m,
            [&](auto& keys, int first) { fetch_keys(keys, t, operands, first); }, [&] { here.announce_by_one(); });
        continue;
      }
    }
    const auto before_leaving = [] {
      if constexpr (!kFew) block_sync();  // keys lie where parts will
    };
    if (warp < t.warps())
      attend_keys<kSlice>(t, fetched, operands, here, m, before_leaving);
    else
      before_leaving();
    block_sync();

    const int step = t.group * kFloats;
    if constexpr (kFew) {
      static_assert(Joined<kSlice, true>::kLanes == kPartLanes);
      if (warp < t.group) {
        Joined<kSlice, true> j(here.parts() + warp * kFloats, t.warps(), step);
        if (t.piece > 0) {
          j.post(here.to(), warp);
        } else {
          if (threadIdx.x == 0) here.announce();
          if (t.pieces > 1) j.collect_from(here.to(), warp, t.pieces, units());
          hand_on<Rows>(t, j, operands, here.to());
        }
      }
    } else {
      const auto left = [&] {
        return here.attention_parts() + int64_t{t.unit} * most_pieces(units(), here.blocks()) * step;
      };  // [piece][query]
      const bool complete = t.pieces == 1 || leave_piece<kSlice>(t, left(), here.tickets() + t.unit, here.parts(), m);
      if (complete) here.announce_by_one();
      if (complete && warp < t.group) {
        if (t.pieces == 1)
          hand_on<Rows>(t, Joined<kSlice, true>(here.parts() + warp * kFloats, t.warps(), step), operands, here.to());
        else
          hand_on<Rows>(t, Joined<kSlice, false>(left() + warp * kFloats, t.pieces, step), operands, here.to());
      }
    }
    if constexpr (kFew) block_sync();  // before another item takes the same memory
  }
}

}  // namespace q4::gpu::decode
