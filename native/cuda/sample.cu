// Sampling one token a row. Probabilities are held as fixed-point integers, whose sums do not depend on the order, so that
// counting and cutting can be spread over threads. The survivors of top-k, top-p and min-p are each a prefix of the order
// "falling logit, ties by id". A histogram over logits, made once by many blocks, says in which bucket a prefix ends; that
// bucket alone is sorted. A bucket too full for that (thousands of equal logits) is searched by the logits' bits instead.
#include "core/error.h"
#include "core/philox.h"
#include "cuda/cuda_backend.h"
#include "cuda/device.cuh"

namespace q4::gpu {
namespace {

constexpr int kThreads = 1024, kSpreadThreads = 256;
constexpr int kBuckets = 1024;   // of the search by bits
constexpr int kStrips = 4096;    // of the histogram, even in (largest − logit) / temperature up to kReach
constexpr float kReach = 28.0f;  // exp(−28) · 2^40 < 1: what lies beyond weighs nothing
constexpr int kSorted = 2048;    // tokens of one bucket that are sorted in shared memory
// exp(x − max) in units of 2^-40: the sum of 2^18 of them fits 64 bits with room to spare.
constexpr double kOne = 1099511627776.0;

// Larger logits have smaller keys: ascending keys are the order of falling logits. −0 and +0 are one value, NaN is −∞.
__device__ uint32_t key_of(float x) {
  if (x != x) x = -INFINITY;
  const uint32_t bits = __float_as_uint(x + 0.0f);
  return ~(bits & 0x80000000u ? ~bits : bits | 0x80000000u);
}

struct Best {
  uint32_t key;
  int id;
};
__device__ Best better(Best a, Best b) { return a.key < b.key || (a.key == b.key && a.id < b.id) ? a : b; }
__device__ Best block_best(Best mine, Best* shared) {
#pragma unroll
  for (int offset = 16; offset; offset /= 2) {
    const Best other{__shfl_xor_sync(0xffffffffu, mine.key, offset), __shfl_xor_sync(0xffffffffu, mine.id, offset)};
    mine = better(mine, other);
  }
  __syncthreads();
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = mine;
  __syncthreads();
  mine = shared[0];
  for (int w = 1; w < static_cast<int>(blockDim.x / 32); ++w) mine = better(mine, shared[w]);
  return mine;
}

// The logit with the repetition penalty.
__device__ float penalised(const float* logits, const uint8_t* seen, const float* sampling, int64_t at) {
  const float logit = logits[at], penalty = sampling[4];
  return !seen[at] ? logit : logit > 0 ? logit / penalty : logit * penalty;
}

struct Strip {
  unsigned long long mass;
  unsigned long long count;
};

// candidates[b, block] = the best of a stretch of row b, and an empty histogram. Grid: stretches × B.
__global__ void best_kernel(const float* logits, const float* sampling, const uint8_t* seen, Best* candidates,
                            Strip* strips, int vocabulary) {
  begin();
  __shared__ Best shared[32];
  const int b = blockIdx.y;
  Best best{0xffffffffu, vocabulary};
  for (int i = blockIdx.x * kSpreadThreads + threadIdx.x; i < vocabulary; i += gridDim.x * kSpreadThreads)
    best = better(best, Best{key_of(penalised(logits, seen, sampling + b * 8, int64_t{b} * vocabulary + i)), i});
  if (sampling[b * 8] > 0)
    for (int i = blockIdx.x * kSpreadThreads + threadIdx.x; i < kStrips; i += gridDim.x * kSpreadThreads)
      strips[b * kStrips + i] = {0, 0};
  best = block_best(best, shared);
  if (threadIdx.x == 0) candidates[b * gridDim.x + blockIdx.x] = best;
}

struct Row {
  const float *logits, *sampling;
  const uint8_t* seen;
  int vocabulary;
  float largest, temperature;
  __device__ uint32_t key(int i) const { return key_of(penalised(logits, seen, sampling, i)); }
  // exp((logit − largest) / temperature), in units of 2^-40.
  __device__ uint64_t mass(int i) const {
    float x = penalised(logits, seen, sampling, i);
    if (x != x) x = -INFINITY;
    return static_cast<uint64_t>(exp((double{x} - largest) / temperature) * kOne);
  }
  // Never falls as the logit falls: the subtraction and the product round monotonically.
  __device__ int strip(int i) const {
    float x = penalised(logits, seen, sampling, i);
    if (x != x) x = -INFINITY;
    return static_cast<int>(fminf((largest - x) * (kStrips / kReach / temperature), kStrips - 1.0f));
  }
};

__device__ Row row_of(const float* logits, const float* sampling, const uint8_t* seen, int b, int vocabulary,
                      int best) {
  const int64_t at = int64_t{b} * vocabulary;
  return {logits + at,
          sampling + b * 8,
          seen + at,
          vocabulary,
          penalised(logits + at, seen + at, sampling + b * 8, best),
          sampling[b * 8]};
}
__device__ bool draws(const Row& row) {
  return row.temperature > 0 && !isinf(row.largest) && row.largest == row.largest;
}

__device__ Best best_of(const Best* candidates, int count, int vocabulary, Best* shared) {
  Best best{0xffffffffu, vocabulary};
  for (int i = threadIdx.x; i < count; i += blockDim.x) best = better(best, candidates[i]);
  return block_best(best, shared);
}

// strips[b] += the tokens of a stretch of row b. Grid: stretches × B.
__global__ void histogram_kernel(const float* logits, const float* sampling, const uint8_t* seen,
                                 const Best* candidates, Strip* strips, int vocabulary) {
  begin();
  const int b = blockIdx.y;
  if (!(sampling[b * 8] > 0)) return;
  __shared__ Best shared[32];
  const Best best = best_of(candidates + b * gridDim.x, static_cast<int>(gridDim.x), vocabulary, shared);
  const Row row = row_of(logits, sampling, seen, b, vocabulary, best.id);
  if (!draws(row)) return;
  for (int i = blockIdx.x * kSpreadThreads + threadIdx.x; i < vocabulary; i += gridDim.x * kSpreadThreads) {
    const int strip = row.strip(i);
    if (strip == kStrips - 1) continue;
    atomicAdd(&strips[b * kStrips + strip].mass, static_cast<unsigned long long>(row.mass(i)));
    atomicAdd(&strips[b * kStrips + strip].count, 1ull);
  }
}

// A position in the order: every token whose (key, id) is at or below it, how many they are and what they weigh.
struct Prefix {
  uint32_t key;
  int id;
  uint64_t count, mass;
};

struct Tally {
  unsigned long long count[kBuckets], mass[kBuckets];
  uint32_t prefix;
  unsigned long long count_below, mass_below;
};

// The shortest prefix of row's order, within `limit`, that holds at least `count` tokens, or whose mass is above `mass`
// (use_mass; ≥ when inclusive). The limit itself if there is none.
__device__ Prefix descend(const Row& row, const Prefix& limit, bool use_mass, bool inclusive, uint64_t target,
                          Tally& tally) {
  const auto reached = [&](uint64_t count, uint64_t mass) {
    return !use_mass ? count >= target : inclusive ? mass >= target : mass > target;
  };
  if (!reached(limit.count, limit.mass)) return limit;
  uint32_t prefix = 0;
  uint64_t count_below = 0, mass_below = 0;
  int above = 32;
  while (above > 0) {  // ten bits of the key at a time, from the top; two the last time
    const int shift = max(above - 10, 0), buckets = 1 << (above - shift);
    __syncthreads();
    for (int i = threadIdx.x; i < buckets; i += kThreads) tally.count[i] = 0, tally.mass[i] = 0;
    __syncthreads();
    for (int i = threadIdx.x; i < row.vocabulary; i += kThreads) {
      const uint32_t key = row.key(i);
      if (above < 32 && key >> above != prefix) continue;
      if (key > limit.key || (key == limit.key && i > limit.id)) continue;
      const int bucket = static_cast<int>(key >> shift & static_cast<uint32_t>(buckets - 1));
      atomicAdd(&tally.count[bucket], 1ull);
      if (use_mass) atomicAdd(&tally.mass[bucket], static_cast<unsigned long long>(row.mass(i)));
    }
    __syncthreads();
    if (threadIdx.x == 0) {
      int bucket = 0;
      while (bucket < buckets - 1 && !reached(count_below + tally.count[bucket], mass_below + tally.mass[bucket])) {
        count_below += tally.count[bucket];
        mass_below += tally.mass[bucket];
        ++bucket;
      }
      tally.prefix = prefix << (above - shift) | static_cast<uint32_t>(bucket);
      tally.count_below = count_below, tally.mass_below = mass_below;
    }
    __syncthreads();
    prefix = tally.prefix, count_below = tally.count_below, mass_below = tally.mass_below;
    above = shift;
  }
  // Tokens with this very key have one mass; the id decides how many of them are needed.
  __shared__ int found;
  __shared__ unsigned long long same_mass;
  if (threadIdx.x == 0) found = -1, same_mass = 0;
  __syncthreads();
  for (int i = threadIdx.x; i < row.vocabulary; i += kThreads)
    if (row.key(i) == prefix && atomicCAS(&found, -1, i) == -1) same_mass = row.mass(i);
  __syncthreads();
  uint64_t needed = 1;
  if (!use_mass)
    needed = target - count_below;
  else if (same_mass)
    needed = (target - mass_below) / same_mass + (inclusive && (target - mass_below) % same_mass == 0 ? 0 : 1);
  if (needed < 1) needed = 1;
  // The needed-th token of that key in the order of ids: warps take turns over stretches, so one warp counts alone.
  __syncthreads();
  if (threadIdx.x < 32) {
    uint64_t seen_so_far = 0;
    int id = -1;
    for (int first = 0; first < row.vocabulary && id < 0; first += 32) {
      const int i = first + static_cast<int>(threadIdx.x);
      const uint32_t vote = __ballot_sync(0xffffffffu, i < row.vocabulary && row.key(i) == prefix);
      const int here = __popc(vote);
      if (seen_so_far + static_cast<uint64_t>(here) >= needed) {
        uint32_t left = vote;
        for (uint64_t skip = needed - seen_so_far; skip > 1; --skip) left &= left - 1;
        id = first + __ffs(static_cast<int>(left)) - 1;
      }
      seen_so_far += static_cast<uint64_t>(here);
    }
    if (threadIdx.x == 0) found = id;
  }
  __syncthreads();
  Prefix result{prefix, found, count_below + needed, mass_below + needed * same_mass};
  __syncthreads();
  return result;
}

struct Sorting {
  uint32_t key[kSorted];
  int id[kSorted];
  unsigned long long mass[kSorted];
  int count, strip, place;
  unsigned long long count_before, mass_before;
};

// As descend(), by the histogram: `descend` finishes where a bucket is too full to be sorted.
__device__ Prefix cut(const Row& row, const Prefix& limit, bool use_mass, bool inclusive, uint64_t target,
                      const Strip* strips, Sorting& sorting, Tally& tally) {
  const auto reached = [&](uint64_t count, uint64_t mass) {
    return !use_mass ? count >= target : inclusive ? mass >= target : mass > target;
  };
  if (!reached(limit.count, limit.mass)) return limit;
  __syncthreads();
  // Each thread adds up neighbouring strips; thread 0 walks the threads' sums, then the strips of one thread.
  constexpr int kEach = kStrips / kThreads;
  unsigned long long count = 0, mass = 0;
  for (int i = 0; i < kEach; ++i)
    count += strips[threadIdx.x * kEach + i].count, mass += strips[threadIdx.x * kEach + i].mass;
  tally.count[threadIdx.x] = count, tally.mass[threadIdx.x] = mass;
  if (threadIdx.x == 0) sorting.count = 0;
  __syncthreads();
  if (threadIdx.x == 0) {
    unsigned long long counts = 0, masses = 0;
    int at = 0;
    while (at < kThreads && !reached(counts + tally.count[at], masses + tally.mass[at]))
      counts += tally.count[at], masses += tally.mass[at], ++at;
    int strip = at * kEach;
    if (at < kThreads)
      while (!reached(counts + strips[strip].count, masses + strips[strip].mass))
        counts += strips[strip].count, masses += strips[strip].mass, ++strip;
    sorting.strip = strip, sorting.count_before = counts, sorting.mass_before = masses;
  }
  __syncthreads();
  // A count that ends among tokens that weigh nothing cuts off nothing that could be drawn.
  if (sorting.strip >= kStrips) return limit;
  for (int i = threadIdx.x; i < row.vocabulary; i += kThreads) {
    if (row.strip(i) != sorting.strip) continue;
    const int place = atomicAdd(&sorting.count, 1);
    if (place < kSorted) sorting.key[place] = row.key(i), sorting.id[place] = i, sorting.mass[place] = row.mass(i);
  }
  __syncthreads();
  const int found = sorting.count;
  if (found > kSorted) return descend(row, limit, use_mass, inclusive, target, tally);
  // Ranks by counting: the order does not depend on the places that the atomics gave.
  __shared__ int order[kSorted];
  for (int i = threadIdx.x; i < found; i += kThreads) {
    int rank = 0;
    for (int j = 0; j < found; ++j)
      rank += sorting.key[j] < sorting.key[i] || (sorting.key[j] == sorting.key[i] && sorting.id[j] < sorting.id[i]);
    order[rank] = i;
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    unsigned long long counts = sorting.count_before, masses = sorting.mass_before;
    int rank = 0;
    for (;; ++rank) {
      counts += 1, masses += sorting.mass[order[rank]];
      if (rank == found - 1 || reached(counts, masses)) break;
    }
    sorting.place = order[rank], sorting.count_before = counts, sorting.mass_before = masses;
  }
  __syncthreads();
  const Prefix result{sorting.key[sorting.place], sorting.id[sorting.place], sorting.count_before, sorting.mass_before};
  __syncthreads();
  return result;
}

// One block a row: the greedy choice, or the cuts and the draw. `seen` is read before the choice is marked in it.
__global__ void __launch_bounds__(kThreads)
    choose_kernel(const float* logits, const float* sampling, const uint32_t* rng, const int32_t* past, uint8_t* seen,
                  const Best* candidates, const Strip* strips, int stretches, int32_t* ids, int vocabulary) {
  begin();
  extern __shared__ __align__(16) uint8_t memory[];
  Sorting& sorting = *reinterpret_cast<Sorting*>(memory);
  __shared__ Best shared[32];
  __shared__ Tally tally;
  __shared__ unsigned long long totals;
  const int b = blockIdx.x;
  const float* s = sampling + b * 8;
  uint8_t* marked = seen + int64_t{b} * vocabulary;
  const Strip* histogram = strips + b * kStrips;
  const Best best = best_of(candidates + b * stretches, stretches, vocabulary, shared);
  int id = best.id;
  const Row row = row_of(logits, sampling, seen, b, vocabulary, best.id);
  if (draws(row)) {
    // Everything, as the first limit.
    if (threadIdx.x == 0) totals = 0;
    __syncthreads();
    unsigned long long mine = 0;
    for (int i = threadIdx.x; i < kStrips; i += kThreads) mine += histogram[i].mass;
    atomicAdd(&totals, mine);
    __syncthreads();
    Prefix limit{0xffffffffu, vocabulary, static_cast<uint64_t>(vocabulary), totals};
    const float top_k = s[1], top_p = s[2], min_p = s[3];
    if (top_k >= 1 && top_k < static_cast<float>(vocabulary))
      limit = cut(row, limit, false, true, static_cast<uint64_t>(top_k), histogram, sorting, tally);
    if (top_p < 1)
      limit = cut(row, limit, true, true, static_cast<uint64_t>(fmaxf(top_p, 0.0f) * static_cast<double>(limit.mass)),
                  histogram, sorting, tally);
    if (min_p > 0) {
      const uint64_t least = static_cast<uint64_t>(min_p * kOne);
      __syncthreads();
      if (threadIdx.x == 0) totals = 0;
      __syncthreads();
      mine = 0;
      for (int i = threadIdx.x; i < vocabulary; i += kThreads) {
        const uint32_t key = row.key(i);
        const uint64_t mass = row.mass(i);
        if ((key < limit.key || (key == limit.key && i <= limit.id)) && (mass >= least || i == best.id)) mine += mass;
      }
      atomicAdd(&totals, mine);
      __syncthreads();
      // The survivors are a prefix; a draw below their mass never leaves it.
      limit.mass = totals;
    }
    const float u =
        philox_sampling_uniform(rng[b * 2], rng[b * 2 + 1], static_cast<uint32_t>(b), static_cast<uint32_t>(past[b]));
    id = cut(row, limit, true, false, static_cast<uint64_t>(static_cast<double>(u) * static_cast<double>(limit.mass)),
             histogram, sorting, tally)
             .id;
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    ids[b] = id;
    marked[id] = 1;
  }
}

}  // namespace

void CudaBackend::sample(const Tensor& logits, const Tensor& sampling, const Tensor& rng, const Tensor& past,
                         const Tensor& seen, const Tensor& ids, const Tensor&) {
  const int rows = static_cast<int>(logits.rows()), vocabulary = static_cast<int>(logits.cols());
  const unsigned stretches = std::min(blocks_for(vocabulary, kSpreadThreads * 4), 256u);
  Best* candidates = reinterpret_cast<Best*>(partials());
  Strip* strips = reinterpret_cast<Strip*>(candidates + 256 * rows);
  if (static_cast<int64_t>(rows) * (256 * sizeof(Best) + kStrips * sizeof(Strip)) > Workspace::kPartialBytes)
    throw Error("Q4510", "sample: too many rows at a time");
  const Launch spread{{stretches, static_cast<unsigned>(rows)}, kSpreadThreads, stream(), 0, overlap()};
  launch(spread, best_kernel, logits.f32(), sampling.f32(), seen.as<uint8_t>(), candidates, strips, vocabulary);
  launch(spread, histogram_kernel, logits.f32(), sampling.f32(), seen.as<uint8_t>(), candidates, strips, vocabulary);
  allow_shared(choose_kernel, sizeof(Sorting));
  launch({static_cast<unsigned>(rows), kThreads, stream(), sizeof(Sorting), overlap()}, choose_kernel, logits.f32(),
         sampling.f32(), rng.as<uint32_t>(), past.i32(), seen.as<uint8_t>(), candidates, strips,
         static_cast<int>(stretches), ids.i32(), vocabulary);
}

}  // namespace q4::gpu
