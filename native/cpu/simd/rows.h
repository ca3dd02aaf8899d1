// Loops over one row: norms, rotations, softmax pieces. Sums run in lanes in a fixed order.
#pragma once
#include <cmath>
#include <cstdint>

#include "cpu/simd/exp.h"

namespace q4::simd {

// Calls body(index, lanes) over [0, n) a vector at a time; lanes = width but for the last.
template <typename V, typename Body>
void each(int64_t n, Body&& body) {
  int64_t i = 0;
  for (; i + V::width <= n; i += V::width) body(i, int64_t{V::width});
  if (i < n) body(i, n - i);
}
template <typename V>
typename V::F read(const float* p, int64_t lanes) {
  return lanes == V::width ? V::load(p) : V::load_n(p, lanes);
}
template <typename V>
void write(float* p, typename V::F x, int64_t lanes) {
  if (lanes == V::width)
    V::store(p, x);
  else
    V::store_n(p, x, lanes);
}

// |x|.
template <typename V>
typename V::F magnitude(typename V::F x) {
  return V::from_bits(V::and_int(V::bits(x), V::set_int(0x7fffffff)));
}

template <typename V>
float norm_row(const float* x, const float* branch, const float* weight, int64_t n, float eps, float* sum, float* y) {
  using F = typename V::F;
  F squares = V::zero();
  if (branch) {
    each<V>(n, [&](int64_t i, int64_t lanes) {
      const F s = V::add(read<V>(x + i, lanes), read<V>(branch + i, lanes));
      write<V>(sum + i, s, lanes);
      squares = V::fma(s, s, squares);
    });
    x = sum;
  } else {
    each<V>(n, [&](int64_t i, int64_t lanes) {
      const F s = read<V>(x + i, lanes);
      squares = V::fma(s, s, squares);
    });
  }
  const float rstd = static_cast<float>(1.0 / __builtin_sqrt(V::sum_double(squares) / static_cast<double>(n) + eps));
  const F factor = V::set(rstd);
  each<V>(n, [&](int64_t i, int64_t lanes) {
    write<V>(y + i, V::mul(V::mul(read<V>(x + i, lanes), factor), read<V>(weight + i, lanes)), lanes);
  });
  return rstd;
}

template <typename V>
void norm_row_backward(const float* dy, const float* x, const float* weight, float rstd, const float* residual,
                       int64_t n, float* dx) {
  using F = typename V::F;
  F dot = V::zero();
  each<V>(n, [&](int64_t i, int64_t lanes) {
    dot = V::fma(V::mul(read<V>(dy + i, lanes), read<V>(weight + i, lanes)), read<V>(x + i, lanes), dot);
  });
  const double mean = V::sum_double(dot) * rstd / static_cast<double>(n);
  const F factor = V::set(rstd), towards = V::set(static_cast<float>(mean * rstd));
  each<V>(n, [&](int64_t i, int64_t lanes) {
    const F g = V::mul(read<V>(dy + i, lanes), read<V>(weight + i, lanes));
    const F inner = V::fnma(read<V>(x + i, lanes), towards, g);
    const F base = residual ? read<V>(residual + i, lanes) : V::zero();
    write<V>(dx + i, V::fma(factor, inner, base), lanes);
  });
}

template <typename V>
void norm_weight_gradient(const float* dy, const float* x, float rstd, int64_t n, float* out) {
  const typename V::F factor = V::set(rstd);
  each<V>(n, [&](int64_t i, int64_t lanes) {
    const typename V::F hat = V::mul(read<V>(x + i, lanes), factor);
    write<V>(out + i, V::fma(read<V>(dy + i, lanes), hat, read<V>(out + i, lanes)), lanes);
  });
}

template <typename V>
void rotate(const float* x, const float* cos, const float* sin, int64_t head_dim, bool back, float* y) {
  using F = typename V::F;
  const int64_t half = head_dim / 2;
  each<V>(half, [&](int64_t i, int64_t lanes) {
    const F low = read<V>(x + i, lanes), high = read<V>(x + half + i, lanes), c = read<V>(cos + i, lanes);
    const F s = back ? V::sub(V::zero(), read<V>(sin + i, lanes)) : read<V>(sin + i, lanes);
    write<V>(y + i, V::fnma(high, s, V::mul(low, c)), lanes);
    write<V>(y + half + i, V::fma(low, s, V::mul(high, c)), lanes);
  });
}

// NaN if there is one; −∞ for n = 0.
template <typename V>
float row_max(const float* x, int64_t n) {
  float lane[V::width];
  const typename V::F lowest = V::set(-__builtin_inff());
  typename V::F largest = lowest;
  int64_t i = 0;
  for (; i + V::width <= n; i += V::width) largest = V::max(largest, V::load(x + i));
  // The second operand wins against NaN, so a NaN would be lost at the next step: look for one apart.
  typename V::F check = V::zero();
  for (int64_t j = 0; j + V::width <= n; j += V::width) check = V::add(check, V::mul(V::load(x + j), V::zero()));
  V::store(lane, largest);
  float result = -__builtin_inff();
  for (int j = 0; j < V::width; ++j) result = lane[j] > result ? lane[j] : result;
  bool nan = false;
  for (; i < n; ++i) {
    result = x[i] > result ? x[i] : result;
    nan |= x[i] != x[i];
  }
  if (V::any(V::unordered(check)))  // NaN, or an infinity times zero
    for (int64_t j = 0; j < n; ++j) nan |= x[j] != x[j];
  return nan ? __builtin_nanf("") : result;
}

template <typename V>
double exp_row(const float* x, int64_t n, float scale, float shift, float* y) {
  using F = typename V::F;
  const F factor = V::set(scale), offset = V::set(shift);
  double total = 0;
  // Sums of at most 64 terms a lane in fp32, then double.
  for (int64_t begin = 0; begin < n; begin += 64 * V::width) {
    const int64_t count = n - begin < 64 * V::width ? n - begin : 64 * V::width;
    F sum = V::zero();
    each<V>(count, [&](int64_t i, int64_t lanes) {
      const F e = exp<V>(V::sub(V::mul(read<V>(x + begin + i, lanes), factor), offset));
      write<V>(y + begin + i, e, lanes);
      if (lanes == V::width)
        sum = V::add(sum, e);
      else
        sum = V::add(sum, V::load_n(y + begin + i, lanes));
    });
    total += V::sum_double(sum);
  }
  return total;
}

template <typename V>
double exp_sum(const float* x, int64_t n, float shift, float scale) {
  using F = typename V::F;
  const F offset = V::set(shift), factor = V::set(scale), lowest = V::set(-__builtin_inff());
  const auto term = [&](F value) { return exp<V>(V::mul(V::sub(value, offset), factor)); };
  double total = 0;
  for (int64_t begin = 0; begin < n; begin += 64 * V::width) {
    const int64_t count = n - begin < 64 * V::width ? n - begin : 64 * V::width;
    F sum = V::zero();
    int64_t i = 0;
    for (; i + V::width <= count; i += V::width) sum = V::add(sum, term(V::load(x + begin + i)));
    if (i < count) {
      float rest[V::width];
      V::store(rest, lowest);
      for (int64_t j = 0; i + j < count; ++j) rest[j] = x[begin + i + j];
      sum = V::add(sum, term(V::load(rest)));
    }
    total += V::sum_double(sum);
  }
  return total;
}

template <typename V>
void softmax_gradient(float* x, const float* dp, int64_t n, float lse, float delta, float scale, float* probability) {
  using F = typename V::F;
  const F offset = V::set(lse), centre = V::set(delta), factor = V::set(scale);
  each<V>(n, [&](int64_t i, int64_t lanes) {
    const F p = exp<V>(V::sub(read<V>(x + i, lanes), offset));
    write<V>(probability + i, p, lanes);
    write<V>(x + i, V::mul(V::mul(p, V::sub(read<V>(dp + i, lanes), centre)), factor), lanes);
  });
}

template <typename V>
void scale_row(float* x, float factor, int64_t n) {
  const typename V::F f = V::set(factor);
  each<V>(n, [&](int64_t i, int64_t lanes) { write<V>(x + i, V::mul(read<V>(x + i, lanes), f), lanes); });
}

template <typename V>
float dot(const float* a, const float* b, int64_t n) {
  typename V::F sum = V::zero();
  each<V>(n, [&](int64_t i, int64_t lanes) { sum = V::fma(read<V>(a + i, lanes), read<V>(b + i, lanes), sum); });
  return V::sum(sum);
}

// Rows of a cache lie a whole token apart, too far for the hardware to guess the next: these loops fetch it ahead.
inline constexpr int64_t kRowsAhead = 8, kLineFloats = 16;

template <typename V>
void dot_rows(const float* q, const float* rows, int64_t ld, int64_t n, int64_t dim, float scale, float* out) {
  using F = typename V::F;
  int64_t j = 0;
  for (; j + 4 <= n; j += 4) {  // four rows share the loads of q and hide each other's latency
    for (int64_t r = j + kRowsAhead; r < j + kRowsAhead + 4 && r < n; ++r)
      for (int64_t i = 0; i < dim; i += kLineFloats) __builtin_prefetch(rows + r * ld + i);
    F sum[4] = {V::zero(), V::zero(), V::zero(), V::zero()};
    each<V>(dim, [&](int64_t i, int64_t lanes) {
      const F query = read<V>(q + i, lanes);
      for (int r = 0; r < 4; ++r) sum[r] = V::fma(query, read<V>(rows + (j + r) * ld + i, lanes), sum[r]);
    });
    for (int r = 0; r < 4; ++r) out[j + r] = scale * V::sum(sum[r]);
  }
  for (; j < n; ++j) out[j] = scale * dot<V>(q, rows + j * ld, dim);
}

// `vectors` vectors of each row, from column d on.
template <typename V, int vectors>
void weigh_columns(const float* weight, const float* rows, int64_t ld, int64_t n, float factor, float* y) {
  using F = typename V::F;
  F sum[vectors];
#pragma GCC unroll 8
  for (int r = 0; r < vectors; ++r) sum[r] = V::zero();
  for (int64_t j = 0; j < n; ++j) {
    const int64_t ahead = j + kRowsAhead < n ? kRowsAhead : 0;
    for (int i = 0; i < vectors * V::width; i += kLineFloats) __builtin_prefetch(rows + (j + ahead) * ld + i);
    const F w = V::set(weight[j]);
#pragma GCC unroll 8
    for (int r = 0; r < vectors; ++r) sum[r] = V::fma(w, V::load(rows + j * ld + r * V::width), sum[r]);
  }
#pragma GCC unroll 8
  for (int r = 0; r < vectors; ++r) V::store(y + r * V::width, V::mul(V::set(factor), sum[r]));
}

template <typename V>
void weigh_rows(const float* weight, const float* rows, int64_t ld, int64_t n, int64_t dim, float factor, float* y) {
  using F = typename V::F;
  int64_t d = 0;
  for (; d + 8 * V::width <= dim; d += 8 * V::width) weigh_columns<V, 8>(weight, rows + d, ld, n, factor, y + d);
  for (; d + V::width <= dim; d += V::width) weigh_columns<V, 1>(weight, rows + d, ld, n, factor, y + d);
  if (d < dim) {
    F sum = V::zero();
    for (int64_t j = 0; j < n; ++j) sum = V::fma(V::set(weight[j]), V::load_n(rows + j * ld + d, dim - d), sum);
    V::store_n(y + d, V::mul(V::set(factor), sum), dim - d);
  }
}

}  // namespace q4::simd
