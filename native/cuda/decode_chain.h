// A decode step as a chain of phases that one persistent kernel runs: decode_phases.cuh. One to sixteen rows (a token each).
#pragma once
#include <cuda.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <vector>

#include "core/tensor.h"
#include "cuda/check.h"
#include "cuda/rope_frequencies.h"

namespace q4::gpu {

struct bf16;

constexpr int kDecodeRows = 16;
constexpr int kDecodeQueries = 8;  // heads of queries that share a key head
// Up to this many rows no product's width is split over blocks: who computes an element of a sum computes all of it.
constexpr int kWholeRows = 2;

// y = rms_norm(x + branch) · weight, with what the separate ops would leave; any of the results may be null.
// In the first phase of a chain x and branch are read where they are (branch may be null). Later, branch is what the phase
// before left, and x the sum of the norm before: blocks keep it.
struct DecodeNorm {
  const bf16 *x, *branch;
  const float* weight;
  bf16 *branch_out, *sum, *normed_out;
  float* rstd;
  float eps;
  int width;
};

// x of a chain's first norm, read where it is looked up: rows `ids` of a table of the norm's width. x, which then is a result,
// may be null.
struct DecodeEmbedding {
  const void* table;  // null where x is in memory
  const int32_t* ids;
  bf16* x;
  DType dtype;  // of the table: f32, bf16 or f16
};

struct DecodeMatrix {
  const float* global;
  void* y;  // [rows, outputs] bf16 (f32 where the product is wide); may be null where a phase follows
  int outputs;
  int first_group;  // of outputs, of all matrices of the product; set when the chain is launched
};

// How a product's results go to the next phase (decode_exchange.cuh).
enum class HandsOn : uint8_t { nothing, sums, halves, rows };

// y_m = x·W_mᵀ for up to three matrices of one width. paired: matrices 0 and 1 are gate and up, and
// activated = silu(gate)·up. x is what the phase before left, the results go to the next phase too.
struct DecodeProduct {
  DecodeMatrix matrix[3];
  bf16* activated;
  int matrices, width, items;  // items: groups of rows of W
  int maps;                    // the first of the chain's; a pair has one
  int splits;       // pieces of the width, whose sums the next phase adds: a sum or a join, or, of two, an attention
  int most_strips;  // that a block has of such a product (decode_share.cuh)
  bool paired, wide_output;
  bool swapped;  // of a pair, matrix 0 is up
  bool adds;     // y is the branch of the next phase's norm, and this phase computes its sum
  // Set when the chain is launched.
  int shape;           // products of a chain that are shared out alike have the same
  int done, segments;  // where the lists of the shape begin
  HandsOn hands_on;
  bool leaves;  // results in memory too
};

// One new token a sequence: after a product whose matrices are q [heads·D], k and v [kv_heads·D], before norm and RoPE;
// caches [B·S, kv_heads·D]. D is 128, heads / kv_heads ≤ kDecodeQueries.
struct DecodeAttention {
  const float *q_weight, *k_weight;
  bf16 *k_cache, *v_cache;
  // What the separate ops would leave; any may be null.
  bf16 *q_out, *k_out, *v_out, *q_rotated, *k_rotated, *out;
  float *q_rstd, *k_rstd, *lse;
  float q_eps, k_eps, scale;
  int16_t heads, kv_heads;
  int keys;
  int maps;  // of the chain's
};

// Every row's next token, chosen greedily from the logits that the product before left (core/backend.h, sample), and what is
// counted up before that: x[i] = min(x[i] + by, max). The last phase of a chain.
struct DecodeChoice {
  const float *logits, *sampling;  // [rows, vocabulary], [rows, 8]
  uint8_t* seen;
  int32_t *ids, *counted;  // [rows]; counted may be null
  int vocabulary, by, max;
};

// Where, in the host's memory, a choice tells its tokens too: of every row {id, number}, of which number says that id is there.
// to may be null.
struct DecodeTold {
  uint2* to;
  uint32_t number;
};

enum class PhaseKind : int { product, sum, attention, join, choice };

struct alignas(16) DecodePhase {
  PhaseKind kind;
  int arrivals;     // how many blocks will leave something; set when the chain is launched
  DecodeNorm norm;  // of a sum (without weight: x alone); of a join, branch_out and width; of a product, that of its x
  union {
    DecodeProduct product;
    DecodeAttention attention;
    DecodeChoice choice;
  };
};

// Of a chain: phases at most; shapes of products, and groups of rows that a block may have of one product, and of one of each
// shape, which shared memory holds lists of.
constexpr int kChainPhases = 512, kChainShapes = 8, kProductItems = 256, kChainItems = kProductItems + 128;
// Blocks that have come to the first phase, and that have ended; the last tag given out; of every phase, blocks that have
// left something. Zero between kernels, but for the tag.
constexpr int kChainCounters = 3 + kChainPhases;

// What phases hand on (decode_exchange.cuh). A slot is written again eight phases later, of few rows three, when, through
// what blocks waited for in between, all have read it. Its first part holds pieces with tags and nothing else; of few rows
// there are several copies, so that not all blocks ask the same part of the second-level cache. The others hold rows, and
// numbers.
constexpr int kExchangeSlots = 8, kExchangeCopies = 2;
// Of more rows places are cleared so many phases ahead; among that many a chain has a sum (decode_exchange.cuh, clear_rows).
constexpr int kClearedAhead = kExchangeSlots / 2;
// Of few rows, tags of x have no more than so many values; what is left of a phase so long ago must be cleared before.
constexpr int kShortTags = 1 << 15;
constexpr int64_t kTaggedBytes = int64_t{7} << 20, kRowsBytes = int64_t{4} << 20, kNumbersBytes = int64_t{1} << 20;
constexpr int64_t kExchangeSlotBytes = kTaggedBytes + kRowsBytes + kNumbersBytes,
                  kExchangeBytes = kExchangeSlots * kExchangeSlotBytes;

// How the copy engine finds tiles of a matrix, or of a pair; or, of an attention of more than kWholeRows rows, keys and
// values.
struct DecodeMaps {
  CUtensorMap codes, scales;
};

// A product's weights, as the warps see it that have them brought.
struct DecodeWeights {
  int32_t maps;
  uint8_t shape;
  bool paired;
  bool held;  // of more than eight rows, after an attention: until that has its queries (decode_weights.cuh)
};

// What the kernel is told. Maps, phases, weights and lists lie in device memory (decode_script).
struct DecodeChain {
  const DecodeMaps* maps;
  const DecodePhase* phase;
  const DecodeWeights* weights;
  const char* lists;  // of every block, what it has of the products (decode_layout.cuh)
  int phases, products, rows;
  int linked;  // phases, without a choice, which takes nothing from the exchange
  DecodeEmbedding embedding;
  bool overlaps;  // is set up while the kernel before may still run: what it reads then was there before that
  // Of all attentions in the chain.
  Frequencies frequencies;
  const int32_t *positions, *past, *attend_from;  // [rows]; attend_from may be null
  char* exchange;                                 // kExchangeBytes, zeros in the beginning, used for nothing else
  uint32_t* counters;                             // kChainCounters
  DecodeTold told;                                // another in every launch
  // Of more than kWholeRows rows. Tickets: one a sequence and key head, zero between kernels. Parts of a softmax,
  // kDecodeQueries a block: a maximum, a sum and D values, 132 floats.
  uint32_t* tickets;
  float* attention_parts;
};

// A chain while phases are added to it, on the host.
struct DecodePlan {
  std::vector<DecodeMaps> maps;
  std::vector<DecodePhase> phases;
  DecodeChain chain{};
  // Of the products' shapes, the first phases; set when the chain is launched.
  std::vector<int> first_of_shape;
};
// Blocks at most, and bytes of the lists of each.
constexpr int kDecodeBlocks = 192, kListBytes = 12 << 10;
// What the plan's maps, phases, weights and lists take in device memory, at most.
constexpr int64_t kScriptBytes =
    kChainPhases * (sizeof(DecodePhase) + 3 * sizeof(DecodeMaps) + sizeof(DecodeWeights)) + kDecodeBlocks * kListBytes;

// What one device allows; asked for once.
struct DecodeMachine {
  int processors, shared_bytes, capability;
};

// Of a matrix, or of a pair, the second at higher addresses.
DecodeMaps decode_maps(const Tensor& weight, const Tensor& second);
DecodeMaps decode_maps_of_cache(const Tensor& keys, const Tensor& values);
// Groups of rows that the matrices of a product have.
int decode_items(const DecodeProduct& product);
// In how many pieces the width of a matrix is split, and how many strips a block then has at most, where that is more than one.
struct DecodeSplit {
  int splits = 1, most_strips = 0;
};
// As is best.
DecodeSplit decode_split(int rows, int width, int outputs, const DecodeMachine& machine);
// For what an attention takes: in two, where the slowest block has no more strips then.
DecodeSplit decode_halves(int rows, int width, int outputs, const DecodeMachine& machine);
// Whether a product of this shape, split in this way, can be a phase (outputs: of all matrices).
bool decode_fits(int rows, int width, int outputs, const DecodeSplit& split, const DecodeMachine& machine);
// Whether the plan has room for so many more phases, of which one is a product.
bool decode_has_room(DecodePlan& plan, int phases, const DecodeMachine& machine);
// Whether two matrices can be a pair.
bool decode_pair_fits(const Tensor& first, const Tensor& second);
// Whether the next phase can take what the product leaves.
bool decode_hands_on(int rows, const DecodeProduct& product);

// What the kernel reads from device memory, if that lies at `place`; completes the plan.
std::vector<char> decode_script(DecodePlan& plan, const char* place, const DecodeMachine& machine);
// Once a script is there, before any chain goes by it: announces so many maps to all multiprocessors.
void decode_announce(const DecodeMaps* maps, int count, const DecodeMachine& machine, cudaStream_t stream);
// Launches a chain, which may be done again and again; the plan is then no longer needed.
struct DecodeLaunch {
  std::function<void(cudaStream_t, const DecodeTold&)> launch;
  const int32_t* ids = nullptr;  // [rows] what it ends in choosing, if it does
  int rows = 0;
};
DecodeLaunch decode_launch(DecodePlan& plan, const DecodeMachine& machine);

}  // namespace q4::gpu
