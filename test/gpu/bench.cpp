// The Qwen3-4B shape's hot ops against roofs measured here: a device-to-device copy (read plus written) and an 8192³ bf16
// product, both on random data. Device time by events, medians of several runs after a warm-up.
#include <cuda_runtime_api.h>

#include <algorithm>

#include "cuda/check.h"
#include "harness.h"

namespace q4::test {
namespace {

constexpr int64_t kHidden = 2560, kInner = 9728, kHeads = 32, kKvHeads = 8, kDim = 128, kLayers = 36,
                  kVocabulary = 151936;

double copy_bytes_per_s = 4.2e12, product_flops_per_s = 7.5e14;

// Seconds of one call, the median of `repeats` groups.
double seconds(Harness& h, const std::function<void()>& body, int group = 5, int repeats = 5) {
  body();
  body();
  std::vector<double> times;
  for (int r = 0; r < repeats; ++r) {
    const double start = h.gpu->now();
    for (int i = 0; i < group; ++i) body();
    times.push_back((h.gpu->now() - start) / group);
  }
  std::sort(times.begin(), times.end());
  return times[times.size() / 2];
}

// A tensor of random values, made on the device (bf16 and NVFP4 from a host pattern that repeats every few MiB).
Tensor random_tensor(Harness& h, DType dtype, std::vector<int64_t> shape, float scale = 1) {
  const Tensor tensor = h.on(*h.gpu, dtype, std::move(shape));
  static std::vector<uint8_t> pattern;
  const int64_t period = (int64_t{1} << 22) + 256;
  if (pattern.empty()) {
    pattern.resize(period * 2);
    for (auto& byte : pattern) byte = static_cast<uint8_t>(h.below(256));
  }
  std::vector<uint8_t> bytes(period);
  const auto spread = [&](void* to, int64_t count) {
    for (int64_t at = 0; at < count; at += period)
      h.gpu->upload(static_cast<char*>(to) + at, bytes.data(), std::min(period, count - at));
  };
  if (dtype == DType::nvfp4) {
    const Nvfp4Layout layout = nvfp4_layout(tensor.dims[0], tensor.dims[1]);
    bytes.assign(pattern.begin(), pattern.begin() + period);
    spread(tensor.data, layout.code_bytes);
    for (auto& byte : bytes) byte = static_cast<uint8_t>(0x30 + (byte & 15));
    spread(tensor.scale, layout.scale_bytes);
    const float global = 0.01f;
    h.gpu->upload(tensor.global_scale, &global, 4);
    return tensor;
  }
  for (int64_t i = 0; i + 4 <= period; i += element_bytes(dtype)) {
    const float x = scale * h.normal();
    const uint16_t half = f32_to_bf16(x);
    if (dtype == DType::f32)
      std::memcpy(bytes.data() + i, &x, 4);
    else
      std::memcpy(bytes.data() + i, &half, 2);
  }
  spread(tensor.data, tensor.elements() * element_bytes(dtype));
  return tensor;
}

void by_flops(const char* name, double flops, double time) {
  std::printf("%-44s %9.3f ms  %7.1f TFLOP/s  %5.2f of the product\n", name, time * 1e3, flops / time * 1e-12,
              flops / time / product_flops_per_s);
}
void by_bytes(const char* name, double bytes, double time) {
  std::printf("%-44s %9.3f ms  %7.0f GB/s     %5.2f of the copy\n", name, time * 1e3, bytes / time * 1e-9,
              bytes / time / copy_bytes_per_s);
}

Tensor i32_tensor(Harness& h, int64_t n, const std::function<int32_t(int64_t)>& value) {
  const Tensor tensor = h.on(*h.gpu, DType::i32, {n});
  std::vector<int32_t> host(n);
  for (int64_t i = 0; i < n; ++i) host[i] = value(i);
  h.gpu->upload(tensor.data, host.data(), n * 4);
  return tensor;
}

// Seconds of a training layer's attention, forward and backward.
std::pair<double, double> attention_times(Harness& h) {
  const int64_t batch = 4, steps = 2048, n = batch * steps;
  const Tensor none;
  Backend& g = *h.gpu;
  const AttentionShape shape{batch, kHeads, kKvHeads, kDim};
  const auto random = [&](int64_t heads) { return random_tensor(h, DType::bf16, {n, heads * kDim}); };
  const auto empty = [&](int64_t heads) { return h.on(g, DType::bf16, {n, heads * kDim}); };
  const Tensor q = random(kHeads), k = random(kKvHeads), v = random(kKvHeads), dout = random(kHeads);
  const Tensor out = empty(kHeads), dq = empty(kHeads), dk = empty(kKvHeads), dv = empty(kKvHeads),
               lse = h.on(g, DType::f32, {n, kHeads});
  const Tensor zeros = i32_tensor(h, n, [](int64_t) { return 0; });
  const double flops = 4.0 * batch * kHeads * steps * steps * kDim / 2;
  std::pair<double, double> times;
  for (const Tensor& from : {zeros, none}) {
    const char* given = from ? ", attend_from given" : "";
    times.first = seconds(h, [&] { g.attention(q, k, v, from, none, shape, out, lse, none); });
    times.second = seconds(h, [&] { g.attention_backward(dout, q, k, v, out, lse, from, shape, dq, dk, dv, none); });
    by_flops((std::string("attention forward") + given).c_str(), flops, times.first);
    by_flops((std::string("attention backward") + given).c_str(), flops * 2.5, times.second);
  }
  h.clear();
  return times;
}

}  // namespace

void bench_roofs(Harness& h) {
  const int64_t bytes = int64_t{4} << 30;
  const Tensor from = random_tensor(h, DType::f32, {bytes / 4}), to = h.on(*h.gpu, DType::f32, {bytes / 4});
  cudaStream_t stream;
  Q4_CHECK(cudaStreamCreate(&stream));
  cudaEvent_t start, stop;
  Q4_CHECK(cudaEventCreate(&start));
  Q4_CHECK(cudaEventCreate(&stop));
  std::vector<float> times;
  for (int i = 0; i < 9; ++i) {
    Q4_CHECK(cudaEventRecord(start, stream));
    Q4_CHECK(cudaMemcpyAsync(to.data, from.data, bytes, cudaMemcpyDeviceToDevice, stream));
    Q4_CHECK(cudaEventRecord(stop, stream));
    Q4_CHECK(cudaEventSynchronize(stop));
    float ms;
    Q4_CHECK(cudaEventElapsedTime(&ms, start, stop));
    times.push_back(ms);
  }
  std::sort(times.begin(), times.end());
  copy_bytes_per_s = 2.0 * static_cast<double>(bytes) / (times[4] * 1e-3);
  by_bytes("roof: copy of 4 GiB", 2.0 * static_cast<double>(bytes), times[4] * 1e-3);
  Q4_CHECK(cudaEventDestroy(start));
  Q4_CHECK(cudaEventDestroy(stop));
  Q4_CHECK(cudaStreamDestroy(stream));
  h.clear();
  const int64_t n = 8192;
  const Tensor x = random_tensor(h, DType::bf16, {n, n}), w = random_tensor(h, DType::bf16, {n, n}),
               y = h.on(*h.gpu, DType::bf16, {n, n});
  const double time = seconds(h, [&] { h.gpu->linear(x, w, y); });
  product_flops_per_s = 2.0 * n * n * n / time;
  by_flops("roof: bf16 product 8192^3", 2.0 * n * n * n, time);
  h.clear();
}

void bench_attention(Harness& h) { attention_times(h); }

void bench_training(Harness& h) {
  const int64_t batch = 4, steps = 2048, n = batch * steps;
  double forward = 0, backward = 0, update = 0, head = 0;
  const Tensor none;
  Backend& g = *h.gpu;
  struct Shape {
    const char* name;
    int64_t o, k;
    bool dgrad_accumulates;
  };
  for (const Shape& s :
       {Shape{"q_proj", kHeads * kDim, kHidden, false}, Shape{"k_proj", kKvHeads * kDim, kHidden, true},
        Shape{"v_proj", kKvHeads * kDim, kHidden, true}, Shape{"o_proj", kHidden, kHeads * kDim, false},
        Shape{"gate_proj", kInner, kHidden, false}, Shape{"up_proj", kInner, kHidden, true},
        Shape{"down_proj", kHidden, kInner, false}}) {
    const Tensor x = random_tensor(h, DType::bf16, {n, s.k}), w = random_tensor(h, DType::nvfp4, {s.o, s.k}),
                 y = random_tensor(h, DType::bf16, {n, s.o});
    const Tensor dx = h.on(g, DType::bf16, {n, s.k}), dw = h.on(g, DType::bf16, {s.o, s.k}),
                 out = h.on(g, DType::bf16, {n, s.o});
    const double flops = 2.0 * n * s.o * s.k;
    const double a = seconds(h, [&] { g.linear(x, w, out); }),
                 b = seconds(h, [&] { g.linear_dgrad(y, w, s.dgrad_accumulates, dx); }),
                 c = seconds(h, [&] { g.linear_wgrad(y, x, false, dw); });
    by_flops((std::string(s.name) + " forward").c_str(), flops, a);
    by_flops((std::string(s.name) + " dgrad").c_str(), flops, b);
    by_flops((std::string(s.name) + " wgrad").c_str(), flops, c);
    forward += a, backward += b + c;
    if (std::string(s.name) == "gate_proj") {
      const Tensor master = random_tensor(h, DType::f32, {s.o, s.k}, 0.02f),
                   m = random_tensor(h, DType::f32, {s.o, s.k}, 1e-4f), v = h.on(g, DType::f32, {s.o, s.k});
      const Tensor stats = h.on(g, DType::f32, {4}), hyper = h.on(g, DType::f32, {8}), rng = h.on(g, DType::i32, {4}),
                   slots = h.on(g, DType::f32, {4}), changed = h.on(g, DType::i32, {4});
      const float stats_values[4] = {1, 1, 1, 1}, hyper_values[8] = {1e-6f, 0.9f, 0.95f, 1e-8f, 0.1f, 0.1f, 0.05f, 0};
      g.upload(stats.data, stats_values, 16), g.upload(hyper.data, hyper_values, 32);
      const double e = static_cast<double>(s.o * s.k), all = 4.022e9 / e;
      const double t1 = seconds(h, [&] { g.sum_squares(dw, 0, slots); }),
                   t2 = seconds(h, [&] { g.adamw_amax(dw, stats, hyper, rng, true, 0, 1, master, m, v, slots); });
      const double t3 = seconds(h,
                                [&] {
                                  g.quantize_nvfp4(master, slots, {1, 2}, 0, w, changed);
                                }),
                   t4 = seconds(h, [&] {
                     g.adamw_amax(dw, stats, hyper, rng, true, 0, 1, master, m, v, slots);
                     g.quantize_nvfp4(master, slots, {1, 2}, 0, w, changed);
                   });
      by_bytes("sum_squares bf16", e * 2, t1), by_bytes("adamw_amax, fp32 masters, bf16 gradients", e * 26, t2),
          by_bytes("quantize_nvfp4", e * (4 + 1.0625), t3),
          by_bytes("adamw_amax, then quantize_nvfp4", e * 31.0625, t4);
      update = (t1 + t4) * all;
    }
    h.clear();
  }
  {
    const auto [a, b] = attention_times(h);
    const Tensor q = random_tensor(h, DType::bf16, {n, kHeads * kDim}),
                 dout = random_tensor(h, DType::bf16, {n, kHeads * kDim});
    const Tensor out = h.on(g, DType::bf16, {n, kHeads * kDim}), dq = h.on(g, DType::bf16, {n, kHeads * kDim});
    const Tensor weight = random_tensor(h, DType::f32, {kDim}), rstd = h.on(g, DType::f32, {n, kHeads}),
                 dweight = h.on(g, DType::f32, {kDim});
    const Tensor positions = i32_tensor(h, n, [&](int64_t i) { return static_cast<int32_t>(i % steps); });
    const double c = seconds(h, [&] { g.head_norm_rope(q, weight, positions, kDim, 1e-6f, 5e6, out, rstd); });
    const double d = seconds(
        h, [&] { g.head_norm_rope_backward(dout, q, weight, rstd, positions, kDim, 5e6, false, dq, dweight, none); });
    const double bytes = static_cast<double>(n * kHeads * kDim) * 2;
    by_bytes("head_norm_rope q", bytes * 2, c), by_bytes("head_norm_rope_backward q", bytes * 3, d);
    forward += a + c * 1.25, backward += b + d * 1.25;
    h.clear();
  }
  {
    const Tensor x = random_tensor(h, DType::bf16, {n, kHidden}), branch = random_tensor(h, DType::bf16, {n, kHidden}),
                 weight = random_tensor(h, DType::f32, {kHidden});
    const Tensor sum = h.on(g, DType::bf16, {n, kHidden}), y = h.on(g, DType::bf16, {n, kHidden}),
                 rstd = h.on(g, DType::f32, {n}), dweight = h.on(g, DType::f32, {kHidden});
    const double bytes = static_cast<double>(n * kHidden) * 2;
    const double a = seconds(h, [&] { g.add_rms_norm(x, branch, weight, 1e-6f, sum, y, rstd); });
    const double b = seconds(h, [&] { g.rms_norm_backward(x, branch, weight, rstd, sum, false, sum, dweight, none); });
    by_bytes("add_rms_norm", bytes * 4, a), by_bytes("rms_norm_backward + residual", bytes * 4, b);
    forward += 2 * a, backward += 2 * b;
    const Tensor gate = random_tensor(h, DType::bf16, {n, kInner}), up = random_tensor(h, DType::bf16, {n, kInner}),
                 dy = random_tensor(h, DType::bf16, {n, kInner});
    const Tensor act = h.on(g, DType::bf16, {n, kInner}), dup = h.on(g, DType::bf16, {n, kInner});
    const double inner = static_cast<double>(n * kInner) * 2;
    const double c = seconds(h, [&] { g.swiglu(gate, up, act); }),
                 d = seconds(h, [&] { g.swiglu_backward(dy, gate, up, act, dup); });
    by_bytes("swiglu", inner * 3, c), by_bytes("swiglu_backward", inner * 5, d);
    forward += c, backward += d;
    h.clear();
  }
  {
    const Tensor x = random_tensor(h, DType::bf16, {n, kHidden}),
                 w = random_tensor(h, DType::f32, {kVocabulary, kHidden}, 0.02f);
    const Tensor labels = i32_tensor(h, n, [&](int64_t) { return h.below(kVocabulary); }),
                 scale = random_tensor(h, DType::f32, {1}, 1e-4f);
    const Tensor loss = h.on(g, DType::f32, {1}), dx = h.on(g, DType::bf16, {n, kHidden}),
                 dw = h.on(g, DType::f32, {kVocabulary, kHidden}),
                 scratch = h.on(g, DType::f32, {n + kHidden / 2, kVocabulary});
    head = seconds(
        h, [&] { g.linear_cross_entropy(x, w, labels, scale, false, loss, dx, dw, scratch); }, 2, 3);
    by_flops("linear_cross_entropy with gradients", 6.0 * n * kVocabulary * kHidden, head);
    const double e = seconds(h, [&] { g.embedding_backward(x, labels, true, dw); });
    by_bytes("embedding_backward", static_cast<double>(n * kHidden) * 10, e);
    head += e;
    h.clear();
  }
  const double step = kLayers * (forward + backward) + head + update;
  std::printf(
      "one step of %lld tokens, from its parts: %.1f ms (forward %.1f, backward %.1f, head %.1f, optimizer %.1f): %.0f "
      "tok/s, %.2f of the product\n",
      static_cast<long long>(n), step * 1e3, kLayers * forward * 1e3, kLayers * backward * 1e3, head * 1e3,
      update * 1e3, n / step, 25.95e9 * n / step / product_flops_per_s);
}

void bench_decode(Harness& h) {
  Backend& g = *h.gpu;
  const Tensor none;
  struct Layer {
    Tensor q, k, v, o, gate, up, down, k_cache, v_cache;
  };
  const int64_t capacity = 256, most = 16;  // contexts grow no further
  std::vector<Layer> layers(kLayers);
  const auto matrix = [&](int64_t o, int64_t k) { return random_tensor(h, DType::nvfp4, {o, k}); };
  for (Layer& l : layers) {
    l.q = matrix(kHeads * kDim, kHidden), l.k = matrix(kKvHeads * kDim, kHidden),
    l.v = matrix(kKvHeads * kDim, kHidden), l.o = matrix(kHidden, kHeads * kDim);
    l.gate = matrix(kInner, kHidden), l.up = matrix(kInner, kHidden), l.down = matrix(kHidden, kInner);
    l.k_cache = h.on(g, DType::bf16, {most * capacity, kKvHeads * kDim}),
    l.v_cache = h.on(g, DType::bf16, {most * capacity, kKvHeads * kDim});
  }
  const Tensor head = matrix(kVocabulary, kHidden), table = random_tensor(h, DType::bf16, {kVocabulary, kHidden}),
               weight = random_tensor(h, DType::f32, {kHidden});
  double first = 0;
  for (const int64_t batch : {int64_t{1}, int64_t{4}, int64_t{16}}) {
    const auto act = [&](int64_t width) { return h.on(g, DType::bf16, {batch, width}); };
    const Tensor ids = i32_tensor(h, batch, [](int64_t i) { return static_cast<int32_t>(i + 5); }),
                 past = i32_tensor(h, batch, [](int64_t) { return 192; });
    const float greedy[8] = {0, 0, 1, 0, 1, 0, 0, 0};  // without penalties
    const Tensor seen = h.on(g, DType::u8, {batch, kVocabulary}),
                 sampling = h.make(DType::f32, {batch, 8}, [&](int64_t i) { return greedy[i % 8]; }).gpu,
                 rng = h.on(g, DType::i32, {batch, 2}), logits = h.on(g, DType::f32, {batch, kVocabulary});
    const Tensor x = act(kHidden), y = act(kHidden), q = act(kHeads * kDim), qr = act(kHeads * kDim),
                 k = act(kKvHeads * kDim), kr = act(kKvHeads * kDim), v = act(kKvHeads * kDim),
                 out = act(kHeads * kDim);
    const Tensor branch = act(kHidden), gate = act(kInner), up = act(kInner), inner = act(kInner);
    const Tensor rstd = h.on(g, DType::f32, {batch}), q_rstd = h.on(g, DType::f32, {batch, kHeads}),
                 k_rstd = h.on(g, DType::f32, {batch, kKvHeads}), lse = h.on(g, DType::f32, {batch, kHeads});
    const AttentionShape shape{batch, kHeads, kKvHeads, kDim};
    const uint64_t program = 5000 + static_cast<uint64_t>(batch);
    const auto token = [&] {
      if (g.begin_run(program, false)) {
        g.embedding(table, ids, x);
        g.rms_norm(x, weight, 1e-6f, y, rstd);
        for (const Layer& l : layers) {
          if (&l != &layers[0]) g.add_rms_norm(x, branch, weight, 1e-6f, x, y, rstd);
          g.linear(y, l.q, q), g.head_norm_rope(q, weight, past, kDim, 1e-6f, 5e6, qr, q_rstd);
          g.linear(y, l.k, k), g.head_norm_rope(k, weight, past, kDim, 1e-6f, 5e6, kr, k_rstd);
          g.linear(y, l.v, v);
          g.kv_append(kr, v, past, batch, l.k_cache, l.v_cache);
          g.attention(qr, l.k_cache, l.v_cache, none, past, shape, out, lse, none);
          g.linear(out, l.o, branch);
          g.add_rms_norm(x, branch, weight, 1e-6f, x, y, rstd);
          g.linear(y, l.gate, gate), g.linear(y, l.up, up), g.swiglu(gate, up, inner);
          g.linear(inner, l.down, branch);
        }
        g.add_rms_norm(x, branch, weight, 1e-6f, x, y, rstd);
        g.linear(y, head, logits);
        g.increment(1, capacity - 1, past);
        g.sample(logits, sampling, rng, past, true, seen, ids, none);
      }
      g.end_run(program);
    };
    const double time = seconds(h, token, 32, 5);
    if (batch == 1) first = time;
    const double bytes = 3633315840.0 * 0.5625 + 388956160.0 * 0.5625;
    std::printf("decode batch %2lld: %.3f ms a step, %.0f tok/s, %.2f of the copy in bytes needed, %.2f x batch 1\n",
                static_cast<long long>(batch), time * 1e3, batch / time, bytes / time / copy_bytes_per_s, time / first);
    // Halves of all layers, each recorded as a program of its own.
    const auto halves = [&](const char* name, uint64_t id, const std::function<void(const Layer&)>& half) {
      const double t = seconds(
          h,
          [&] {
            if (g.begin_run(id, false))
              for (const Layer& l : layers) half(l);
            g.end_run(id);
          },
          10, 3);
      std::printf("%-44s %9.2f us a layer\n", name, t / kLayers * 1e6);
    };
    halves("  norm, q, k, v, attention", program + 100, [&](const Layer& l) {
      g.add_rms_norm(x, branch, weight, 1e-6f, x, y, rstd);
      g.linear(y, l.q, q), g.head_norm_rope(q, weight, past, kDim, 1e-6f, 5e6, qr, q_rstd);
      g.linear(y, l.k, k), g.head_norm_rope(k, weight, past, kDim, 1e-6f, 5e6, kr, k_rstd);
      g.linear(y, l.v, v);
      g.kv_append(kr, v, past, batch, l.k_cache, l.v_cache);
      g.attention(qr, l.k_cache, l.v_cache, none, past, shape, out, lse, none);
    });
    halves("  o", program + 200, [&](const Layer& l) { g.linear(out, l.o, branch); });
    halves("  norm, gate, up, swiglu, down", program + 300, [&](const Layer& l) {
      g.add_rms_norm(x, branch, weight, 1e-6f, x, y, rstd);
      g.linear(y, l.gate, gate), g.linear(y, l.up, up), g.swiglu(gate, up, inner);
      g.linear(inner, l.down, branch);
    });
    halves("  down", program + 400, [&](const Layer& l) { g.linear(inner, l.down, branch); });
    // One op at a time, for the larger parts.
    if (batch == 4) continue;
    const auto weights = [&](const char* name, Tensor Layer::*which, const Tensor& in, const Tensor& to) {
      size_t turn = 0;  // another layer each time, so that the cache holds none of them
      const double t = seconds(
          h, [&] { g.linear(in, layers[turn++ % kLayers].*which, to); }, 36, 5);
      const Tensor& w = layers[0].*which;
      by_bytes(name, static_cast<double>(w.elements()) * 0.5625, t);
    };
    weights("  q_proj", &Layer::q, y, q), weights("  k_proj", &Layer::k, y, k),
        weights("  o_proj", &Layer::o, out, branch), weights("  gate_proj", &Layer::gate, y, gate),
        weights("  down_proj", &Layer::down, inner, branch);
    by_bytes("  lm_head", static_cast<double>(head.elements()) * 0.5625,
             seconds(
                 h, [&] { g.linear(y, head, logits); }, 10, 5));
    const auto print = [&](const char* name, double t) { std::printf("%-44s %9.2f us\n", name, t * 1e6); };
    print("  add_rms_norm", seconds(
                                h, [&] { g.add_rms_norm(x, branch, weight, 1e-6f, x, y, rstd); }, 50));
    print("  head_norm_rope q", seconds(
                                    h, [&] { g.head_norm_rope(q, weight, past, kDim, 1e-6f, 5e6, qr, q_rstd); }, 50));
    print(
        "  attention",
        seconds(
            h, [&] { g.attention(qr, layers[0].k_cache, layers[0].v_cache, none, past, shape, out, lse, none); }, 50));
    print("  swiglu", seconds(
                          h, [&] { g.swiglu(gate, up, inner); }, 50));
    print("  sample greedy", seconds(
                                 h, [&] { g.sample(logits, sampling, rng, past, true, seen, ids, none); }, 20));
    std::vector<float> settings(static_cast<size_t>(batch) * 8, 0);
    for (int64_t b = 0; b < batch; ++b)
      settings[b * 8] = 0.7f, settings[b * 8 + 1] = 40, settings[b * 8 + 2] = 0.95f, settings[b * 8 + 4] = 1;
    g.upload(sampling.data, settings.data(), batch * 32);
    print("  sample top-k top-p", seconds(
                                      h, [&] { g.sample(logits, sampling, rng, past, false, seen, ids, none); }, 20));
  }
  h.clear();
}

}  // namespace q4::test
