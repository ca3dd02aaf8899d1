#include "harness.h"

namespace q4::test {

void test_linear(Harness& h) {
  for (const DType act : {DType::f32, DType::bf16})
    for (const DType weight_dtype : {DType::nvfp4, DType::f32, DType::bf16, DType::f16})
      // Rows, outputs, inputs; inputs of 16, 48 and 80 are no multiple of 32.
      for (const auto& [n, o, k] :
           {std::tuple<int64_t, int64_t, int64_t>{1, 5, 16},
            {1, 37, 96},
            {1, 300, 2560},
            {5, 33, 160},
            {8, 48, 256},
            {9, 64, 1056},
            {16, 100, 4096},
            {17, 33, 80},
            {130, 200, 320},
            {64, 48, 48},
            // Many groups of rows for each block.
            {1, 9000, 256},
            {3, 4001, 320},
            // With 132 multiprocessors a decode step splits the width into five pieces, not all as wide.
            {3, 1424, 4864}}) {
        if (h.small && n * o * k > 2'500'000) continue;
        if (n * o * k > 20'000'000 && weight_dtype != DType::nvfp4) continue;  // takes seconds on the CPU
        const std::string at = std::string(" ") + label(act) + " " + label(weight_dtype) + " " + std::to_string(n) +
                               "x" + std::to_string(o) + "x" + std::to_string(k);
        const Both x = h.normals(act, {n, k}), w = h.weight(weight_dtype, o, k), dy = h.normals(act, {n, o});
        Tensor w_cpu = w.cpu;
        const Both y = h.output(act, {n, o}), y32 = h.output(DType::f32, {n, o});
        h.cpu->linear(x.cpu, w_cpu, y.cpu), h.gpu->linear(x.gpu, w.gpu, y.gpu);
        h.close("linear" + at, y, product_bound(act));
        h.cpu->linear(x.cpu, w_cpu, y32.cpu), h.gpu->linear(x.gpu, w.gpu, y32.gpu);
        // An f16 or f32 weight is rounded to bf16 for bf16 activations; one or two rows against an NVFP4 weight take 12 bits.
        const bool rounded = weight_dtype == DType::f32 || weight_dtype == DType::f16;
        h.close("linear to f32" + at, y32,
                act != DType::bf16 ? 1e-5
                : rounded          ? 5e-3
                                   : (n <= 2 && weight_dtype == DType::nvfp4 ? 5e-4 : 1e-5));
        for (const bool accumulate : {false, true}) {
          const Both dx = h.normals(act, {n, k}), dw = h.normals(DType::f32, {o, k}),
                     dw16 = h.normals(DType::bf16, {o, k});
          h.cpu->linear_dgrad(dy.cpu, w_cpu, accumulate, dx.cpu),
              h.gpu->linear_dgrad(dy.gpu, w.gpu, accumulate, dx.gpu);
          h.close("linear_dgrad" + at, dx, product_bound(act));
          if (weight_dtype != DType::nvfp4) continue;  // wgrad has no weight
          h.cpu->linear_wgrad(dy.cpu, x.cpu, accumulate, dw.cpu),
              h.gpu->linear_wgrad(dy.gpu, x.gpu, accumulate, dw.gpu);
          h.close("linear_wgrad f32" + at, dw, 1e-5);
          if (act == DType::bf16) {
            h.cpu->linear_wgrad(dy.cpu, x.cpu, accumulate, dw16.cpu),
                h.gpu->linear_wgrad(dy.gpu, x.gpu, accumulate, dw16.gpu);
            h.close("linear_wgrad bf16" + at, dw16, product_bound(DType::bf16));
          }
        }
        h.clear();
      }
}

void test_losses(Harness& h) {
  for (const DType act : {DType::f32, DType::bf16})
    for (const DType weight_dtype : {DType::nvfp4, DType::f32, DType::bf16})
      for (const auto& [n, width, vocabulary] : {std::tuple<int64_t, int64_t, int64_t>{1, 32, 7},
                                                 {13, 64, 101},
                                                 {70, 96, 1000},
                                                 {3, 32, 2049},
                                                 {5, 32, 20008}})
        // Rows of scratch: from one row of logits to all of them beside the whole weight.
        for (const int64_t chunk : {int64_t{1}, int64_t{5}, n, width + n}) {
          if ((chunk > n && chunk < width) || (h.small && n > 4 * chunk)) continue;
          const std::string at = std::string(" ") + label(act) + " " + label(weight_dtype) + " " + std::to_string(n) +
                                 "x" + std::to_string(width) + "x" + std::to_string(vocabulary) + " by " +
                                 std::to_string(chunk);
          const Both x = h.normals(act, {n, width}), w = h.weight(weight_dtype, vocabulary, width);
          const Both labels = h.integers(
              {n}, [&](int64_t i) { return n > 1 && i % 4 == 1 ? -100 : h.below(static_cast<int>(vocabulary)); });
          const Both scale = h.make(DType::f32, {1}, [&](int64_t) { return 1.0f / static_cast<float>(n); });
          const Both scratch = h.output(DType::f32, {chunk, vocabulary});
          for (const bool accumulate : {false, true}) {
            const Both loss = h.normals(DType::f32, {1}), dx = h.output(act, {n, width}),
                       dw = h.normals(DType::f32, {vocabulary, width});
            h.cpu->linear_cross_entropy(x.cpu, w.cpu, labels.cpu, scale.cpu, accumulate, loss.cpu, dx.cpu, dw.cpu,
                                        scratch.cpu);
            h.gpu->linear_cross_entropy(x.gpu, w.gpu, labels.gpu, scale.gpu, accumulate, loss.gpu, dx.gpu, dw.gpu,
                                        scratch.gpu);
            // Logits are fp32 from bf16 operands: only an f32 weight is rounded on the way.
            const bool exact = act == DType::f32 || weight_dtype != DType::f32;
            h.close("cross_entropy loss" + at, loss, exact ? 2e-5 : 5e-3);
            h.close("cross_entropy dx" + at, dx, act == DType::f32 ? 2e-5 : 1e-2);
            h.close("cross_entropy dweight" + at, dw, act == DType::f32 ? 2e-5 : 1e-2);
          }
          const Both loss = h.normals(DType::f32, {1});
          h.cpu->linear_cross_entropy(x.cpu, w.cpu, labels.cpu, scale.cpu, false, loss.cpu, Tensor{}, Tensor{},
                                      scratch.cpu);
          h.gpu->linear_cross_entropy(x.gpu, w.gpu, labels.gpu, scale.gpu, false, loss.gpu, Tensor{}, Tensor{},
                                      scratch.gpu);
          h.close("cross_entropy loss alone" + at, loss, 5e-3);
          h.clear();
        }
  for (const DType act : {DType::f32, DType::bf16}) {
    const Both x = h.normals(act, {33, 50}), target = h.normals(DType::f32, {33, 50}), dx = h.output(act, {33, 50});
    const Both scale = h.make(DType::f32, {1}, [](int64_t) { return 1.0f / 1650; }), loss = h.normals(DType::f32, {1});
    h.cpu->l1_loss(x.cpu, target.cpu, scale.cpu, true, loss.cpu, dx.cpu),
        h.gpu->l1_loss(x.gpu, target.gpu, scale.gpu, true, loss.gpu, dx.gpu);
    h.close(std::string("l1_loss ") + label(act), loss, 1e-5);
    h.close(std::string("l1_loss dx ") + label(act), dx, elementwise_bound(act));
  }
  h.clear();
}

}  // namespace q4::test
