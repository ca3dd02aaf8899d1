#include "harness.h"

namespace q4::test {

namespace {

struct Case {
  int64_t batch, heads, kv_heads, dim, steps, capacity;  // capacity 0: no cache
  int64_t sample;                                        // rows of the samples packed into a sequence; 0: none
};

void forward(Harness& h, const Case& c, DType act) {
  const int64_t keys = c.capacity ? c.capacity : c.steps, rows = c.batch * c.steps;
  const std::string at = std::string(" ") + label(act) + " B" + std::to_string(c.batch) + " H" +
                         std::to_string(c.heads) + "/" + std::to_string(c.kv_heads) + " D" + std::to_string(c.dim) +
                         " T" + std::to_string(c.steps) + " S" + std::to_string(keys) +
                         (c.sample ? " packed " + std::to_string(c.sample) : "");
  const Both q = h.normals(act, {rows, c.heads * c.dim}, 1.5f),
             k = h.normals(act, {c.batch * keys, c.kv_heads * c.dim});
  const Both v = h.normals(act, {c.batch * keys, c.kv_heads * c.dim});
  // Sequences with different pasts.
  const Both past = h.integers(
      {c.batch}, [&](int64_t b) { return static_cast<int>(std::max<int64_t>(0, c.capacity - c.steps - 3 * b)); });
  const Both from =
      h.integers({rows}, [&](int64_t n) { return static_cast<int>(c.sample ? n % c.steps / c.sample * c.sample : 0); });
  const Both out = h.output(act, {rows, c.heads * c.dim}), lse = h.output(DType::f32, {rows, c.heads});
  const AttentionShape shape{c.batch, c.heads, c.kv_heads, c.dim};
  const Tensor none;
  const Tensor &cpu_from = c.sample ? from.cpu : none, &gpu_from = c.sample ? from.gpu : none;
  const Tensor &cpu_past = c.capacity ? past.cpu : none, &gpu_past = c.capacity ? past.gpu : none;
  h.cpu->attention(q.cpu, k.cpu, v.cpu, cpu_from, cpu_past, shape, out.cpu, lse.cpu, none);
  h.gpu->attention(q.gpu, k.gpu, v.gpu, gpu_from, gpu_past, shape, out.gpu, lse.gpu, none);
  h.close("attention out" + at, out, act == DType::bf16 ? 5e-3 : 1e-5);
  h.close("attention lse" + at, lse, act == DType::bf16 ? 1e-4 : 1e-5);
  if (c.capacity) return h.clear();

  const Both dout = h.normals(act, {rows, c.heads * c.dim});
  const Both dq = h.output(act, {rows, c.heads * c.dim}), dk = h.output(act, {rows, c.kv_heads * c.dim}),
             dv = h.output(act, {rows, c.kv_heads * c.dim});
  const Both delta = h.output(DType::f32, {rows * c.heads});
  h.cpu->attention_backward(dout.cpu, q.cpu, k.cpu, v.cpu, out.cpu, lse.cpu, cpu_from, shape, dq.cpu, dk.cpu, dv.cpu,
                            delta.cpu);
  h.gpu->attention_backward(dout.gpu, q.gpu, k.gpu, v.gpu, out.gpu, lse.gpu, gpu_from, shape, dq.gpu, dk.gpu, dv.gpu,
                            delta.gpu);
  // Weights and their gradients are rounded to bf16 between two products.
  // One step: the only weight is 1, and dq and dk are rounding errors around 0.
  if (c.steps == 1)
    for (const Both& zero : {dq, dk})
      for (const float x : h.read(zero.gpu))
        h.verdict("attention_backward of one step" + at, std::fabs(x) <= 1e-2f, x, 1e-2);
  else
    for (const auto& [name, both] : {std::pair{"dq", dq}, {"dk", dk}})
      h.close("attention_backward " + std::string(name) + at, both, act == DType::bf16 ? 1e-2 : 2e-5);
  h.close("attention_backward dv" + at, dv, act == DType::bf16 ? 1e-2 : 2e-5);
  const std::vector<uint8_t> before_q = h.bytes(dq.gpu), before_k = h.bytes(dk.gpu);
  h.gpu->attention_backward(dout.gpu, q.gpu, k.gpu, v.gpu, out.gpu, lse.gpu, gpu_from, shape, dq.gpu, dk.gpu, dv.gpu,
                            delta.gpu);
  h.verdict("attention_backward twice the same" + at, before_q == h.bytes(dq.gpu) && before_k == h.bytes(dk.gpu), 0, 0);
  h.clear();
}

}  // namespace

void test_attention(Harness& h) {
  for (const DType act : {DType::f32, DType::bf16})
    for (const Case& c :
         {Case{1, 1, 1, 16, 1, 0, 0}, Case{2, 4, 2, 32, 37, 0, 0}, Case{2, 4, 2, 48, 65, 0, 5},
          Case{1, 2, 1, 64, 130, 0, 0}, Case{1, 3, 1, 96, 100, 0, 5}, Case{2, 4, 1, 128, 257, 0, 0},
          Case{1, 4, 2, 128, 300, 0, 5}, Case{1, 2, 2, 256, 40, 0, 0}, Case{1, 8, 2, 128, 384, 0, 0},
          Case{1, 2, 1, 20, 33, 0, 0},
          // More tiles than multiprocessors; samples that begin within tiles, and one as long as the sequence.
          Case{2, 16, 4, 128, 640, 0, 0}, Case{2, 4, 2, 128, 640, 0, 150}, Case{1, 2, 1, 128, 200, 0, 200},
          // Caches: decode, a chunk at an offset, many queries of one group.
          Case{3, 4, 2, 32, 1, 50, 0}, Case{2, 8, 2, 128, 1, 300, 0}, Case{1, 8, 1, 128, 1, 70, 0},
          Case{1, 4, 4, 256, 1, 200, 0}, Case{2, 4, 2, 64, 2, 90, 0}, Case{2, 4, 2, 128, 40, 150, 0},
          Case{1, 16, 1, 128, 1, 100, 0}, Case{1, 4, 2, 128, 129, 300, 0}, Case{1, 8, 2, 128, 1, 5000, 0}}) {
      if (h.small && c.batch * c.heads * c.steps * std::max(c.steps, c.capacity) > 600'000) continue;
      forward(h, c, act);
    }
}

}  // namespace q4::test
