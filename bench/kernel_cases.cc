#include "bench/kernel_cases.h"

#include <algorithm>
#include <array>
#include <random>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "kvcache/layout.h"

namespace switchyard {
namespace {

// Weights of a case at least, taken in turns: several times a last-level cache.
constexpr size_t kColdBytes = size_t{128} << 20;

std::vector<float> Random(size_t n) {
  std::mt19937 rng(1);
  std::vector<float> v(n);
  for (float& f : v) f = static_cast<float>(rng() >> 8) * 0x1p-24f - 0.5f;
  return v;
}

Ceiling ArithmeticOf(const cpu::Isa& isa, WeightFormat format) {
  if (IsInteger(format) && isa.vnni) return Ceiling::kInt8Dot;
  return format == WeightFormat::kBfloat16 && isa.dot ? Ceiling::kBf16Dot : Ceiling::kFloat32Fma;
}

KernelCaseFactory Gemm(WeightFormat format, size_t m, size_t n, size_t k) {
  const std::string shape = absl::StrFormat("%dx%dx%d", m, n, k);
  const std::string kernel = absl::StrCat("gemm/", std::string(Name(format)));
  const auto make = [=](const KernelSet& set, const cpu::Isa& isa) {
    struct Data {
      std::vector<float> x, y;
      std::vector<PackedWeight> weights;
      size_t turn = 0;
    };
    const auto data = std::make_shared<Data>();
    data->x = Random(m * k);
    data->y.resize(m * n);
    const std::vector<float> weight = Random(n * k);
    for (size_t bytes = 0; bytes < kColdBytes;
         bytes += static_cast<size_t>(BytesPerWeight(format) * static_cast<double>(n * k))) {
      data->weights.push_back(set.gemm->Pack({weight.data(), DType::kFloat32, n, k}, format));
    }
    KernelCase c{kernel, shape, ArithmeticOf(isa, format), 2.0 * m * n * k, 0, {}};
    c.bytes = BytesPerWeight(format) * static_cast<double>(n * k) + 4.0 * m * (n + k);
    c.call = [=, gemm = set.gemm](KernelContext& ctx) {
      gemm->Gemm(ctx, {data->x.data(), {m, k}}, data->weights[data->turn],
                 {data->y.data(), {m, n}});
      data->turn = (data->turn + 1) % data->weights.size();
    };
    return c;
  };
  return {kernel + "/" + shape, make};
}

// `tokens` tokens on `top_k` of `experts` experts each: rows spread evenly.
KernelCaseFactory Experts(WeightFormat format, size_t tokens, size_t experts, size_t top_k,
                          size_t hidden, size_t width) {
  const std::string shape =
      absl::StrFormat("%d tokens, %d of %d, %dx%d", tokens, top_k, experts, width, hidden);
  const std::string kernel = absl::StrCat("experts/", std::string(Name(format)));
  const auto make = [=](const KernelSet& set, const cpu::Isa& isa) {
    const size_t rows = tokens * top_k, busy = std::min(rows, experts);
    struct Data {
      std::vector<float> x, out;
      std::vector<PackedExpert> packed;
      std::vector<const PackedExpert*> table;
      std::vector<int32_t> offsets = {0};
      size_t turn = 0;
    };
    const auto data = std::make_shared<Data>();
    data->x = Random(rows * hidden);
    data->out.resize(rows * hidden);
    const std::vector<float> weight = Random(hidden * width);
    const WeightView up{weight.data(), DType::kFloat32, width, hidden};
    const WeightView down{weight.data(), DType::kFloat32, hidden, width};
    const double each = BytesPerWeight(format) * static_cast<double>(3 * hidden * width);
    for (size_t e = 0; e < busy || static_cast<double>(e) * each < kColdBytes; ++e) {
      data->packed.push_back(set.grouped_gemm->PackExpert(up, up, down, format));
    }
    for (size_t e = 0; e < busy; ++e) {
      data->offsets.push_back(static_cast<int32_t>((e + 1) * rows / busy));
    }
    data->table.resize(busy);
    KernelCase c{kernel, shape, ArithmeticOf(isa, format), 6.0 * rows * hidden * width, 0, {}};
    c.bytes = static_cast<double>(busy) * each + 8.0 * rows * hidden;
    c.call = [=, ffn = set.grouped_gemm](KernelContext& ctx) {
      for (const PackedExpert*& e : data->table) {
        e = &data->packed[data->turn];
        data->turn = (data->turn + 1) % data->packed.size();
      }
      ffn->ExpertFfn(ctx, Matrix<const float>(data->x.data(), {rows, hidden}), {}, data->offsets,
                     data->table, Matrix<float>(data->out.data(), {rows, hidden}));
    };
    return c;
  };
  return {kernel + "/" + shape, make};
}

// `sequences` sequences of `count` new rows that end at position `context`.
KernelCaseFactory Attention(const std::string& kind, KvLayout layout, int heads, int sequences,
                            int count, int context) {
  const std::string shape = absl::StrFormat("%dx%d at %d", sequences, count, context);
  const auto make = [=](const KernelSet& set, const cpu::Isa& isa) {
    struct Data {
      std::vector<float> q, out;
      std::unique_ptr<KvStorage> kv;
      std::vector<std::vector<int32_t>> tables;
      std::vector<AttentionSequence> batch;
      int turn = 0;
    };
    const auto data = std::make_shared<Data>();
    const int blocks = layout.BlocksFor(context) * sequences;
    KvLayout cold = layout;
    cold.layers = static_cast<int>(kColdBytes / (layout.BlockBytes() * blocks)) + 1;
    data->kv = std::make_unique<KvStorage>(cold, blocks);
    std::mt19937 rng(1);
    auto* cache = reinterpret_cast<Bf16*>(data->kv->Layer(0));
    for (size_t i = 0; i < layout.BlockBytes() / 2 * blocks * cold.layers; ++i) {
      cache[i] = ToBf16(static_cast<float>(rng() >> 8) * 0x1p-24f - 0.5f);
    }
    // Blocks as they lie after some time of serving: in no order.
    std::vector<int32_t> order(blocks);
    for (int b = 0; b < blocks; ++b) order[b] = b;
    std::shuffle(order.begin(), order.end(), rng);
    data->tables.resize(sequences);
    for (int b = 0; b < blocks; ++b) data->tables[b % sequences].push_back(order[b]);
    for (int s = 0; s < sequences; ++s) {
      data->batch.push_back({s * count, count, context - count, data->tables[s]});
    }
    const AttentionShape dims{heads, layout.kv_heads, layout.k_dim, layout.v_dim, 0.1f};
    const size_t rows = static_cast<size_t>(sequences) * count;
    const size_t q_cols = static_cast<size_t>(heads) * layout.k_dim;
    const size_t out_cols = static_cast<size_t>(heads) * layout.v_dim;
    data->q = Random(rows * q_cols);
    data->out.resize(rows * out_cols);
    const double pairs = rows * (context - (count - 1) / 2.0);
    KernelCase c{"attention/" + kind,
                 shape,
                 ArithmeticOf(isa, FormatOf(layout.dtype)),
                 2.0 * pairs * (q_cols + out_cols),
                 0,
                 {}};
    c.bytes = 1.0 * layout.BlockBytes() * blocks + 4.0 * rows * (q_cols + out_cols);
    c.call = [=, attention = set.attention](KernelContext& ctx) {
      attention->PagedAttention(ctx, dims, layout.Addressing(), data->kv->Layer(data->turn),
                                data->batch, {data->q.data(), {rows, q_cols}},
                                {data->out.data(), {rows, out_cols}});
      data->turn = (data->turn + 1) % data->kv->layout().layers;
    };
    return c;
  };
  return {absl::StrCat("attention/", kind, "/", shape), make};
}

}  // namespace

std::vector<KernelCaseFactory> AllKernelCases() {
  std::vector<KernelCaseFactory> cases;
  constexpr auto kFloat32 = WeightFormat::kFloat32;
  for (const auto format : {WeightFormat::kBfloat16, WeightFormat::kInt8, WeightFormat::kInt4}) {
    for (const size_t m : {1, 4, 8, 16, 32, 128, 512, 2048}) {
      cases.push_back(Gemm(format, m, 2048, 1024));
    }
    for (const size_t m : {1, 8, 32}) cases.push_back(Gemm(format, m, 32000, 1024));
    for (const size_t m : {1, 32, 512}) cases.push_back(Gemm(format, m, 4096, 4096));
    for (const size_t tokens : {1, 4, 8, 32, 128, 512}) {
      cases.push_back(Experts(format, tokens, 32, 8, 1024, 512));
    }
  }
  for (const size_t m : {1, 512}) cases.push_back(Gemm(kFloat32, m, 2048, 1024));
  KvLayout gqa{KvLayout::Kind::kGqa, 1, 4, 128, 128};
  KvLayout mla{KvLayout::Kind::kMla, 1, 1, 576, 512};
  for (const auto& [kind, layout] : {std::pair{"gqa", gqa}, {"mla", mla}}) {
    for (const auto& [sequences, count, context] : {std::array{1, 1, 512},
                                                    {1, 1, 8192},
                                                    {8, 1, 512},
                                                    {32, 1, 512},
                                                    {1, 512, 512},
                                                    {1, 512, 4096}}) {
      cases.push_back(Attention(kind, layout, 16, sequences, count, context));
    }
  }
  return cases;
}

}  // namespace switchyard
