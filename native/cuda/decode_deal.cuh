// How the products of a decode chain are dealt out: to blocks by groups of rows of W, in a block to teams of warps by strips.
// On the host, once for a chain: as a block would find it out, it would take ten microseconds of every step.
#pragma once
#include <algorithm>

#include "cuda/decode_share.cuh"

namespace q4::gpu::decode {

// Block `block`'s of `blocks`, but for its lists.
template <typename Tiles>
Share share_of(const DecodeProduct& product, int rows, int block, int blocks) {
  const int pieces = product.splits, pair = product.paired ? 1 : 0, groups = (product.items + pair) >> pair;
  const int all = (product.width + Tiles::kTile - 1) / Tiles::kTile, all_strips = Tiles::strips(all);
  // Blocks of a piece are neighbours.
  int piece = 0, place = block, per_piece = blocks;
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
  const int tiles = std::min(all, all_strips * (piece + 1) / pieces * Tiles::kTeam) - first;
  int count = place < per_piece && place < groups ? ((groups - place + per_piece - 1) / per_piece) << pair : 0;
  // The last group of all may be half of one.
  if (count && (product.items & pair) && (groups - 1 - place) % per_piece == 0) --count;
  Share share{};
  share.piece = piece, share.first_tile = first, share.tiles = tiles, share.first_item = place, share.step = per_piece,
  share.count = count;
  share.strips = Tiles::strips(tiles), share.pair = pair, share.done = product.done;
  share.rounds = (count + share.round_items<Tiles>() - 1) / share.round_items<Tiles>();
  share.per_strip = ((1u << 20) + share.strips - 1) / std::max(1, share.strips);
  share.first_group = piece * rows * groups, share.row_groups = groups;
  return share;
}

// The strips of a round's items are dealt to the teams in order, in equal numbers; where they cannot be equal the first
// have one less: those finish the outputs.
struct Range {
  int begin, end;  // end > begin where the team has work
};
template <typename Tiles>
Range range_of(const Share& share, int round, int team) {
  constexpr int kTeams = Tiles::kTeams;
  const int total = share.items<Tiles>(round) * share.strips;
  if (total < kTeams) return {std::min(team, total), std::min(team + 1, total)};
  const int each = total / kTeams, with_less = kTeams - total % kTeams,
            begin = each * team + std::max(0, team - with_less);
  return {begin, begin + each + (team >= with_less)};
}
// The team that has strip n of a round.
template <typename Tiles>
int team_of_strip(int n, int total) {
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
Item item_of(const DecodeProduct& product, int i) {
  int matrix = 0;
  if (!product.paired)
    for (; matrix + 1 < product.matrices; ++matrix) {
      const int groups = (product.matrix[matrix].outputs + Tiles::kGroup - 1) / Tiles::kGroup;
      if (i < groups) break;
      i -= groups;
    }
  return {matrix, i};
}

// What each of all teams does, in lists one after the other, in `segments` from place `first` on.
template <typename Tiles>
void list_segments(Share& share, const DecodeProduct& product, int first, Segment* segments) {
  int next = first;
  for (int team = 0; team < Tiles::kTeams; ++team) {
    share.segments[team] = static_cast<uint16_t>(next);
    for (int round = 0; round < share.rounds; ++round) {
      const Range range = range_of<Tiles>(share, round, team);
      int at = range.begin;
      if (at == range.end) segments[next++] = {0, 0, 0, 0, 1, 0};
      while (at < range.end) {
        const int which = share.item_of_strip(at), strip = at - which * share.strips,
                  strips = std::min(share.strips - strip, range.end - at);
        const Item item = item_of<Tiles>(product, share.item(round * share.round_items<Tiles>() + which));
        at += strips;
        segments[next++] = {static_cast<uint8_t>(strip),
                            static_cast<uint8_t>(strips),
                            static_cast<uint8_t>(which),
                            static_cast<uint8_t>(item.matrix),
                            at == range.end,
                            item.group};
      }
    }
  }
  share.segments[Tiles::kTeams] = static_cast<uint16_t>(next);
}

// The share's items, in `done` from place share.done on.
template <typename Tiles>
void list_done(const Share& share, const DecodeProduct& product, Done* done) {
  for (int i = 0; i < share.count; ++i) {
    const int round = i / share.round_items<Tiles>(), which = i % share.round_items<Tiles>(),
              total = share.items<Tiles>(round) * share.strips;
    const int first = team_of_strip<Tiles>(which * share.strips, total),
              last = team_of_strip<Tiles>((which + 1) * share.strips - 1, total);
    const int item = share.item(i);
    done[share.done + i] = {static_cast<uint16_t>(place_of_sums<Tiles>(which, first, 0)),
                            static_cast<uint8_t>((last - first + 1) * Tiles::kTeam),
                            static_cast<uint8_t>(item_of<Tiles>(product, item).matrix), item >> share.pair};
  }
}

}  // namespace q4::gpu::decode
