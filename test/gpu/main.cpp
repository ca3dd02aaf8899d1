// Every op of the CUDA backend against the CPU's scalar reference, then (with --bench) the hot ones against measured roofs.
//   q4gpu_test [--verbose] [--bench] [--only NAME] [--small] [--list]
// --small leaves out the sizes that only make a kernel do more of the same: for compute-sanitizer, under which a kernel
// takes a hundred times as long (test/gpu/sanitize.ts). --list prints the names of the tests.
#include <cstring>

#include "harness.h"

int main(int argc, char** argv) {
  using namespace q4::test;
  std::setvbuf(stdout, nullptr, _IOLBF, 0);
  bool bench = false, verbose = false, small = false, list = false;
  const char* only = nullptr;
  for (int i = 1; i < argc; ++i) {
    if (!std::strcmp(argv[i], "--bench"))
      bench = true;
    else if (!std::strcmp(argv[i], "--verbose"))
      verbose = true;
    else if (!std::strcmp(argv[i], "--small"))
      small = true;
    else if (!std::strcmp(argv[i], "--list"))
      list = true;
    else if (!std::strcmp(argv[i], "--only") && i + 1 < argc)
      only = argv[++i];
  }
  const std::pair<const char*, void (*)(Harness&)> tests[] = {{"elementwise", test_elementwise},
                                                              {"norms", test_norms},
                                                              {"linear", test_linear},
                                                              {"losses", test_losses},
                                                              {"attention", test_attention},
                                                              {"optimizer", test_optimizer},
                                                              {"nvfp4", test_nvfp4},
                                                              {"sampling", test_sampling},
                                                              {"decode_layer", test_decode_layer},
                                                              {"machinery", test_machinery}};
  if (list) {
    for (const auto& [name, body] : tests) std::printf("%s\n", name);
    return 0;
  }
  try {
    Harness h;
    h.verbose = verbose;
    h.small = small;
    std::printf("device: %s, %s\n", h.gpu->info().name.c_str(), h.gpu->info().instructions.c_str());
    const std::pair<const char*, void (*)(Harness&)> benches[] = {
        {"attention", bench_attention}, {"training", bench_training}, {"decode", bench_decode}};
    const auto run = [&](const char* name, void (*body)(Harness&)) {
      if (only && std::strcmp(only, name)) return;
      const int before = h.failed;
      h.seed(7);
      try {
        body(h);
      } catch (const q4::Error& error) {
        std::printf("FAIL %s threw %s: %s\n", name, error.code().c_str(), error.what());
        ++h.failed;
        if (error.code() == "Q4701") throw;
      }
      std::printf("%-12s %s (%d passed so far)\n", name, h.failed == before ? "ok" : "FAILED", h.passed);
      std::fflush(stdout);
    };
    if (!bench)
      for (const auto& [name, body] : tests) run(name, body);
    else {
      bench_roofs(h);
      for (const auto& [name, body] : benches)
        if (only || std::strcmp(name, "attention")) run(name, body);  // training measures it too
    }
    std::printf("%d passed, %d failed\n", h.passed, h.failed);
    if (only && !h.passed && !h.failed && !bench) std::printf("there is no test '%s'\n", only);
    return h.failed || (!bench && !h.passed) ? 1 : 0;
  } catch (const q4::Error& error) {
    std::printf("stopped by %s: %s\n", error.code().c_str(), error.what());
    return 2;
  }
}
