// Throughput of every kernel set that this CPU can run:
//   bazel run //kernels:kernels_benchmark -- --benchmark_filter=Gemm [threads]
// Counters: flops (multiply and add count as two) and bytes of weights or cache per second.
#include <benchmark/benchmark.h>

#include <array>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "kernels/kernel_set.h"

namespace switchyard {
namespace {

using benchmark::Counter;

std::vector<float> Random(size_t n) {
  std::mt19937 rng(1);
  std::vector<float> v(n);
  for (float& f : v) f = static_cast<float>(rng() >> 8) * 0x1p-24f - 0.5f;
  return v;
}

Counter PerSecond(double amount) {
  return Counter(amount, Counter::kIsIterationInvariantRate, Counter::kIs1000);
}

void Gemm(benchmark::State& state, const KernelSet& set, int threads, DType dtype, size_t m,
          size_t n, size_t k) {
  KernelContext ctx(threads);
  const std::vector<float> x = Random(m * k), weight = Random(n * k);
  std::vector<float> y(m * n);
  const PackedWeight w = set.gemm->Pack({weight.data(), DType::kFloat32, n, k}, dtype);
  for (auto _ : state) {
    set.gemm->Gemm(ctx, {x.data(), {m, k}}, w, {y.data(), {m, n}});
    benchmark::ClobberMemory();
  }
  state.counters["flops"] = PerSecond(2.0 * m * n * k);
  state.counters["bytes"] = PerSecond(static_cast<double>(n * k * SizeOf(dtype)));
}

// `rows` rows, spread evenly over the experts; every iteration reads all experts.
void Experts(benchmark::State& state, const KernelSet& set, int threads, size_t experts,
             size_t rows, size_t hidden, size_t width) {
  KernelContext ctx(threads);
  const std::vector<float> x = Random(rows * hidden), weight = Random(hidden * width);
  std::vector<float> out(rows * hidden);
  const WeightView up{weight.data(), DType::kFloat32, width, hidden};
  const WeightView down{weight.data(), DType::kFloat32, hidden, width};
  std::vector<PackedExpert> packed;
  std::vector<const PackedExpert*> pointers;
  std::vector<int32_t> offsets = {0};
  for (size_t e = 0; e < experts; ++e) {
    packed.push_back(set.grouped_gemm->PackExpert(up, up, down, DType::kBfloat16));
    offsets.push_back(static_cast<int32_t>((e + 1) * rows / experts));
  }
  for (const PackedExpert& p : packed) pointers.push_back(&p);
  for (auto _ : state) {
    set.grouped_gemm->ExpertFfn(ctx, {x.data(), {rows, hidden}}, offsets, pointers,
                                {out.data(), {rows, hidden}});
    benchmark::ClobberMemory();
  }
  state.counters["flops"] = PerSecond(6.0 * rows * hidden * width);
  state.counters["bytes"] = PerSecond(6.0 * experts * hidden * width);
}

// `sequences` sequences of `count` new rows that end at position `context`.
void Attention(benchmark::State& state, const KernelSet& set, int threads, AttentionShape shape,
               int sequences, int count, int context) {
  KernelContext ctx(threads);
  shape.scale = 0.1f;
  // A block holds a head's 16 keys, the next head's, …, then the values in the same way.
  const size_t heads = shape.kv_heads, k_head = 16u * shape.qk_dim, v_head = 16u * shape.v_dim;
  const KvAddressing addressing{.dtype = DType::kBfloat16,
                                .block_tokens = 16,
                                .block_stride = heads * (k_head + v_head),
                                .k_offset = 0,
                                .k_head_stride = k_head,
                                .k_token_stride = static_cast<size_t>(shape.qk_dim),
                                .v_offset = heads * k_head,
                                .v_head_stride = v_head,
                                .v_token_stride = static_cast<size_t>(shape.v_dim)};
  const int blocks_each = (context + 15) / 16;
  std::vector<uint16_t> cache(addressing.block_stride * blocks_each * sequences, 0x3f80);
  std::vector<std::vector<int32_t>> tables(sequences);
  std::vector<AttentionSequence> batch;
  for (int s = 0; s < sequences; ++s) {
    for (int b = 0; b < blocks_each; ++b) tables[s].push_back(s * blocks_each + b);
    batch.push_back({s * count, count, context - count, tables[s]});
  }
  const size_t rows = static_cast<size_t>(sequences) * count;
  const size_t q_cols = static_cast<size_t>(shape.heads) * shape.qk_dim;
  const size_t out_cols = static_cast<size_t>(shape.heads) * shape.v_dim;
  const std::vector<float> q = Random(rows * q_cols);
  std::vector<float> out(rows * out_cols);
  for (auto _ : state) {
    set.attention->PagedAttention(ctx, shape, addressing,
                                  reinterpret_cast<const std::byte*>(cache.data()), batch,
                                  {q.data(), {rows, q_cols}}, {out.data(), {rows, out_cols}});
    benchmark::ClobberMemory();
  }
  const double pairs = rows * (context - (count - 1) / 2.0);
  state.counters["flops"] = PerSecond(2.0 * pairs * (q_cols + out_cols));
  state.counters["bytes"] = PerSecond(2.0 * cache.size());
}

void Register(const KernelSet& set, int threads) {
  const auto add = [&](const std::string& name, std::function<void(benchmark::State&)> body) {
    benchmark::RegisterBenchmark((name + "/" + set.name).c_str(), body)->UseRealTime();
  };
  for (const auto& [m, n, k] : {std::array<size_t, 3>{512, 1024, 1024},
                                {512, 4096, 1024},
                                {512, 1024, 4096},
                                {512, 4096, 4096},
                                {64, 4096, 4096},
                                {8, 4096, 4096},
                                {1, 4096, 4096},
                                {1, 50304, 2048}}) {
    for (const DType dtype : {DType::kBfloat16, DType::kFloat32}) {
      const std::string name = "Gemm/" + std::string(Name(dtype)) + "/" + std::to_string(m) + "x" +
                               std::to_string(n) + "x" + std::to_string(k);
      add(name, [=](benchmark::State& s) { Gemm(s, set, threads, dtype, m, n, k); });
    }
  }
  add("Experts/8x1x2048x1024", [=](auto& s) { Experts(s, set, threads, 8, 8, 2048, 1024); });
  add("Experts/64x8x2048x1024", [=](auto& s) { Experts(s, set, threads, 64, 512, 2048, 1024); });
  add("Experts/64x64x2048x1024", [=](auto& s) { Experts(s, set, threads, 64, 4096, 2048, 1024); });
  const AttentionShape gqa{.heads = 32, .kv_heads = 4, .qk_dim = 128, .v_dim = 128};
  const AttentionShape mha{.heads = 16, .kv_heads = 16, .qk_dim = 128, .v_dim = 128};
  const AttentionShape mla{.heads = 16, .kv_heads = 1, .qk_dim = 576, .v_dim = 512};
  for (const auto& [name, shape] : {std::pair{"gqa", gqa}, {"mha", mha}, {"mla", mla}}) {
    const AttentionShape a = shape;
    const std::string prefix = "Attention/" + std::string(name);
    add(prefix + "/prefill1024", [=](auto& s) { Attention(s, set, threads, a, 1, 1024, 1024); });
    add(prefix + "/decode8x2048", [=](auto& s) { Attention(s, set, threads, a, 8, 1, 2048); });
  }
}

}  // namespace
}  // namespace switchyard

int main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);  // takes its own flags out
  const int threads = argc > 1 ? std::atoi(argv[1]) : std::thread::hardware_concurrency();
  if (argc > 2 || threads < 1) {
    std::fprintf(stderr, "usage: %s [--benchmark_...] [threads]\n", argv[0]);
    return 1;
  }
  for (const switchyard::KernelSet& set : switchyard::AvailableKernels()) {
    if (set.name != "reference") switchyard::Register(set, threads);
  }
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}
