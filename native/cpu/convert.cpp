// Filling, casting and random numbers.
#include <algorithm>

#include "core/philox.h"
#include "cpu/fast_backend.h"
#include "cpu/reference/element.h"

namespace q4 {
namespace {
constexpr int64_t kPiece = 16384;

// Elements [begin, end) of a plain tensor as a tensor of its own.
Tensor piece_of(const Tensor& tensor, int64_t begin, int64_t end) {
  Tensor piece = tensor;
  piece.rank = 1;
  piece.dims = {end - begin, 1, 1, 1};
  piece.data = tensor.as<char>() + begin * element_bytes(tensor.dtype);
  return piece;
}
}  // namespace

void FastBackend::fill(float value, const Tensor& y) {
  pool_.run_ranges(y.elements(), kPiece,
                   [&](int64_t begin, int64_t end, int) { ReferenceBackend::fill(value, piece_of(y, begin, end)); });
}

void FastBackend::cast(const Tensor& x, const Tensor& y) {
  pool_.run_ranges(y.elements(), kPiece, [&](int64_t begin, int64_t end, int) {
    const Tensor from = piece_of(x, begin, end), to = piece_of(y, begin, end);
    kernels_.convert(from.dtype, from.data, to.dtype, to.data, end - begin);
  });
}

void FastBackend::random_normal(uint64_t seed, int64_t stream, float std, const Tensor& y) {
  const auto low = static_cast<uint32_t>(seed), high = static_cast<uint32_t>(seed >> 32);
  pool_.run_ranges(y.elements(), kPiece, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; i += 4) {
      const Philox4 draw =
          philox_group(low, high, Draw::normal, static_cast<uint32_t>(stream), 0, static_cast<uint64_t>(i / 4));
      float normal[4];
      philox_normal(draw.word[0], draw.word[1], normal[0], normal[1]);
      philox_normal(draw.word[2], draw.word[3], normal[2], normal[3]);
      for (int64_t j = 0; j < 4 && i + j < end; ++j) y.f32()[i + j] = std * normal[j];
    }
  });
}

}  // namespace q4
