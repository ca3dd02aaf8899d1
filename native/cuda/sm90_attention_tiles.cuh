// How Hopper's attention kernels hand out tiles of 128 queries: each block takes one after another, so that the copies of
// the next run while this one is multiplied, and the order in which blocks come to them never shows in the result.
#pragma once
#include <algorithm>

#include "cuda/attention.h"
#include "cuda/sm90.cuh"

namespace q4::gpu::sm90 {

constexpr int kHeadDim = 128, kTileQueries = 128;
constexpr int kTileHalf = 128 * 128;  // bytes of a tile [128][64]

// Tiles of `section` heads (of all sequences) come together, so that their keys and values stay in the L2 cache; among
// them, the longest first.
struct TileOrder {
  uint32_t* ticket;  // zero between kernels
  int section, tiles, items;
};

inline TileOrder tile_order(const AttentionCall& call, uint32_t* ticket) {
  constexpr int64_t kSectionBytes = int64_t{16} << 20;  // of keys and values
  const int64_t heads = std::max<int64_t>(1, kSectionBytes / (int64_t{call.keys} * kHeadDim * 4));
  const int section =
      static_cast<int>(std::min<int64_t>(heads * (call.heads / call.kv_heads), int64_t{call.batch} * call.heads));
  const int tiles = static_cast<int>(blocks_for(call.steps, kTileQueries));
  return {ticket, section, tiles, tiles * call.heads * call.batch};
}

struct TileItem {
  int head, b, first_query;
  int past, first_step, steps;  // of keys; steps < 0: no more work
  int highest;                  // attend_from of the queries
};

#if defined(Q4_SM90)

// By a whole warp. Steps of kKeys keys that the tile's queries see.
template <int kKeys>
__device__ inline TileItem tile_item(const AttentionCall& call, const TileOrder& order, int index) {
  TileItem item;
  const int pairs = call.batch * call.heads, per_section = order.section * order.tiles, section = index / per_section,
            rest = index - section * per_section, width = min(order.section, pairs - section * order.section),
            pair = section * order.section + rest % width;
  item.head = pair % call.heads, item.b = pair / call.heads;
  item.first_query = (order.tiles - 1 - rest / width) * kTileQueries;
  item.past = call.past ? call.past[item.b] : 0;
  item.first_step = 0, item.highest = 0;
  if (call.attend_from) {
    int lowest = call.keys, highest = 0;
#pragma unroll
    for (int r = 0; r < kTileQueries / 32; ++r) {
      const int query = item.first_query + r * 32 + static_cast<int>(threadIdx.x % 32);
      if (query >= call.steps) continue;
      const int from = max(0, call.attend_from[int64_t{item.b} * call.steps + query]);
      lowest = min(lowest, from), highest = max(highest, from);
    }
    item.first_step = __reduce_min_sync(0xffffffffu, lowest) / kKeys;
    item.highest = __reduce_max_sync(0xffffffffu, highest);
  }
  const int end = min(call.keys, item.past + min(call.steps, item.first_query + kTileQueries));
  item.steps = max(0, (end + kKeys - 1) / kKeys - item.first_step);
  return item;
}

// By the whole copying warp: body(item) for one tile after another, and once with steps < 0 at the end.
template <int kKeys, typename Body>
__device__ inline void for_each_tile(const AttentionCall& call, const TileOrder& order, Body&& body) {
  int index = static_cast<int>(blockIdx.x);
  while (index < order.items) {
    int next = 0;
    if (threadIdx.x % 32 == 0) {
      next = static_cast<int>(atomicAdd(order.ticket, 1u));
      if (next == order.items - 1) *order.ticket = 0;  // the last to ask
    }
    body(tile_item<kKeys>(call, order, index));
    __syncwarp();
    index = static_cast<int>(gridDim.x) + __shfl_sync(0xffffffffu, next, 0);
  }
  TileItem none{};
  none.steps = -1;
  body(none);
}

// From the copying warp to those that compute: seen when the copies of the tile have completed.
__device__ inline void hand_out(TileItem& shared, const TileItem& item) { shared = item; }
// The tile that was handed out, from one lane: what depends on it is then known to be the same in the warp, and the
// operands of products need no detour through registers of lanes.
__device__ inline TileItem read_tile(const TileItem& shared) {
  const auto same = [](int x) { return __shfl_sync(0xffffffffu, x, 0); };
  return {same(shared.head),       same(shared.b),     same(shared.first_query), same(shared.past),
          same(shared.first_step), same(shared.steps), same(shared.highest)};
}

// Fragments (A of m16n8k16) of 16 rows of a tile [128][128], for eight k of 16.
__device__ inline void hold_rows(uint32_t (&held)[8][4], const uint8_t* tile, int first_row) {
  const int lane = threadIdx.x % 32, row = first_row + (lane & 15);
#pragma unroll
  for (int k = 0; k < 8; ++k)
    asm volatile(
        "ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
        : "=r"(held[k][0]), "=r"(held[k][1]), "=r"(held[k][2]), "=r"(held[k][3])
        : "r"(shared_address(tile) + k / 4 * kTileHalf + row * 128 + (((k % 4 * 2 + (lane >> 4)) ^ (row & 7)) * 16))
        : "memory");
}

// A warp's 16 rows of d[64, 128], row g times times[0] and row g + 8 times times[1], to `rows` of a tile [128][128] in
// shared memory and from there to the map's box of 16 rows.
__device__ inline void store_rows(const float (&d)[64], const float (&times)[2], uint8_t* rows, const CUtensorMap* map,
                                  int column, int row, int batch) {
  const int lane = threadIdx.x % 32, g = lane / 4, c = lane % 4;
  if (lane == 0) stores_wait();  // of the tile before
  __syncwarp();
#pragma unroll
  for (int half = 0; half < 2; ++half)
#pragma unroll
    for (int n = 0; n < 16; ++n)
      *reinterpret_cast<uint32_t*>(rows + n / 8 * kTileHalf + (g + half * 8) * 128 + ((n % 8) ^ g) * 16 + c * 4) =
          pack_bf16(d[n * 4 + half * 2] * times[half], d[n * 4 + half * 2 + 1] * times[half]);
  fence_copies();
  __syncwarp();
  if (lane != 0) return;
  store_box(map, rows, column, row, batch);
  store_box(map, rows + kTileHalf, column + 64, row, batch);
  stores_commit();
}

#endif

}  // namespace q4::gpu::sm90
