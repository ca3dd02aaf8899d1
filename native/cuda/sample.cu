// Sampling one token a row. Probabilities are held as fixed-point integers, whose sums do not depend on the order, so that
// counting and cutting can be spread over threads. The survivors of top-k, top-p and min-p are each a prefix of the order
// "falling logit, ties by id". A histogram over logits, made once by many blocks, says in which bucket a prefix ends; that
// bucket alone is sorted. A bucket too full for that (thousands of equal logits) is searched by the logits' bits instead.
// (The greedy choice of a decode step is its chain's last phase: decode_choice.cuh.)
#include "core/error.h"
#include "core/philox.h"
#include "cuda/cuda_backend.h"
#include "cuda/mma.cuh"
#include "cuda/sampling.cuh"

namespace q4::gpu {
namespace {

using namespace sampling;

constexpr int kThreads = 1024, kSpreadThreads = 256;
constexpr int kBuckets = 1024;   // of the search by bits
constexpr int kStrips = 4096;    // of the histogram, even in (largest − logit) / temperature up to kReach
constexpr float kReach = 28.0f;  // exp(−28) · 2^40 < 1: what lies beyond weighs nothing
constexpr int kSorted = 2048;    // tokens of one bucket that are sorted in shared memory
constexpr int kHeld = 512;       // of them that are held at most, with all before them, for later cuts
constexpr int kAhead = 3;        // times four logits that every thread has asked for
// exp(x − max) in units of 2^-40: the sum of 2^18 of them fits 64 bits with room to spare.
constexpr double kOne = 1099511627776.0;

// A sequence's logits and how they are sampled.
struct Row {
  Logits logits;
  int vocabulary;
  float temperature, top_k, top_p, min_p;
  // Of its logits, once it is known.
  float largest = 0;
  int largest_id = 0;

  // sampling: eight numbers a row (core/backend.h).
  __device__ Row(const float* all, const float* sampling, const uint8_t* seen, int b, int tokens)
      : logits(all, sampling, seen, b, tokens),
        vocabulary(tokens),
        temperature(sampling[b * 8]),
        top_k(sampling[b * 8 + 1]),
        top_p(sampling[b * 8 + 2]),
        min_p(sampling[b * 8 + 3]) {}
  __device__ void set_best(Best best) { largest = logit_of(best.key), largest_id = best.id; }
  __device__ bool draws() const { return temperature > 0 && !isinf(largest); }
  // exp((logit − largest) / temperature), in units of 2^-40.
  __device__ uint64_t mass(float x) const {
    return static_cast<uint64_t>(exp((double{x} - largest) / temperature) * kOne);
  }
  // Never falls as the logit falls: the subtraction and the product round monotonically.
  __device__ int strip(float x) const {
    return static_cast<int>(fminf((largest - x) * (kStrips / kReach / temperature), kStrips - 1.0f));
  }
};

// Of all threads of a block.
__device__ Best block_best(Best mine, Best (&shared)[32]) {
  mine = warp_best(mine);
  __syncthreads();
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = mine;
  __syncthreads();
  mine = shared[0];
  for (int w = 1; w < static_cast<int>(blockDim.x / 32); ++w) mine = better(mine, shared[w]);
  return mine;
}
__device__ Best best_of(const Best* candidates, int count, int vocabulary, Best (&shared)[32]) {
  Best best = no_best(vocabulary);
  for (int i = threadIdx.x; i < count; i += blockDim.x) best = better(best, candidates[i]);
  return block_best(best, shared);
}

// Tokens of like logits: what they weigh, and how many they are.
struct Strip {
  unsigned long long mass;
  unsigned long long count;
};
__device__ void count_token(const Row& row, Strip* strips, float x) {
  const int strip = row.strip(x);
  if (strip == kStrips - 1) return;
  atomicAdd(&strips[strip].mass, static_cast<unsigned long long>(row.mass(x)));
  atomicAdd(&strips[strip].count, 1ull);
}

// A position in the order: every token whose (key, id) is at or below it, how many they are and what they weigh.
struct Prefix {
  uint32_t key;
  int id;
  uint64_t count, mass;
};

// What choosing needs of shared memory.
struct Scratch {
  Best best[32];
  unsigned long long total;
  uint64_t warp_count[32], warp_mass[32];
  // The search by bits.
  unsigned long long count[kBuckets], mass[kBuckets];
  uint32_t prefix;
  uint64_t count_below, mass_below;
  int found;
  // The bucket that is sorted, or, up to bucket `held`, all; held: -1 where there are not all of any.
  int strip, tokens, held;
  uint64_t count_before, mass_before, count_upto;
  uint32_t key[kSorted];
  int id[kSorted];
  uint64_t token_mass[kSorted];
  Prefix result;
  float4 ahead[kAhead][kThreads];  // logits on their way
};

// body(i, logit) of every token, by all threads. As many as shared memory holds are on their way, each to the thread that asked
// for it: a block is alone with its row, and would wait for every trip to the second-level cache.
template <typename Body>
__device__ void for_each_token(const Row& row, Scratch& s, Body&& body) {
  constexpr int kQuad = 4;
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1200
  constexpr int kUnrolled = 2;  // more take too many registers there
#else
  constexpr int kUnrolled = kQuad;
#endif
  const Logits& logits = row.logits;
  const int quads = logits.in_quads() ? row.vocabulary / kQuad : 0;
  const auto bring = [&](int n) {
    const int quad = n * kThreads + static_cast<int>(threadIdx.x);
    if (quad < quads) copy_async(shared_address(&s.ahead[n % kAhead][threadIdx.x]), logits.from + quad * kQuad, true);
    copy_commit();
  };
#pragma unroll
  for (int n = 0; n < kAhead - 1; ++n) bring(n);
#pragma unroll 1
  for (int n = 0; n * kThreads + static_cast<int>(threadIdx.x) < quads; ++n) {
    bring(n + kAhead - 1);
    copy_wait<kAhead - 1>();
    const float4 x = s.ahead[n % kAhead][threadIdx.x];
    const float four[kQuad] = {x.x, x.y, x.z, x.w};
#pragma unroll kUnrolled
    for (int e = 0; e < kQuad; ++e) {
      const int i = (n * kThreads + static_cast<int>(threadIdx.x)) * kQuad + e;
      body(i, logits.penalised(four[e], i));
    }
  }
#pragma unroll 1
  for (int i = quads * kQuad + threadIdx.x; i < row.vocabulary; i += kThreads) body(i, logits[i]);
}

// Where a prefix ends that holds at least `target` tokens, or, by mass, weighs more than `target` (inclusive: at least that).
struct Target {
  bool by_mass, inclusive;
  uint64_t target;
  __device__ bool reached(uint64_t count, uint64_t mass) const {
    return !by_mass ? count >= target : inclusive ? mass >= target : mass > target;
  }
};

// The shortest prefix of row's order, within `limit`, that reaches the target; the limit itself if there is none.
__device__ Prefix descend(const Row& row, const Prefix& limit, const Target& to, Scratch& s) {
  if (!to.reached(limit.count, limit.mass)) return limit;
  uint32_t prefix = 0;
  uint64_t count_below = 0, mass_below = 0;
  int above = 32;
#pragma unroll 1
  while (above > 0) {  // ten bits of the key at a time, from the top; two the last time
    const int shift = max(above - 10, 0), buckets = 1 << (above - shift);
    __syncthreads();
    for (int i = threadIdx.x; i < buckets; i += kThreads) s.count[i] = 0, s.mass[i] = 0;
    __syncthreads();
    for_each_token(row, s, [&](int i, float x) {
      const uint32_t key = key_of(x);
      if (above < 32 && key >> above != prefix) return;
      if (key > limit.key || (key == limit.key && i > limit.id)) return;
      const int bucket = static_cast<int>(key >> shift & static_cast<uint32_t>(buckets - 1));
      atomicAdd(&s.count[bucket], 1ull);
      if (to.by_mass) atomicAdd(&s.mass[bucket], static_cast<unsigned long long>(row.mass(x)));
    });
    __syncthreads();
    if (threadIdx.x == 0) {
      int bucket = 0;
      while (bucket < buckets - 1 && !to.reached(count_below + s.count[bucket], mass_below + s.mass[bucket])) {
        count_below += s.count[bucket];
        mass_below += s.mass[bucket];
        ++bucket;
      }
      s.prefix = prefix << (above - shift) | static_cast<uint32_t>(bucket);
      s.count_below = count_below, s.mass_below = mass_below;
    }
    __syncthreads();
    prefix = s.prefix, count_below = s.count_below, mass_below = s.mass_below;
    above = shift;
  }
  // Tokens with this very key have one mass; the id decides how many of them are needed.
  const uint64_t same_mass = row.mass(logit_of(prefix));
  uint64_t needed = 1;
  if (!to.by_mass)
    needed = to.target - count_below;
  else if (same_mass)
    needed = (to.target - mass_below) / same_mass + (to.inclusive && (to.target - mass_below) % same_mass == 0 ? 0 : 1);
  if (needed < 1) needed = 1;
  // The needed-th token of that key in the order of ids: warps take turns over stretches, so one warp counts alone.
  __syncthreads();
  if (threadIdx.x < 32) {
    uint64_t seen_so_far = 0;
    int id = -1;
#pragma unroll 1
    for (int first = 0; first < row.vocabulary && id < 0; first += 32) {
      const int i = first + static_cast<int>(threadIdx.x);
      const uint32_t vote = __ballot_sync(0xffffffffu, i < row.vocabulary && key_of(row.logits[i]) == prefix);
      const int here = __popc(vote);
      if (seen_so_far + static_cast<uint64_t>(here) >= needed) {
        uint32_t left = vote;
        for (uint64_t skip = needed - seen_so_far; skip > 1; --skip) left &= left - 1;
        id = first + __ffs(static_cast<int>(left)) - 1;
      }
      seen_so_far += static_cast<uint64_t>(here);
    }
    if (threadIdx.x == 0) s.found = id;
  }
  __syncthreads();
  const Prefix result{prefix, s.found, count_below + needed, mass_below + needed * same_mass};
  __syncthreads();
  return result;
}

// The sums of the numbers of all threads before this one, by all threads.
__device__ void add_up_before(uint64_t& count, uint64_t& mass, Scratch& s) {
  const uint64_t own_count = count, own_mass = mass;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
  for (int offset = 1; offset < 32; offset *= 2) {
    const uint64_t c = __shfl_up_sync(0xffffffffu, count, offset), m = __shfl_up_sync(0xffffffffu, mass, offset);
    if (lane >= offset) count += c, mass += m;
  }
  if (lane == 31) s.warp_count[warp] = count, s.warp_mass[warp] = mass;
  __syncthreads();
  count -= own_count, mass -= own_mass;
#pragma unroll 1
  for (int w = 0; w < warp; ++w) count += s.warp_count[w], mass += s.warp_mass[w];
}

// As descend(), by the histogram: `descend` finishes where a bucket is too full to be sorted.
__device__ Prefix cut(const Row& row, const Prefix& limit, const Target& to, const Strip* strips, Scratch& s) {
  if (!to.reached(limit.count, limit.mass)) return limit;
  __syncthreads();
  if (threadIdx.x == 0) s.strip = kStrips;
  // The strip where it is reached: each thread has some neighbouring ones. (The first may be reached before it begins.)
  constexpr int kEach = kStrips / kThreads;
  Strip own[kEach];
  uint64_t counts = 0, masses = 0;
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    own[i] = strips[threadIdx.x * kEach + i];
    counts += own[i].count, masses += own[i].mass;
  }
  add_up_before(counts, masses, s);
  if (threadIdx.x == 0 || !to.reached(counts, masses)) {
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      const bool before = i > 0 && to.reached(counts, masses);
      if (!before && to.reached(counts + own[i].count, masses + own[i].mass))
        s.strip = static_cast<int>(threadIdx.x) * kEach + i, s.count_before = counts, s.mass_before = masses,
        s.count_upto = counts + own[i].count;
      counts += own[i].count, masses += own[i].mass;
    }
  }
  __syncthreads();
  // A count that ends among tokens that weigh nothing cuts off nothing that could be drawn.
  if (s.strip == kStrips) return limit;
  // A row is read once where few tokens are left by the first cut.
  const int last = s.strip;
  if (last > s.held) {
    const bool hold = s.count_upto <= kHeld;
    __syncthreads();
    if (threadIdx.x == 0) s.tokens = 0, s.held = hold ? last : -1;
    __syncthreads();
    const int first = hold ? 0 : last;
    for_each_token(row, s, [&](int i, float x) {
      const int strip = row.strip(x);
      if (strip < first || strip > last) return;
      const int place = atomicAdd(&s.tokens, 1);
      if (place < kSorted) s.key[place] = key_of(x), s.id[place] = i, s.token_mass[place] = row.mass(x);
    });
  }
  __syncthreads();
  const uint64_t count_before = s.held < 0 ? s.count_before : 0, mass_before = s.held < 0 ? s.mass_before : 0;
  const int found = s.tokens;
  if (found > kSorted) return descend(row, limit, to, s);
  // What stands before a token is found by looking at all: it does not depend on the places that the atomics gave.
  for (int i = threadIdx.x; i < found; i += kThreads) {
    int rank = 0;
    uint64_t mass = mass_before;
#pragma unroll 4
    for (int j = 0; j < found; ++j)
      if (s.key[j] < s.key[i] || (s.key[j] == s.key[i] && s.id[j] < s.id[i])) ++rank, mass += s.token_mass[j];
    const uint64_t count = count_before + static_cast<uint64_t>(rank), upto = mass + s.token_mass[i];
    if ((rank == 0 || !to.reached(count, mass)) && (rank == found - 1 || to.reached(count + 1, upto)))
      s.result = {s.key[i], s.id[i], count + 1, upto};
  }
  __syncthreads();
  return s.result;
}

// The sum of all threads' numbers.
__device__ uint64_t block_sum(uint64_t mine, Scratch& s) {
  __syncthreads();
  if (threadIdx.x == 0) s.total = 0;
  __syncthreads();
  atomicAdd(&s.total, static_cast<unsigned long long>(mine));
  __syncthreads();
  return s.total;
}

// The cuts and the draw, of a row that draws(), all of whose tokens are counted. u: uniform in [0, 1).
__device__ int draw(const Row& row, float u, const Strip* strips, Scratch& s) {
  // Everything, as the first limit.
  if (threadIdx.x == 0) s.held = -1;
  uint64_t mine = 0;
  for (int i = threadIdx.x; i < kStrips; i += kThreads) mine += strips[i].mass;
  Prefix limit{0xffffffffu, row.vocabulary, static_cast<uint64_t>(row.vocabulary), block_sum(mine, s)};
  if (row.top_k >= 1 && row.top_k < static_cast<float>(row.vocabulary))
    limit = cut(row, limit, {false, true, static_cast<uint64_t>(row.top_k)}, strips, s);
  if (row.top_p < 1)
    limit =
        cut(row, limit, {true, true, static_cast<uint64_t>(fmaxf(row.top_p, 0.0f) * static_cast<double>(limit.mass))},
            strips, s);
  if (row.min_p > 0) {
    const uint64_t least = static_cast<uint64_t>(row.min_p * kOne);
    mine = 0;
    for_each_token(row, s, [&](int i, float x) {
      const uint32_t key = key_of(x);
      const uint64_t mass = row.mass(x);
      if ((key < limit.key || (key == limit.key && i <= limit.id)) && (mass >= least || i == row.largest_id))
        mine += mass;
    });
    // The survivors are a prefix; a draw below their mass never leaves it.
    limit.mass = block_sum(mine, s);
  }
  return cut(row, limit, {true, false, static_cast<uint64_t>(static_cast<double>(u) * static_cast<double>(limit.mass))},
             strips, s)
      .id;
}

// candidates[b, block] = the best of a stretch of row b, and an empty histogram. Grid: stretches × B.
__global__ void best_kernel(const float* logits, const float* sampling, const uint8_t* seen, Best* candidates,
                            Strip* strips, int vocabulary, bool greedy) {
  begin();
  __shared__ Best shared[32];
  const int b = blockIdx.y;
  const Row row(logits, sampling, seen, b, vocabulary);
  Best best = no_best(vocabulary);
  for (int i = blockIdx.x * kSpreadThreads + threadIdx.x; i < vocabulary; i += gridDim.x * kSpreadThreads)
    best = better(best, Best{key_of(row.logits[i]), i});
  if (!greedy && row.temperature > 0)
    for (int i = blockIdx.x * kSpreadThreads + threadIdx.x; i < kStrips; i += gridDim.x * kSpreadThreads)
      strips[b * kStrips + i] = {0, 0};
  best = block_best(best, shared);
  if (threadIdx.x == 0) candidates[b * gridDim.x + blockIdx.x] = best;
}

// strips[b] += the tokens of a stretch of row b. Grid: stretches × B.
__global__ void histogram_kernel(const float* logits, const float* sampling, const uint8_t* seen,
                                 const Best* candidates, Strip* strips, int vocabulary) {
  begin();
  __shared__ Best shared[32];
  const int b = blockIdx.y;
  Row row(logits, sampling, seen, b, vocabulary);
  if (!(row.temperature > 0)) return;
  row.set_best(best_of(candidates + b * gridDim.x, static_cast<int>(gridDim.x), vocabulary, shared));
  if (!row.draws()) return;
  for (int i = blockIdx.x * kSpreadThreads + threadIdx.x; i < vocabulary; i += gridDim.x * kSpreadThreads)
    count_token(row, strips + b * kStrips, row.logits[i]);
}

// One block a row: the greedy choice, or the draw. `seen` is read before the choice is marked in it.
__global__ void __launch_bounds__(kThreads)
    choose_kernel(const float* logits, const float* sampling, const uint32_t* rng, const int32_t* past, uint8_t* seen,
                  const Best* candidates, const Strip* strips, int stretches, int32_t* ids, int vocabulary,
                  bool greedy) {
  begin();
  extern __shared__ __align__(16) uint8_t memory[];
  Scratch& scratch = *reinterpret_cast<Scratch*>(memory);
  const int b = blockIdx.x;
  Row row(logits, sampling, seen, b, vocabulary);
  const Best best = best_of(candidates + b * stretches, stretches, vocabulary, scratch.best);
  row.set_best(best);
  int id = best.id;
  if (!greedy && row.draws()) {
    const float u =
        philox_sampling_uniform(rng[b * 2], rng[b * 2 + 1], static_cast<uint32_t>(b), static_cast<uint32_t>(past[b]));
    id = draw(row, u, strips + b * kStrips, scratch);
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    ids[b] = id;
    seen[int64_t{b} * vocabulary + id] = 1;
  }
}

}  // namespace

void CudaBackend::sample(const Tensor& logits, const Tensor& sampling, const Tensor& rng, const Tensor& past,
                         bool greedy, const Tensor& seen, const Tensor& ids, const Tensor&) {
  if (greedy && choose_in_chain(logits, sampling, seen, ids)) return;
  const int rows = static_cast<int>(logits.rows()), vocabulary = static_cast<int>(logits.cols());
  const unsigned stretches = std::min(blocks_for(vocabulary, kSpreadThreads * 4), 256u);
  Best* candidates = reinterpret_cast<Best*>(partials());
  Strip* strips = reinterpret_cast<Strip*>(candidates + 256 * rows);
  if (static_cast<int64_t>(rows) * (256 * sizeof(Best) + kStrips * sizeof(Strip)) > Workspace::kPartialBytes)
    throw Error("Q4510", "sample: too many rows at a time");
  const Launch spread{{stretches, static_cast<unsigned>(rows)}, kSpreadThreads, stream(), 0, overlap()};
  launch(spread, best_kernel, logits.f32(), sampling.f32(), seen.as<uint8_t>(), candidates, strips, vocabulary, greedy);
  if (!greedy)
    launch(spread, histogram_kernel, logits.f32(), sampling.f32(), seen.as<uint8_t>(), candidates, strips, vocabulary);
  static_assert(sizeof(Scratch) <= 99 << 10);  // what 8.6, 8.9 and 12.x have
  allow_shared(choose_kernel, sizeof(Scratch));
  launch({static_cast<unsigned>(rows), kThreads, stream(), sizeof(Scratch), overlap()}, choose_kernel, logits.f32(),
         sampling.f32(), rng.as<uint32_t>(), past.i32(), seen.as<uint8_t>(), candidates, strips,
         static_cast<int>(stretches), ids.i32(), vocabulary, greedy);
}

}  // namespace q4::gpu
