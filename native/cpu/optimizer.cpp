// Gradient statistics and AdamW.
#include <algorithm>
#include <vector>

#include "core/nvfp4.h"
#include "cpu/fast_backend.h"

namespace q4 {
namespace {
// Elements of a task; a multiple of 64, and fixed, so that sums do not depend on the number of threads.
constexpr int64_t kPiece = 16384;
const char* element_at(const Tensor& tensor, int64_t i) { return tensor.as<char>() + i * element_bytes(tensor.dtype); }
}  // namespace

void FastBackend::sum_squares(const Tensor& x, int64_t slot, const Tensor& partials) {
  const int64_t count = x.elements();
  std::vector<double> piece(static_cast<size_t>((count + kPiece - 1) / kPiece));
  pool_.run_ranges(count, kPiece, [&](int64_t begin, int64_t end, int) {
    piece[static_cast<size_t>(begin / kPiece)] = kernels_.sum_squares(x.dtype, element_at(x, begin), end - begin);
  });
  double sum = 0;
  for (const double value : piece) sum += value;
  partials.f32()[slot] = static_cast<float>(sum);
}

void FastBackend::amax(const Tensor& x, int64_t slot, const Tensor& out) {
  const int64_t count = x.elements();
  std::vector<float> piece(static_cast<size_t>((count + kPiece - 1) / kPiece));
  pool_.run_ranges(count, kPiece, [&](int64_t begin, int64_t end, int) {
    piece[static_cast<size_t>(begin / kPiece)] = kernels_.amax(x.dtype, element_at(x, begin), end - begin);
  });
  float largest = 0;
  for (const float value : piece) largest = amax_step(largest, value);
  out.f32()[slot] = largest;
}

void FastBackend::adamw(const Tensor& grad, const Tensor& stats, const Tensor& hyper, const Tensor& rng, bool decay,
                        int64_t stream, const Tensor& master, const Tensor& m, const Tensor& v) {
  const float *s = stats.f32(), *h = hyper.f32();
  if (s[2] == 0) return;
  const auto* seed = rng.as<uint32_t>();
  const AdamwStep step{s[1],
                       h[0],
                       h[1],
                       h[2],
                       h[3],
                       decay ? h[0] * h[4] : 0.0f,
                       h[5],
                       h[6],
                       seed[0],
                       seed[1],
                       static_cast<uint32_t>(stream),
                       seed[2]};
  pool_.run_ranges(master.elements(), kPiece, [&](int64_t begin, int64_t end, int) {
    kernels_.adamw(step, grad.dtype, element_at(grad, begin), master.dtype,
                   const_cast<char*>(element_at(master, begin)), m.f32() + begin, v.f32() + begin, begin, end - begin);
  });
}

void FastBackend::adamw_amax(const Tensor& grad, const Tensor& stats, const Tensor& hyper, const Tensor& rng,
                             bool decay, int64_t stream, int64_t slot, const Tensor& master, const Tensor& m,
                             const Tensor& v, const Tensor& out) {
  adamw(grad, stats, hyper, rng, decay, stream, master, m, v);
  amax(master, slot, out);
}

}  // namespace q4
