#include "harness.h"

namespace q4::test {

void test_elementwise(Harness& h) {
  for (const DType act : {DType::f32, DType::bf16}) {
    const std::string suffix = std::string(" ") + label(act);
    for (const auto& [rows, width] : {std::pair<int64_t, int64_t>{1, 8}, {3, 37}, {17, 64}, {129, 200}}) {
      const std::string at = suffix + " " + std::to_string(rows) + "x" + std::to_string(width);
      for (const DType table_dtype : {DType::f32, DType::f16, DType::bf16}) {
        const Both table = h.normals(table_dtype, {51, width}),
                   ids = h.integers({rows}, [&](int64_t) { return h.below(51); });
        const Both y = h.output(act, {rows, width});
        h.cpu->embedding(table.cpu, ids.cpu, y.cpu);
        h.gpu->embedding(table.gpu, ids.gpu, y.gpu);
        h.close("embedding " + std::string(label(table_dtype)) + at, y, elementwise_bound(act));
      }
      const Both a = h.normals(act, {rows, width}, 2), b = h.normals(act, {rows, width}),
                 d = h.normals(act, {rows, width});
      const Both y = h.output(act, {rows, width}), z = h.output(act, {rows, width});
      h.cpu->add(a.cpu, b.cpu, y.cpu), h.gpu->add(a.gpu, b.gpu, y.gpu);
      h.close("add" + at, y, elementwise_bound(act));
      h.cpu->swiglu(a.cpu, b.cpu, y.cpu), h.gpu->swiglu(a.gpu, b.gpu, y.gpu);
      h.close("swiglu" + at, y, elementwise_bound(act));
      h.cpu->swiglu_backward(d.cpu, a.cpu, b.cpu, y.cpu, z.cpu),
          h.gpu->swiglu_backward(d.gpu, a.gpu, b.gpu, y.gpu, z.gpu);
      h.close("swiglu_backward dgate" + at, y, elementwise_bound(act));
      h.close("swiglu_backward dup" + at, z, elementwise_bound(act));
      h.cpu->swiglu_backward(d.cpu, a.cpu, b.cpu, d.cpu, z.cpu),
          h.gpu->swiglu_backward(d.gpu, a.gpu, b.gpu, d.gpu, z.gpu);
      h.close("swiglu_backward in place" + at, d, elementwise_bound(act));

      const Both chosen = h.integers({5}, [&](int64_t) { return h.below(static_cast<int>(rows)); }),
                 g = h.output(act, {5, width});
      h.cpu->gather_rows(a.cpu, chosen.cpu, g.cpu), h.gpu->gather_rows(a.gpu, chosen.gpu, g.gpu);
      h.close("gather_rows" + at, g, 0);

      for (const bool accumulate : {false, true}) {
        // Few ids, so that most repeat.
        const Both ids = h.integers({rows}, [&](int64_t) { return h.below(5); }),
                   dtable = h.normals(DType::f32, {51, width});
        h.cpu->embedding_backward(a.cpu, ids.cpu, accumulate, dtable.cpu);
        h.gpu->embedding_backward(a.gpu, ids.gpu, accumulate, dtable.gpu);
        h.close("embedding_backward" + at, dtable, 1e-6);
      }
    }
    // A cache: batch 3, two steps, capacity 7; the last row does not fit.
    const int64_t batch = 3, steps = 2, capacity = 7, width = 40;
    const Both k = h.normals(act, {batch * steps, width}), v = h.normals(act, {batch * steps, width});
    const Both k_cache = h.normals(act, {batch * capacity, width}), v_cache = h.normals(act, {batch * capacity, width});
    const Both past = h.integers({batch}, [](int64_t i) { return static_cast<int>(i * 3); });
    h.cpu->kv_append(k.cpu, v.cpu, past.cpu, batch, k_cache.cpu, v_cache.cpu);
    h.gpu->kv_append(k.gpu, v.gpu, past.gpu, batch, k_cache.gpu, v_cache.gpu);
    h.close("kv_append k" + suffix, k_cache, 0);
    h.close("kv_append v" + suffix, v_cache, 0);
  }
  const Both x = h.integers({5}, [](int64_t i) { return static_cast<int>(i * 10); });
  h.cpu->increment(7, 30, x.cpu), h.gpu->increment(7, 30, x.gpu);
  h.close("increment", x, 0);

  for (const DType from : {DType::f32, DType::bf16, DType::f16})
    for (const DType to : {DType::f32, DType::bf16, DType::f16}) {
      const Both in = h.normals(from, {3, 333}), out = h.output(to, {3, 333});
      const Tensor want = h.on(*h.cpu, to, {3, 333});
      Tensor in_cpu = h.on(*h.cpu, from, {3, 333});
      h.cpu->cast(in.cpu, in_cpu), h.cpu->cast(in_cpu, want), h.gpu->cast(in.gpu, out.gpu);
      h.same("cast " + std::string(label(from)) + " " + label(to), want, out.gpu,
             out.gpu.elements() * element_bytes(to));
    }
  for (const DType to : {DType::f32, DType::bf16, DType::i32}) {
    const Both out = h.output(to, {777});
    h.cpu->fill(-3, out.cpu), h.gpu->fill(-3, out.gpu);
    h.close(std::string("fill ") + label(to), out, 0);
  }
  const Both noise = h.output(DType::f32, {1003});
  h.cpu->random_normal(0x123456789abcdefull, 3, 0.02f, noise.cpu),
      h.gpu->random_normal(0x123456789abcdefull, 3, 0.02f, noise.gpu);
  h.close("random_normal", noise, 1e-6);
  h.clear();
}

}  // namespace q4::test
