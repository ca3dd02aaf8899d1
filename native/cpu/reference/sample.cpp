// Sampling one token a row.
#include <algorithm>
#include <cmath>
#include <vector>

#include "core/philox.h"
#include "cpu/reference/reference_backend.h"

namespace q4 {
namespace {

struct Candidate {
  double weight;  // exp(logit − largest logit): a probability before it is normalised
  int32_t id;
};

struct Sampling {
  float temperature, top_k, top_p, min_p, repetition_penalty;
};

// Falling probability, ties by id: the one order in which candidates are cut and drawn.
bool before(const Candidate& a, const Candidate& b) { return a.weight != b.weight ? a.weight > b.weight : a.id < b.id; }

// Draws with uniform u in [0, 1) from candidates that all survive, in order.
int32_t draw(const std::vector<Candidate>& candidates, double u) {
  double total = 0, running = 0;
  for (const Candidate& c : candidates) total += c.weight;
  for (const Candidate& c : candidates) {
    running += c.weight;
    if (running > u * total) return c.id;
  }
  return candidates.back().id;
}

int32_t sample_row(std::vector<float>& logit, const Sampling& s, float u) {
  // A NaN never wins: it counts as −∞.
  for (float& value : logit)
    if (value != value) value = -INFINITY;
  const auto best = std::max_element(logit.begin(), logit.end());  // the first of equals
  const auto best_id = static_cast<int32_t>(best - logit.begin());
  if (!(s.temperature > 0) || std::isinf(*best)) return best_id;

  const double largest = *best;
  std::vector<Candidate> candidates(logit.size());
  for (size_t i = 0; i < logit.size(); ++i)
    candidates[i] = {std::exp((logit[i] - largest) / s.temperature), static_cast<int32_t>(i)};
  std::sort(candidates.begin(), candidates.end(), before);

  if (s.top_k >= 1 && s.top_k < static_cast<float>(candidates.size())) candidates.resize(static_cast<size_t>(s.top_k));
  if (s.top_p < 1) {
    double total = 0, running = 0;
    for (const Candidate& c : candidates) total += c.weight;
    size_t kept = 0;
    while (kept < candidates.size() && (kept == 0 || running < s.top_p * total)) running += candidates[kept++].weight;
    candidates.resize(kept);
  }
  if (s.min_p > 0) {
    size_t kept = 1;
    while (kept < candidates.size() && candidates[kept].weight >= s.min_p * candidates[0].weight) ++kept;
    candidates.resize(kept);
  }
  return draw(candidates, u);
}

}  // namespace

void ReferenceBackend::sample(const Tensor& logits, const Tensor& sampling, const Tensor& rng, const Tensor& past,
                              bool greedy, const Tensor& seen, const Tensor& ids, const Tensor&) {
  const int64_t vocabulary = logits.cols();
  std::vector<float> row(static_cast<size_t>(vocabulary));
  for (int64_t b = 0; b < logits.rows(); ++b) {
    const float* s = sampling.f32() + b * 8;
    const Sampling options{greedy ? 0 : s[0], s[1], s[2], s[3], s[4]};
    uint8_t* marked = seen.as<uint8_t>() + b * vocabulary;
    for (int64_t c = 0; c < vocabulary; ++c) {
      const float logit = logits.f32()[b * vocabulary + c], penalty = options.repetition_penalty;
      row[static_cast<size_t>(c)] = !marked[c] ? logit : logit > 0 ? logit / penalty : logit * penalty;
    }
    const auto* seed = rng.as<uint32_t>() + b * 2;
    const float u =
        philox_sampling_uniform(seed[0], seed[1], static_cast<uint32_t>(b), static_cast<uint32_t>(past.i32()[b]));
    const int32_t id = sample_row(row, options, u);
    ids.i32()[b] = id;
    marked[id] = 1;
  }
}

}  // namespace q4
