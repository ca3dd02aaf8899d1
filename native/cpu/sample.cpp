// Sampling without sorting a whole vocabulary: the best few tokens are found in one pass, and more of them only when the
// draw or a cut reaches beyond. The choices are the reference's.
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "core/philox.h"
#include "cpu/fast_backend.h"

namespace q4 {
namespace {

struct Candidate {
  float logit;
  int32_t id;
  double weight;  // exp((logit − largest logit) / temperature)
};

// Falling probability, ties by id.
bool before(const Candidate& a, const Candidate& b) { return a.logit != b.logit ? a.logit > b.logit : a.id < b.id; }

// The first `count` candidates in order.
std::vector<Candidate> best(const float* logit, int64_t vocabulary, int64_t count) {
  std::vector<Candidate> list;
  const auto wanted = static_cast<size_t>(count);
  list.reserve(2 * wanted);
  // Tokens arrive by rising id, so one that only equals the threshold comes after those that are kept.
  float threshold = -std::numeric_limits<float>::infinity();
  bool full = false;
  for (int64_t i = 0; i < vocabulary; ++i) {
    if (full && !(logit[i] > threshold)) continue;
    list.push_back({logit[i], static_cast<int32_t>(i), 0});
    if (list.size() < 2 * wanted) continue;
    std::nth_element(list.begin(), list.begin() + count - 1, list.end(), before);
    list.resize(wanted);
    threshold = list.back().logit;
    full = true;
  }
  std::sort(list.begin(), list.end(), before);
  if (list.size() > wanted) list.resize(wanted);
  return list;
}

}  // namespace

int32_t FastBackend::sample_row(const float* logit, int64_t vocabulary, float temperature, const float* sampling,
                                float u) {
  const float top_k = sampling[1], top_p = sampling[2], min_p = sampling[3];
  const float largest = kernels_.row_max(logit, vocabulary);
  if (!(temperature > 0) || std::isinf(largest))
    return static_cast<int32_t>(std::find(logit, logit + vocabulary, largest) - logit);

  const bool limited = top_k >= 1 && top_k < static_cast<float>(vocabulary);
  const int64_t limit = limited ? static_cast<int64_t>(top_k) : vocabulary;
  double all = limited ? 0 : kernels_.exp_sum(logit, vocabulary, largest, 1.0f / temperature);
  for (int64_t count = limited ? limit : std::min<int64_t>(64, limit);; count = std::min(limit, count * 8)) {
    std::vector<Candidate> list = best(logit, vocabulary, count);
    double sum = 0;
    for (Candidate& c : list) sum += c.weight = std::exp((c.logit - double{largest}) / temperature);
    const bool complete = count == limit;
    if (complete) all = sum;
    size_t kept = list.size();
    bool cut = complete;  // whether the survivors all stand in the list
    if (top_p < 1) {
      double running = 0;
      kept = 0;
      while (kept < list.size() && (kept == 0 || running < top_p * all)) running += list[kept++].weight;
      cut = cut || running >= top_p * all;
    }
    if (min_p > 0) {
      size_t passing = 1;
      while (passing < kept && list[passing].weight >= min_p * list[0].weight) ++passing;
      cut = cut || passing < kept;
      kept = passing;
    }
    double total = all, running = 0;
    if (cut) {
      total = 0;
      for (size_t i = 0; i < kept; ++i) total += list[i].weight;
    } else if (top_p < 1 || min_p > 0) {
      continue;
    }
    for (size_t i = 0; i < kept; ++i) {
      running += list[i].weight;
      if (running > u * total) return list[i].id;
    }
    if (cut) return list[kept - 1].id;
  }
}

void FastBackend::sample(const Tensor& logits, const Tensor& sampling, const Tensor& rng, const Tensor& past,
                         bool greedy, const Tensor& seen, const Tensor& ids, const Tensor&) {
  const int64_t vocabulary = logits.cols();
  pool_.run(logits.rows(), [&](int64_t b, int worker) {
    const float* options = sampling.f32() + b * 8;
    const float penalty = options[4], *from = logits.f32() + b * vocabulary;
    uint8_t* marked = seen.as<uint8_t>() + b * vocabulary;
    // A NaN never wins: it counts as −∞. The penalty and NaN are rare; without them the logits serve as they are.
    const float* row = from;
    if (penalty != 1 || std::isnan(kernels_.row_max(from, vocabulary))) {
      float* changed = per_thread_[static_cast<size_t>(worker)].floats(vocabulary);
      for (int64_t c = 0; c < vocabulary; ++c) {
        const float logit = from[c] == from[c] ? from[c] : -std::numeric_limits<float>::infinity();
        changed[c] = !marked[c] ? logit : logit > 0 ? logit / penalty : logit * penalty;
      }
      row = changed;
    }
    const auto* seed = rng.as<uint32_t>() + b * 2;
    const float u =
        philox_sampling_uniform(seed[0], seed[1], static_cast<uint32_t>(b), static_cast<uint32_t>(past.i32()[b]));
    const int32_t id = sample_row(row, vocabulary, greedy ? 0 : options[0], options, u);
    ids.i32()[b] = id;
    marked[id] = 1;
  });
}

}  // namespace q4
