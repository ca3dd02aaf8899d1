#include "core/nvfp4.h"
#include "harness.h"

namespace q4::test {

void test_optimizer(Harness& h) {
  for (const DType dtype : {DType::f32, DType::bf16})
    for (const int64_t n : {1, 37, 4096, 1000003}) {
      if (h.small && n > 4096 && dtype == DType::bf16) continue;
      const std::string at = std::string(" ") + label(dtype) + " " + std::to_string(n);
      const Both x = h.normals(dtype, {n}), partials = h.normals(DType::f32, {5}), largest = h.normals(DType::f32, {5});
      for (int twice = 0; twice < 2; ++twice) {
        h.cpu->sum_squares(x.cpu, 3, partials.cpu), h.gpu->sum_squares(x.gpu, 3, partials.gpu);
        h.close("sum_squares" + at, partials, 1e-5);
        h.cpu->amax(x.cpu, 2, largest.cpu), h.gpu->amax(x.gpu, 2, largest.gpu);
        h.close("amax" + at, largest, 0);
      }
      h.clear();
    }
  // More in a row than one launch takes, then ones that read or write what others wrote or read.
  {
    const int64_t sizes[] = {1, 37, 32768, 40000, 4104, 65537, 8};
    const Both sums = h.make(DType::f32, {h.small ? 9 : 150}, [](int64_t) { return 0.0f; });
    std::vector<Both> xs;
    for (int64_t i = 0; i < sums.cpu.elements(); ++i)
      xs.push_back(h.normals(i % 3 ? DType::bf16 : DType::f32, {sizes[i % 7]}, static_cast<float>(1 + i % 5)));
    const auto run = [&](Backend& b, Tensor Both::*side) {
      for (size_t i = 0; i < xs.size(); ++i) b.sum_squares(xs[i].*side, static_cast<int64_t>(i), sums.*side);
      b.sum_squares(sums.*side, 4, sums.*side);
      b.sum_squares(xs[7].*side, 5, sums.*side), b.sum_squares(xs[3].*side, 5, sums.*side);
      b.add(xs[3].*side, xs[3].*side, xs[3].*side);
      b.sum_squares(xs[3].*side, 6, sums.*side);
    };
    run(*h.cpu, &Both::cpu), run(*h.gpu, &Both::gpu);
    h.close("sum_squares in a row", sums, 1e-5);
    h.clear();
  }
  for (const float max_norm : {0.0f, 1.0f, 1e6f}) {
    const Both partials = h.make(DType::f32, {403}, [&](int64_t) { return h.uniform(0, 3); });
    const Both loss = h.make(DType::f32, {1}, [](int64_t) { return 2.5f; }), stats = h.output(DType::f32, {4});
    h.cpu->grad_stats(partials.cpu, loss.cpu, max_norm, stats.cpu),
        h.gpu->grad_stats(partials.gpu, loss.gpu, max_norm, stats.gpu);
    h.close("grad_stats " + std::to_string(max_norm), stats, 1e-6);
  }
  const Both infinite = h.make(DType::f32, {1}, [](int64_t) { return INFINITY; }),
             ones = h.make(DType::f32, {3}, [](int64_t) { return 1.0f; });
  const Both refused = h.output(DType::f32, {4});
  h.gpu->grad_stats(ones.gpu, infinite.gpu, 1, refused.gpu);
  h.verdict("grad_stats refuses an infinite loss", h.read(refused.gpu)[2] == 0, h.read(refused.gpu)[2], 0);

  for (const DType grad_dtype : {DType::f32, DType::bf16})
    for (const DType master_dtype : {DType::f32, DType::bf16})
      for (const int64_t n : {5, 4096, 100003})
        for (const bool applied : {true, false}) {
          if (h.small && n > 4096) continue;
          const std::string at = std::string(" ") + label(grad_dtype) + " " + label(master_dtype) + " " +
                                 std::to_string(n) + (applied ? "" : " not applied");
          const Both grad = h.normals(grad_dtype, {n}, 0.01f), m = h.normals(DType::f32, {n}, 0.01f);
          const Both v = h.make(DType::f32, {n}, [&](int64_t) { return h.uniform(0, 1e-3f); });
          const Both stats =
              h.make(DType::f32, {4}, [&](int64_t i) { return i == 2 ? (applied ? 1.0f : 0.0f) : 0.7f; });
          const float hyper_values[8] = {1e-3f, 0.9f, 0.95f, 1e-8f, 0.1f, 0.271f, 0.142625f, 0};
          const Both hyper = h.make(DType::f32, {8}, [&](int64_t i) { return hyper_values[i]; });
          const Both rng = h.integers({4}, [](int64_t i) { return static_cast<int>(i * 77 + 5); });
          // The CPU's master has the GPU's dtype here: stochastic rounding must agree bit by bit.
          const Both master = h.normals(master_dtype, {n}, 0.05f);
          Tensor cpu_master = h.on(*h.cpu, master_dtype, {n});
          h.cpu->cast(master.cpu, cpu_master);
          h.cpu->adamw(grad.cpu, stats.cpu, hyper.cpu, rng.cpu, true, 9, cpu_master, m.cpu, v.cpu);
          h.gpu->adamw(grad.gpu, stats.gpu, hyper.gpu, rng.gpu, true, 9, master.gpu, m.gpu, v.gpu);
          h.cpu->cast(cpu_master, master.cpu);
          // Rounding up or down turns on the last bits of the fp32 value: a few elements may fall on the other side.
          h.close("adamw master" + at, master, master_dtype == DType::bf16 ? 1e-4 : 1e-6);
          h.close("adamw m" + at, m, 1e-6);
          h.close("adamw v" + at, v, 1e-6);
          // The fused op leaves the same bytes, and the amax of what it leaves.
          const Tensor other = h.copy(master.gpu, *h.gpu), other_m = h.copy(m.gpu, *h.gpu),
                       other_v = h.copy(v.gpu, *h.gpu);
          const Both largest = h.normals(DType::f32, {3});
          h.gpu->adamw(grad.gpu, stats.gpu, hyper.gpu, rng.gpu, true, 9, other, other_m, other_v);
          for (int twice = 0; twice < 2; ++twice)
            h.gpu->adamw_amax(grad.gpu, stats.gpu, hyper.gpu, rng.gpu, true, 9, 1, master.gpu, m.gpu, v.gpu,
                              largest.gpu);
          h.gpu->adamw(grad.gpu, stats.gpu, hyper.gpu, rng.gpu, true, 9, other, other_m, other_v);
          const Tensor left = h.copy(other, *h.cpu);
          h.same("adamw_amax master" + at, left, master.gpu, n * element_bytes(master_dtype));
          h.same("adamw_amax m" + at, h.copy(other_m, *h.cpu), m.gpu, n * 4);
          h.same("adamw_amax v" + at, h.copy(other_v, *h.cpu), v.gpu, n * 4);
          h.cpu->amax(left, 1, largest.cpu);
          h.close("adamw_amax amax" + at, largest, 0);
          h.clear();
        }
}

void test_nvfp4(Harness& h) {
  for (const DType dtype : {DType::f32, DType::bf16})
    for (const int kind : {0, 1, 2, 3, 4, 5})
      for (const bool two_level : {true, false}) {
        // 0 normal, 1 halves of codes (every tie), 2 zeros, 3 tiny, 4 huge, 5 ties of odd steps and their neighbours.
        const int64_t rows = 37, cols = 48;
        const char* names[] = {"normal", "ties", "zero", "tiny", "huge", "near ties"};
        const auto near_tie = [](int64_t i) {
          const float global = 0x1.5fp-10f, ties[] = {0.25f, 0.75f, 1.25f, 1.75f, 2.5f, 3.5f, 5.0f};
          const int64_t block = i / 16, j = i % 16;
          // The first block's scale is the largest, so that `global` comes out of the amax.
          const float step = e4m3_to_f32(static_cast<uint8_t>(kE4m3MaxBits - block % 0x70)) * global;
          if (j == 0) return 6 * step;
          const uint32_t tie = f32_bits(ties[j % 7] * step) + static_cast<uint32_t>((block / 7 + j / 7) % 5) - 2u;
          return block % 2 ? -bits_f32(tie) : bits_f32(tie);
        };
        const std::string at =
            std::string(" ") + label(dtype) + " " + names[kind] + (two_level ? " two-level" : " single");
        const Both master = h.make(dtype, {rows, cols}, [&](int64_t i) {
          return kind == 0   ? 0.05f * h.normal()
                 : kind == 1 ? 0.25f * static_cast<float>(h.below(49) - 24)
                 : kind == 2 ? 0.0f
                 : kind == 3 ? 1e-30f * h.normal()
                 : kind == 4 ? 1e30f * h.normal()
                             : near_tie(i);
        });
        const Both largest = h.make(DType::f32, {3}, [](int64_t) { return 0.0f; });
        const Both old = h.nvfp4(rows, cols), changed = h.integers({4}, [](int64_t i) { return static_cast<int>(i); });
        h.cpu->amax(master.cpu, 1, largest.cpu), h.gpu->amax(master.gpu, 1, largest.gpu);
        const Tensor none;
        h.cpu->quantize_nvfp4(master.cpu, two_level ? largest.cpu : none, {0, 3}, 2, old.cpu, changed.cpu);
        h.gpu->quantize_nvfp4(master.gpu, two_level ? largest.gpu : none, {0, 3}, 2, old.gpu, changed.gpu);
        const Nvfp4Layout layout = nvfp4_layout(rows, cols);
        h.same("quantize codes, scales, global" + at, old.cpu, old.gpu, layout.code_bytes);
        Tensor cpu_scales = old.cpu, gpu_scales = old.gpu;
        cpu_scales.data = old.cpu.scale, gpu_scales.data = old.gpu.scale;
        h.same("quantize scales" + at, cpu_scales, gpu_scales, layout.scale_bytes);
        cpu_scales.data = old.cpu.global_scale, gpu_scales.data = old.gpu.global_scale;
        h.same("quantize global" + at, cpu_scales, gpu_scales, 4);
        h.close("quantize changed" + at, changed, 0);
        for (const DType out_dtype : {DType::f32, DType::bf16}) {
          const Both y = h.output(out_dtype, {rows, cols});
          const Tensor want = h.on(*h.cpu, out_dtype, {rows, cols});
          h.cpu->dequantize_nvfp4(old.cpu, want), h.gpu->dequantize_nvfp4(old.gpu, y.gpu);
          h.same("dequantize" + at, want, y.gpu, rows * cols * element_bytes(out_dtype));
        }
        const Both other = h.nvfp4(rows, cols);
        h.cpu->count_changed(old.cpu, other.cpu, 1, changed.cpu),
            h.gpu->count_changed(old.gpu, other.gpu, 1, changed.gpu);
        h.close("count_changed" + at, changed, 0);
        h.clear();
      }
}

void test_sampling(Harness& h) {
  struct Settings {
    float temperature, top_k, top_p, min_p, penalty;
  };
  for (const int64_t vocabulary : {7, 1000, 20011})
    for (const Settings& s : {Settings{0, 0, 1, 0, 1}, Settings{1, 0, 1, 0, 1}, Settings{0.7f, 20, 1, 0, 1},
                              Settings{1.3f, 0, 0.9f, 0, 1.2f}, Settings{0.8f, 50, 0.95f, 0.02f, 1.1f},
                              Settings{1, 0, 1, 0.1f, 1}, Settings{1, 0, 1e-6f, 0, 1}, Settings{1, 1, 1, 0, 1}})
      for (const bool tied : {false, true}) {
        if (h.small && tied && vocabulary > 7) continue;
        const int64_t batch = h.small ? 2 : 8;
        const std::string at = " V" + std::to_string(vocabulary) + " T" + std::to_string(s.temperature) + " k" +
                               std::to_string(s.top_k) + " p" + std::to_string(s.top_p) + " m" +
                               std::to_string(s.min_p) + (tied ? " tied" : "");
        const Both logits = h.make(DType::f32, {batch, vocabulary},
                                   [&](int64_t) { return tied ? static_cast<float>(h.below(4)) : 3 * h.normal(); });
        const float values[8] = {s.temperature, s.top_k, s.top_p, s.min_p, s.penalty, 0, 0, 0};
        const Both sampling = h.make(DType::f32, {batch, 8}, [&](int64_t i) { return values[i % 8]; });
        const Both rng = h.integers({batch, 2}, [&](int64_t) { return h.below(1 << 20); });
        const Both seen =
            h.make(DType::u8, {batch, vocabulary}, [&](int64_t) { return h.below(10) == 0 ? 1.0f : 0.0f; });
        const Both ids = h.output(DType::i32, {batch}), scratch = h.output(DType::f32, {16});
        int differing = 0, draws = 0;
        for (int step = 0; step < (h.small ? 1 : 6); ++step) {
          const Both past = h.integers({batch}, [&](int64_t) { return step; });
          const bool greedy = step == 5;  // whatever the temperature
          h.cpu->sample(logits.cpu, sampling.cpu, rng.cpu, past.cpu, greedy, seen.cpu, ids.cpu, scratch.cpu);
          h.gpu->sample(logits.gpu, sampling.gpu, rng.gpu, past.gpu, greedy, seen.gpu, ids.gpu, scratch.gpu);
          const std::vector<float> got = h.read(ids.gpu);
          for (int64_t b = 0; b < batch; ++b) differing += got[b] != ids.cpu.i32()[b], ++draws;
          // Both go on from the same state.
          h.gpu->upload(seen.gpu.data, seen.cpu.data, batch * vocabulary);
        }
        h.verdict("sample" + at, differing == 0, differing, 0);
        h.clear();
      }
}

// Recording and replaying, cancelling while recording, memory refused with a code, sessions opened and closed.
void test_machinery(Harness& h) {
  const Both a = h.normals(DType::f32, {100}), b = h.normals(DType::f32, {100});
  const Both counter = h.integers({3}, [](int64_t) { return 0; });
  for (int run = 0; run < 5; ++run) {
    if (h.gpu->begin_run(901, false)) {
      h.gpu->add(a.gpu, b.gpu, a.gpu);
      h.gpu->add(a.gpu, b.gpu, a.gpu);
    }
    h.gpu->end_run(901);
    h.cpu->add(a.cpu, b.cpu, a.cpu), h.cpu->add(a.cpu, b.cpu, a.cpu);
  }
  h.close("five runs, three of them replayed", a, 1e-6);
  h.gpu->forget(901);
  for (int run = 0; run < 2; ++run) {
    try {
      if (h.gpu->begin_run(902, false)) {
        h.gpu->add(a.gpu, b.gpu, a.gpu);
        if (run == 1) throw Error("Q4501", "cancelled");
      }
      h.gpu->end_run(902);
      h.cpu->add(a.cpu, b.cpu, a.cpu);
    } catch (const Error&) {
      h.gpu->end_run(902);
    }
  }
  h.gpu->synchronize();
  h.close("a run cancelled while it is recorded does nothing", a, 1e-6);
  if (h.gpu->begin_run(902, false)) h.gpu->add(a.gpu, b.gpu, a.gpu);
  h.gpu->end_run(902), h.cpu->add(a.cpu, b.cpu, a.cpu);
  h.close("and is recorded the next time", a, 1e-6);
  h.gpu->forget(902);

  std::string code;
  try {
    h.gpu->release(h.gpu->allocate(int64_t{1} << 45));
  } catch (const Error& error) {
    code = error.code();
  }
  h.verdict("32 TiB are refused with Q4401", code == "Q4401", 0, 0);

  // In two parts, from the middle of two buffers.
  for (const int slot : {0, 1}) {
    auto* staged = static_cast<char*>(h.gpu->staging(slot, 1000));
    std::memcpy(staged + 256 * slot, b.cpu.f32() + 50 * slot, 200);
    h.gpu->upload_staged(a.gpu.f32() + 50 * slot, slot, 256 * slot, 200);
  }
  h.gpu->synchronize();
  h.close("staging", {b.cpu, a.gpu}, 0);

  // What later work writes does not reach a result that is on its way already.
  for (int step = 0; step < 6; ++step) {
    h.gpu->increment(1, 1000, counter.gpu);
    h.gpu->start_download(step % 2, counter.gpu.data, 12);
    if (step == 0) continue;
    int32_t got[3];
    std::memcpy(got, h.gpu->finish_download((step - 1) % 2), 12);
    h.verdict("a result read while the next step runs", got[0] == step && got[1] == step && got[2] == step, got[0],
              step);
  }

  const int64_t before = h.gpu->info().free_bytes;
  for (int i = 0; i < (h.small ? 3 : 50); ++i) make_cuda_backend({})->allocate(1 << 20);
  const int64_t lost = before - h.gpu->info().free_bytes;
  // Of the whole device: in small sizes, tests run beside each other.
  if (!h.small)
    h.verdict("sessions opened and closed leave no memory behind", lost <= 8 << 20, static_cast<double>(lost), 8 << 20);
  h.clear();
}

}  // namespace q4::test
