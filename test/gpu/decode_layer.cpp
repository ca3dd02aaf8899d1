// Ops that the backend fuses in a decode step, against the same ops one at a time (a synchronize between two of them keeps
// them apart): everything that memory holds afterwards must agree, also where the arena gives one place to two tensors.
#include <algorithm>

#include "harness.h"

namespace q4::test {

namespace {

struct Layer {
  Tensor q, k, v, o, gate, up, down, norm, head_norm;
};

// The cache that attention meets: its size, whether it is full (the new key is then dropped), whether sequences begin late.
struct Cache {
  int64_t capacity;
  bool full, late;
};

void run_layer(Harness& h, const Layer& l, int64_t dim, bool apart, int64_t batch, const Cache& cache, bool reuse,
               const std::string& name) {
  const int64_t capacity = cache.capacity;
  const int64_t hidden = l.q.cols(), heads = l.q.rows() / dim, kv_heads = l.k.rows() / dim, inner = l.gate.rows();
  Backend& g = *h.gpu;
  struct State {
    std::vector<Tensor> kept;  // what must agree
    std::vector<const char*> names;
  } states[2];
  std::vector<float> x0(batch * hidden), branch0(batch * hidden), cache0(batch * capacity * kv_heads * dim);
  for (auto* values : {&x0, &branch0, &cache0})
    for (float& value : *values) value = h.normal();
  for (int fused = 0; fused < 2; ++fused) {
    const auto act = [&](int64_t width, const std::vector<float>* from = nullptr) {
      const Tensor t = h.on(g, DType::bf16, {batch, width});
      if (!from) return t;
      std::vector<uint16_t> halves(from->size());
      for (size_t i = 0; i < halves.size(); ++i) halves[i] = f32_to_bf16((*from)[i]);
      g.upload(t.data, halves.data(), static_cast<int64_t>(halves.size()) * 2);
      return t;
    };
    const auto place = [&](const Tensor& like, int64_t width) {  // another tensor in the same memory
      Tensor t = like;
      t.dims[1] = width;
      return t;
    };
    const Tensor x = act(hidden, &x0), branch = act(hidden, &branch0),
                 space = act(std::max({hidden, inner, heads * dim})), y = place(space, hidden);
    const Tensor q = act(heads * dim), q_rotated = act(heads * dim),
                 k = reuse ? place(q, kv_heads * dim) : act(kv_heads * dim), k_rotated = act(kv_heads * dim);
    const Tensor v = reuse ? place(q, kv_heads * dim) : act(kv_heads * dim),
                 out = reuse ? place(space, heads * dim) : act(heads * dim);
    const Tensor gate = act(inner), up = act(inner),
                 activated = !reuse      ? act(inner)
                             : batch < 3 ? gate
                                         : place(space, inner),
                 result = act(hidden), result2 = act(hidden);
    // Nobody reads a norm's rstd when nothing is trained: the arena gives its place away at once.
    const auto rstd_in = [&](const Tensor& other) {
      Tensor t = other;
      t.dtype = DType::f32, t.rank = 1, t.dims = {batch, 1, 1, 1};
      return t;
    };
    const Tensor own_rstd = h.on(g, DType::f32, {batch}), rstd = reuse ? rstd_in(q) : own_rstd,
                 mlp_rstd = reuse ? rstd_in(gate) : own_rstd, q_rstd = h.on(g, DType::f32, {batch, heads}),
                 k_rstd = h.on(g, DType::f32, {batch, kv_heads}), lse = h.on(g, DType::f32, {batch, heads});
    Tensor k_cache = h.on(g, DType::bf16, {batch * capacity, kv_heads * dim}),
           v_cache = h.on(g, DType::bf16, {batch * capacity, kv_heads * dim});
    const Tensor past = h.on(g, DType::i32, {batch});
    std::vector<int32_t> pasts(batch);
    for (int64_t b = 0; b < batch; ++b)
      pasts[b] = static_cast<int32_t>(cache.full ? capacity + b : (capacity - 1) * (b + 1) / (batch + 1));
    g.upload(past.data, pasts.data(), batch * 4);
    // What is not there yet is not a number.
    std::vector<uint16_t> halves(cache0.size());
    for (int64_t i = 0, row_elements = kv_heads * dim; i < static_cast<int64_t>(halves.size()); ++i) {
      const int64_t row = i / row_elements;
      halves[i] = row % capacity < pasts[row / capacity] ? f32_to_bf16(cache0[i]) : 0x7fc0;
    }
    g.upload(k_cache.data, halves.data(), static_cast<int64_t>(halves.size()) * 2),
        g.upload(v_cache.data, halves.data(), static_cast<int64_t>(halves.size()) * 2);
    const Tensor from = cache.late ? h.on(g, DType::i32, {batch}) : Tensor{};
    std::vector<int32_t> firsts(batch);
    for (int64_t b = 0; b < batch; ++b) firsts[b] = std::min(pasts[b], static_cast<int32_t>(capacity)) * 2 / 3;
    if (from) g.upload(from.data, firsts.data(), batch * 4);
    const auto next = [&] {
      if (!fused || apart) g.synchronize();
    };
    const Tensor none;
    g.add_rms_norm(x, branch, l.norm, 1e-6f, x, y, rstd), next();
    g.linear(y, l.q, q), next();
    g.head_norm_rope(q, l.head_norm, past, dim, 1e-6f, 1e6, q_rotated, q_rstd), next();
    g.linear(y, l.k, k), next();
    g.head_norm_rope(k, l.head_norm, past, dim, 1e-6f, 1e6, k_rotated, k_rstd), next();
    g.linear(y, l.v, v), next();
    g.kv_append(k_rotated, v, past, batch, k_cache, v_cache), next();
    g.attention(q_rotated, k_cache, v_cache, from, past, {batch, heads, kv_heads, dim}, out, lse, none), next();
    g.linear(out, l.o, result), next();
    g.add_rms_norm(x, result, l.norm, 1e-6f, result, y, mlp_rstd), next();
    g.linear(y, l.gate, gate), next();
    g.linear(y, l.up, up), next();
    g.swiglu(gate, up, activated), next();
    g.linear(activated, l.down, result2), next();
    g.synchronize();
    states[fused] = {
        {x, q_rotated, k_rotated, q_rstd, lse, k_cache, v_cache, result, up, activated, result2},
        {"x", "q_rotated", "k_rotated", "q_rstd", "lse", "k_cache", "v_cache", "sum", "up", "activated", "result"}};
    if (!reuse)
      for (const auto& [tensor, label] :
           {std::pair{q, "q"}, {k, "k"}, {v, "v"}, {out, "out"}, {gate, "gate"}, {y, "y"}, {rstd, "rstd"}})
        states[fused].kept.push_back(tensor), states[fused].names.push_back(label);
  }
  for (size_t i = 0; i < states[0].kept.size(); ++i) {
    const std::vector<float> one = h.read(states[0].kept[i]), other = h.read(states[1].kept[i]);
    double error = 0, norm = 0;
    for (size_t j = 0; j < one.size(); ++j)
      if (!std::isnan(one[j]) || !std::isnan(other[j]))
        error += (one[j] - other[j]) * (one[j] - other[j]), norm += one[j] * one[j];
    // Products are summed in another order and attention's weights are rounded to bf16: some results fall on the next bf16
    // number, and are then read by later ops of the layer.
    const double relative = std::sqrt(error / std::max(norm, 1e-30));
    h.verdict(name + " " + states[0].names[i], relative <= 8e-3, relative, 8e-3);
  }
}

// A stack of layers as a program, run plainly, recorded and replayed, against its layers one by one: a chain with more phases
// than a block holds at a time, and after an op that is no part of it another, which ends with the program.
void run_stack(Harness& h, const Layer& l, int64_t dim, int64_t batch, const std::string& name) {
  constexpr int kLayers = 10, kCut = 9;
  const int64_t hidden = l.q.cols(), heads = l.q.rows() / dim, kv_heads = l.k.rows() / dim, inner = l.gate.rows(),
                capacity = 48;
  Backend& g = *h.gpu;
  const auto act = [&](int64_t width) { return h.on(g, DType::bf16, {batch, width}); };
  const Tensor x = act(hidden), branch = act(hidden), y = act(hidden), q = act(heads * dim),
               q_rotated = act(heads * dim), k = act(kv_heads * dim), k_rotated = act(kv_heads * dim),
               v = act(kv_heads * dim), out = act(heads * dim), gate = act(inner), up = act(inner),
               activated = act(inner);
  const Tensor rstd = h.on(g, DType::f32, {batch}), q_rstd = h.on(g, DType::f32, {batch, heads}),
               k_rstd = h.on(g, DType::f32, {batch, kv_heads}), lse = h.on(g, DType::f32, {batch, heads}),
               past = h.on(g, DType::i32, {batch}), other = h.on(g, DType::i32, {batch}), none;
  std::vector<Tensor> caches(kLayers * 2);
  for (Tensor& cache : caches) cache = h.on(g, DType::bf16, {batch * capacity, kv_heads * dim});
  const auto random = [&](const Tensor& t) {
    std::vector<uint16_t> halves(t.elements());
    for (uint16_t& half : halves) half = f32_to_bf16(h.normal());
    return halves;
  };
  const std::vector<uint16_t> x0 = random(x), branch0 = random(branch), cache0 = random(caches[0]);
  const auto set = [&](const Tensor& t, const std::vector<uint16_t>& halves) {
    g.upload(t.data, halves.data(), static_cast<int64_t>(halves.size()) * 2);
  };
  std::vector<int32_t> pasts(batch);
  for (int64_t b = 0; b < batch; ++b) pasts[b] = static_cast<int32_t>((capacity - 1) * (b + 1) / (batch + 1));
  g.upload(past.data, pasts.data(), batch * 4);

  const uint64_t program = 7000 + static_cast<uint64_t>(batch);
  std::vector<float> first;
  for (const char* how : {"one by one", "plain", "recorded", "replayed", "replayed again"}) {
    set(x, x0), set(branch, branch0);
    for (const Tensor& cache : caches) set(cache, cache0);
    const bool apart = first.empty();
    if (h.small && how[0] == 'r') break;
    if (apart || g.begin_run(program, false))
      for (int i = 0; i < kLayers; ++i) {
        if (i == kCut) g.increment(1, 1 << 20, other);
        g.add_rms_norm(x, branch, l.norm, 1e-6f, x, y, rstd);
        g.linear(y, l.q, q), g.head_norm_rope(q, l.head_norm, past, dim, 1e-6f, 1e6, q_rotated, q_rstd);
        g.linear(y, l.k, k), g.head_norm_rope(k, l.head_norm, past, dim, 1e-6f, 1e6, k_rotated, k_rstd);
        g.linear(y, l.v, v), g.kv_append(k_rotated, v, past, batch, caches[i * 2], caches[i * 2 + 1]);
        g.attention(q_rotated, caches[i * 2], caches[i * 2 + 1], none, past, {batch, heads, kv_heads, dim}, out, lse,
                    none);
        g.linear(out, l.o, branch);
        g.add_rms_norm(x, branch, l.norm, 1e-6f, x, y, rstd);
        g.linear(y, l.gate, gate), g.linear(y, l.up, up), g.swiglu(gate, up, activated);
        g.linear(activated, l.down, branch);
        if (apart) g.synchronize();
      }
    if (!apart) g.end_run(program);
    g.synchronize();
    std::vector<float> all;
    for (const Tensor& t : {x, branch, caches[kLayers * 2 - 2], caches[kLayers * 2 - 1]}) {
      const std::vector<float> values = h.read(t);
      all.insert(all.end(), values.begin(), values.end());
    }
    double different = 0;
    for (size_t i = 0; i < first.size(); ++i) different += all[i] != first[i];
    if (!apart) h.verdict(name + " " + how, different == 0, different, 0);
    if (apart) first = all;
  }
  g.forget(program);
}

// What a step begins and ends with, embedding, norm, head, count and greedy choice, in one chain, plainly, recorded and
// replayed, against the ops one by one.
void run_choice(Harness& h, int64_t hidden, int64_t vocabulary, int64_t batch, float penalty, DType table_dtype) {
  const std::string name = "choice H" + std::to_string(hidden) + " V" + std::to_string(vocabulary) + " B" +
                           std::to_string(batch) + " penalty " + std::to_string(penalty) + " of " +
                           dtype_name(table_dtype);
  Backend& g = *h.gpu;
  constexpr int kTokens = 40;
  const Tensor table = h.normals(table_dtype, {kTokens, hidden}).gpu, x = h.on(g, DType::bf16, {batch, hidden}),
               norm = h.normals(DType::f32, {hidden}).gpu, head = h.nvfp4(vocabulary, hidden).gpu,
               y = h.on(g, DType::bf16, {batch, hidden}), none;
  const float settings[8] = {1, 0, 1, 0, penalty, 0, 0, 0};
  const Tensor sampling = h.make(DType::f32, {batch, 8}, [&](int64_t i) { return settings[i % 8]; }).gpu,
               rng = h.integers({batch, 2}, [](int64_t) { return 1; }).gpu, rstd = h.on(g, DType::f32, {batch});
  std::vector<uint8_t> marks(batch * vocabulary);
  for (uint8_t& mark : marks) mark = h.below(3) == 0;
  std::vector<int32_t> first(batch), tokens(batch);
  for (int64_t b = 0; b < batch; ++b) first[b] = static_cast<int32_t>(5 * b), tokens[b] = h.below(kTokens);
  const Tensor logits = h.on(g, DType::f32, {batch, vocabulary}), seen = h.on(g, DType::u8, {batch, vocabulary}),
               past = h.on(g, DType::i32, {batch}), ids = h.on(g, DType::i32, {batch});
  const uint64_t program = 7100 + static_cast<uint64_t>(batch);
  std::vector<float> apart, plain, embedded;  // logits; rows of the table
  for (const char* how : {"one by one", "plain", "recorded", "replayed", "replayed again"}) {
    if (h.small && how[0] == 'r') break;
    const auto next = [&] {
      if (apart.empty()) g.synchronize();
    };
    g.upload(seen.data, marks.data(), static_cast<int64_t>(marks.size())), g.upload(past.data, first.data(), batch * 4);
    g.upload(ids.data, tokens.data(), batch * 4);
    const std::vector<uint8_t> poison(static_cast<size_t>(tensor_bytes(logits)), 0xff);
    g.upload(logits.data, poison.data(), static_cast<int64_t>(poison.size()));
    if (apart.empty() || g.begin_run(program, false)) {
      g.embedding(table, ids, x), next();
      g.rms_norm(x, norm, 1e-6f, y, rstd), next();
      g.linear(y, head, logits), next();
      g.increment(1, 60, past), next();
      g.sample(logits, sampling, rng, past, true, seen, ids, none);
    }
    if (!apart.empty()) g.end_run(program);
    g.start_download(0, ids.data, batch * 4);
    const auto* const told = static_cast<const int32_t*>(g.finish_download(0));
    g.synchronize();
    // The choice is that of these very logits.
    const std::vector<float> got = h.read(logits), chosen = h.read(ids), counted = h.read(past),
                             seen_now = h.read(seen);
    const std::vector<float> rows = h.read(x);
    if (embedded.empty()) embedded = rows;
    int wrong = rows != embedded;
    for (int64_t b = 0; b < batch; ++b) {
      wrong += static_cast<float>(told[b]) != chosen[b];
      int64_t best = 0;
      const auto penalised = [&](int64_t i) {
        const float v = got[b * vocabulary + i];
        return !marks[b * vocabulary + i] ? v : v > 0 ? v / penalty : v * penalty;
      };
      for (int64_t i = 1; i < vocabulary; ++i)
        if (penalised(i) > penalised(best)) best = i;
      wrong += chosen[b] != static_cast<float>(best);
      wrong += counted[b] != static_cast<float>(std::min(first[b] + 1, 60));
      for (int64_t i = 0; i < vocabulary; ++i)
        wrong += seen_now[b * vocabulary + i] != static_cast<float>(marks[b * vocabulary + i] || i == best);
    }
    h.verdict(name + " " + how, wrong == 0, wrong, 0);
    if (apart.empty()) {
      apart = got;
      continue;
    }
    double error = 0, square = 0, different = 0;
    for (size_t i = 0; i < got.size(); ++i) {
      error += (got[i] - apart[i]) * (got[i] - apart[i]), square += apart[i] * apart[i];
      if (!plain.empty()) different += got[i] != plain[i];
    }
    const double relative = std::sqrt(error / square);
    h.verdict(name + " logits " + how, relative <= 8e-3, relative, 8e-3);
    h.verdict(name + " bytes " + how, different == 0, different, 0);
    if (plain.empty()) plain = got;
  }
  g.forget(program);
  h.clear();
}

// Products in a row, without norms, as one chain, or as many as it takes, against one by one.
void run_products(Harness& h, int64_t width, int64_t batch) {
  constexpr int kProducts = 7, kTimes = 5;
  Backend& g = *h.gpu;
  std::vector<Tensor> weights, x;
  for (int i = 0; i < kProducts; ++i) weights.push_back(h.nvfp4(width, width).gpu);
  x.push_back(h.normals(DType::bf16, {batch, width}).gpu);
  for (int i = 0; i < kProducts; ++i) x.push_back(h.on(g, DType::bf16, {batch, width}));
  std::vector<std::vector<float>> apart;
  for (int i = 0; i < kProducts; ++i) {
    g.linear(x[i], weights[i], x[i + 1]);
    g.synchronize();
    apart.push_back(h.read(x[i + 1]));
  }
  double worst = 0;
  for (int time = 0; time < kTimes; ++time) {
    for (int i = 0; i < kProducts; ++i) g.linear(x[i], weights[i], x[i + 1]);
    g.synchronize();
    for (int i = 0; i < kProducts; ++i) {
      const std::vector<float> got = h.read(x[i + 1]);
      double error = 0, square = 0;
      for (size_t j = 0; j < got.size(); ++j)
        error += (got[j] - apart[i][j]) * (got[j] - apart[i][j]), square += apart[i][j] * apart[i][j];
      worst = std::max(worst, std::sqrt(error / square));
    }
  }
  h.verdict("products in a row H" + std::to_string(width) + " B" + std::to_string(batch), worst <= 8e-3, worst, 8e-3);
  h.clear();
}

}  // namespace

void test_decode_layer(Harness& h) {
  struct Shape {
    int64_t hidden, inner, heads, kv_heads, dim;
  };
  // One has odd numbers of tiles. Of the last two one has several groups of rows for every block of the streamed products,
  // the other more groups of the residual than an H100 or H200 has blocks, so that some keep two.
  for (const Shape& s : {Shape{256, 320, 4, 2, 64},
                         {160, 1056, 4, 2, 64},
                         {512, 512, 8, 1, 128},
                         {768, 1280, 6, 2, 128},
                         {512, 9728, 16, 4, 128},
                         {2560, 768, 8, 2, 128}})
    for (const int64_t batch : {int64_t{1}, int64_t{2}, int64_t{3}, int64_t{8}, int64_t{16}})
      for (const bool reuse : {false, true}) {
        if (s.inner > 5000 && (reuse || batch > 3)) continue;  // quantised on the CPU: takes seconds
        if (h.small && (s.inner > 5000 || s.hidden > 1000) && batch != 1) continue;
        Layer l;
        const auto matrix = [&](int64_t outputs, int64_t inputs) { return h.nvfp4(outputs, inputs).gpu; };
        l.q = matrix(s.heads * s.dim, s.hidden), l.k = matrix(s.kv_heads * s.dim, s.hidden),
        l.v = matrix(s.kv_heads * s.dim, s.hidden);
        l.o = matrix(s.hidden, s.heads * s.dim), l.gate = matrix(s.inner, s.hidden), l.up = matrix(s.inner, s.hidden),
        l.down = matrix(s.hidden, s.inner);
        // Weights of heads' norms are kept small: scores of a sharp softmax would make much of a bf16 rounding of q.
        l.norm = h.normals(DType::f32, {s.hidden}).gpu, l.head_norm = h.normals(DType::f32, {s.dim}, 0.5f).gpu;
        const std::string name = "decode layer H" + std::to_string(s.hidden) + " D" + std::to_string(s.dim) + " B" +
                                 std::to_string(batch) + (reuse ? " reused" : "");
        run_layer(h, l, s.dim, false, batch, {700, false, false}, reuse, name);
        if (s.kv_heads == 1 && !reuse) {
          run_layer(h, l, s.dim, false, batch, {3000, false, false}, reuse, name + " long");
          run_layer(h, l, s.dim, false, batch, {700, false, true}, reuse, name + " late");
          run_layer(h, l, s.dim, false, batch, {300, true, false}, reuse, name + " full");
          if (!h.small || batch % 15 == 1) {
            // All of whose keys and values a block stages.
            run_layer(h, l, s.dim, false, batch, {200, false, true}, reuse, name + " short late");
            run_layer(h, l, s.dim, false, batch, {200, true, false}, reuse, name + " short full");
            run_stack(h, l, s.dim, batch, name + " stack");
          }
        }
        h.clear();
      }
  for (const int64_t batch : {int64_t{2}, int64_t{3}, int64_t{16}}) run_products(h, h.small ? 256 : 768, batch);
  // With fewer groups of rows than blocks, more, and some that are not whole.
  for (const int64_t vocabulary : {int64_t{1000}, int64_t{4123}})
    for (const int64_t batch : {int64_t{1}, int64_t{2}, int64_t{3}, int64_t{8}, int64_t{16}})
      for (const float penalty : {1.0f, 1.5f})
        if (!h.small || (vocabulary == 1000 && batch % 8 < 3 && penalty > 1))
          run_choice(h, h.small ? 256 : 512, vocabulary, batch, penalty,
                     batch % 3 == 0   ? DType::f32
                     : batch % 2 == 0 ? DType::f16
                                      : DType::bf16);
}

}  // namespace q4::test
