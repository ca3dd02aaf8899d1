#include "harness.h"

namespace q4::test {

void test_norms(Harness& h) {
  for (const DType act : {DType::f32, DType::bf16})
    for (const auto& [rows, width] : {std::pair<int64_t, int64_t>{1, 16}, {5, 37}, {33, 320}, {700, 2560}}) {
      if (h.small && rows > 100) continue;
      const std::string at = std::string(" ") + label(act) + " " + std::to_string(rows) + "x" + std::to_string(width);
      const Both x = h.normals(act, {rows, width}), branch = h.normals(act, {rows, width}),
                 weight = h.normals(DType::f32, {width});
      const Both y = h.output(act, {rows, width}), sum = h.output(act, {rows, width}),
                 rstd = h.output(DType::f32, {rows});
      h.cpu->rms_norm(x.cpu, weight.cpu, 1e-6f, y.cpu, rstd.cpu),
          h.gpu->rms_norm(x.gpu, weight.gpu, 1e-6f, y.gpu, rstd.gpu);
      h.close("rms_norm y" + at, y, elementwise_bound(act));
      h.close("rms_norm rstd" + at, rstd, 1e-5);
      h.cpu->add_rms_norm(x.cpu, branch.cpu, weight.cpu, 1e-6f, sum.cpu, y.cpu, rstd.cpu);
      h.gpu->add_rms_norm(x.gpu, branch.gpu, weight.gpu, 1e-6f, sum.gpu, y.gpu, rstd.gpu);
      h.close("add_rms_norm sum" + at, sum, elementwise_bound(act));
      h.close("add_rms_norm y" + at, y, act == DType::bf16 ? 6e-3 : 1e-5);
      for (const bool accumulate : {false, true}) {
        const Both dy = h.normals(act, {rows, width}), residual = h.normals(act, {rows, width});
        const Both dx = h.output(act, {rows, width}), dweight = h.normals(DType::f32, {width});
        h.cpu->rms_norm(x.cpu, weight.cpu, 1e-6f, y.cpu, rstd.cpu),
            h.gpu->rms_norm(x.gpu, weight.gpu, 1e-6f, y.gpu, rstd.gpu);
        h.cpu->rms_norm_backward(dy.cpu, x.cpu, weight.cpu, rstd.cpu, residual.cpu, accumulate, dx.cpu, dweight.cpu,
                                 Tensor{});
        h.gpu->rms_norm_backward(dy.gpu, x.gpu, weight.gpu, rstd.gpu, residual.gpu, accumulate, dx.gpu, dweight.gpu,
                                 Tensor{});
        h.close("rms_norm_backward dx" + at, dx, elementwise_bound(act));
        h.close("rms_norm_backward dweight" + at, dweight, 1e-5);
        // In place of the residual, without one, and without dweight.
        h.gpu->rms_norm_backward(dy.gpu, x.gpu, weight.gpu, rstd.gpu, residual.gpu, accumulate, residual.gpu, Tensor{},
                                 Tensor{});
        h.close("rms_norm_backward in place" + at, {dx.cpu, residual.gpu}, elementwise_bound(act));
      }
    }
  for (const DType act : {DType::f32, DType::bf16})
    for (const auto& [rows, heads, dim] : {std::tuple<int64_t, int64_t, int64_t>{1, 1, 16},
                                           {7, 3, 48},
                                           {65, 5, 128},
                                           {400, 32, 128},
                                           {3, 2, 256},
                                           {9, 2, 20}}) {
      if (h.small && rows > 100) continue;
      const std::string at = std::string(" ") + label(act) + " " + std::to_string(rows) + "x" + std::to_string(heads) +
                             "x" + std::to_string(dim);
      const int64_t width = heads * dim;
      const Both x = h.normals(act, {rows, width}), weight = h.normals(DType::f32, {dim});
      const Both positions = h.integers({rows}, [&](int64_t) { return h.below(4000); });
      const Both y = h.output(act, {rows, width}), rstd = h.output(DType::f32, {rows, heads});
      h.cpu->head_norm_rope(x.cpu, weight.cpu, positions.cpu, dim, 1e-6f, 5e6, y.cpu, rstd.cpu);
      h.gpu->head_norm_rope(x.gpu, weight.gpu, positions.gpu, dim, 1e-6f, 5e6, y.gpu, rstd.gpu);
      h.close("head_norm_rope y" + at, y, act == DType::bf16 ? 6e-3 : 1e-5);
      h.close("head_norm_rope rstd" + at, rstd, 1e-5);
      for (const bool accumulate : {false, true}) {
        const Both dy = h.normals(act, {rows, width}), dx = h.output(act, {rows, width}),
                   dweight = h.normals(DType::f32, {dim});
        h.cpu->head_norm_rope_backward(dy.cpu, x.cpu, weight.cpu, rstd.cpu, positions.cpu, dim, 5e6, accumulate, dx.cpu,
                                       dweight.cpu, Tensor{});
        h.gpu->head_norm_rope_backward(dy.gpu, x.gpu, weight.gpu, rstd.gpu, positions.gpu, dim, 5e6, accumulate, dx.gpu,
                                       dweight.gpu, Tensor{});
        h.close("head_norm_rope_backward dx" + at, dx, elementwise_bound(act));
        h.close("head_norm_rope_backward dweight" + at, dweight, 1e-5);
      }
    }
  h.clear();
}

}  // namespace q4::test
