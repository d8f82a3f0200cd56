#include "model/weights.h"

#include <algorithm>
#include <atomic>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "common/status_macros.h"
#include "model/tensor_parts.h"

namespace switchyard {
namespace {

class Loader {
 public:
  Loader(const WeightSource& source, const ModelConfig& config, const KernelSet& kernels,
         ComputePool& pool, const LoadWeightsOptions& options)
      : source_(source), c_(config), kernels_(kernels), pool_(pool), options_(options) {}

  absl::StatusOr<ModelWeights> Load() {
    ModelWeights w;
    const uint64_t vocab = c_.vocab_size, hidden = c_.hidden_size;
    RETURN_IF_ERROR(Embedding(w));
    ASSIGN_OR_RETURN(w.final_norm, Vector("model.norm.weight", hidden));
    const WeightFormat head = FormatOf(options_.dtype);
    if (c_.tie_word_embeddings) {
      const WeightView tied{w.embedding.data(), w.embedding_dtype, vocab, hidden};
      ASSIGN_OR_RETURN(w.head, CachedOne("lm_head.weight", head, vocab, hidden,
                                         [&] { return kernels_.gemm->Pack(tied, head); }));
    } else {
      ASSIGN_OR_RETURN(w.head, Packed("lm_head.weight", Whole(vocab), hidden, head));
    }
    const auto report = [&](size_t total) {
      if (options_.progress) options_.progress(done_, std::max(total, done_.load()));
    };
    for (int l = 0; l < c_.layers; ++l) {
      LayerWeights& layer = w.layers.emplace_back();
      ASSIGN_OR_RETURN(layer, Layer(l));
      if (options_.on_layer) RETURN_IF_ERROR(options_.on_layer(l, &layer));
      source_.Release();
      report(source_.total_bytes());
    }
    report(0);
    if (options_.cache != nullptr) options_.cache->MoveToHugePages();
    return w;
  }

  absl::StatusOr<PackedExpert> RoutedExpert(int layer, int32_t id) {
    return Expert(absl::StrCat("model.layers.", layer, ".", std::string(c_.moe_names.block),
                               ".experts.", id, "."),
                  c_.moe_intermediate_size, c_.moe_names);
  }

 private:
  // Of projections and experts.
  WeightFormat format() const { return options_.quantization.value_or(FormatOf(options_.dtype)); }

  absl::StatusOr<LoadedTensor> Get(const std::string& name, std::initializer_list<uint64_t> shape) {
    auto tensor = source_.Get(name, shape);
    if (tensor.ok()) done_ += BytesOf(tensor->view);
    return tensor;
  }

  absl::StatusOr<std::vector<float>> Vector(const std::string& name, uint64_t size) {
    ASSIGN_OR_RETURN(const LoadedTensor t, Get(name, {size}));
    std::vector<float> out(size);
    if (t.view.dtype == DType::kFloat32) {
      std::memcpy(out.data(), t.view.data, size * sizeof(float));
    } else {
      const Bf16* from = static_cast<const Bf16*>(t.view.data);
      for (uint64_t i = 0; i < size; ++i) out[i] = ToFloat(from[i]);
    }
    return out;
  }

  PackedShape ShapeOf(WeightFormat format, uint64_t n, uint64_t k) const {
    return {format, n, k, kernels_.gemm->PackedBytes(format, n, k)};
  }

  // What `pack` returns, weights of `shapes`, unless the cache has it. A name is of one thing on
  // all ranks: where a rank packs a part of a tensor, it says which.
  absl::StatusOr<std::vector<PackedWeight>> Cached(
      const std::string& name, std::span<const PackedShape> shapes,
      FunctionRef<absl::StatusOr<std::vector<PackedWeight>>()> pack) {
    if (options_.cache == nullptr) return pack();
    if (auto kept = options_.cache->Read(name, shapes)) {
      for (const PackedShape& s : shapes) done_ += s.n * s.k * sizeof(Bf16);
      return *std::move(kept);
    }
    ASSIGN_OR_RETURN(std::vector<PackedWeight> weights, pack());
    options_.cache->Write(name, weights);
    return weights;
  }

  absl::StatusOr<PackedWeight> CachedOne(const std::string& name, WeightFormat format, uint64_t n,
                                         uint64_t k,
                                         FunctionRef<absl::StatusOr<PackedWeight>()> pack) {
    const PackedShape shape = ShapeOf(format, n, k);
    const auto one = [&]() -> absl::StatusOr<std::vector<PackedWeight>> {
      std::vector<PackedWeight> weights(1);
      ASSIGN_OR_RETURN(weights[0], pack());
      return weights;
    };
    ASSIGN_OR_RETURN(std::vector<PackedWeight> weights, Cached(name, {&shape, 1}, one));
    return std::move(weights[0]);
  }

  // Of n: [begin, begin + count).
  struct Part {
    uint64_t n, begin, count;
    // What the cache calls that part of a tensor.
    std::string NameOf(const std::string& tensor) const {
      return count == n ? tensor : absl::StrCat(tensor, ".", begin, "-", begin + count, "-of-", n);
    }
  };
  static Part Whole(uint64_t n) { return {n, 0, n}; }
  // Of n = heads · width: those of this rank's query heads.
  Part HeadsPart(uint64_t width) const {
    return {c_.heads * width, options_.heads.first_head * width, options_.heads.heads * width};
  }

  // Some of a tensor's outputs.
  absl::StatusOr<PackedWeight> Packed(const std::string& name, const Part& p, uint64_t k,
                                      WeightFormat format) {
    return CachedOne(p.NameOf(name), format, p.count, k, [&]() -> absl::StatusOr<PackedWeight> {
      ASSIGN_OR_RETURN(const LoadedTensor t, Get(name, {p.n, k}));
      return kernels_.gemm->Pack(RowsOf(t.view, p.begin, p.count), format);
    });
  }
  absl::StatusOr<PackedWeight> Packed(const std::string& name, const Part& p, uint64_t k) {
    return Packed(name, p, k, format());
  }

  // As the checkpoint has it. From the cache too: a mapped checkpoint counts as our memory.
  absl::Status Embedding(ModelWeights& w) {
    const std::string name = "model.embed_tokens.weight";
    ASSIGN_OR_RETURN(LoadedTensor t, Get(name, {static_cast<uint64_t>(c_.vocab_size),
                                                static_cast<uint64_t>(c_.hidden_size)}));
    w.embedding_dtype = t.view.dtype;
    if (t.owned.size() == 0) {
      const PackedShape shape{FormatOf(t.view.dtype), t.view.n, t.view.k, BytesOf(t.view)};
      const auto copy = [&] {
        std::vector<PackedWeight> copied;
        copied.push_back({AlignedBuffer(shape.bytes), shape.format, shape.n, shape.k});
        std::memcpy(copied[0].bytes.data(), t.view.data, shape.bytes);
        return copied;
      };
      ASSIGN_OR_RETURN(std::vector<PackedWeight> copied, Cached(name, {&shape, 1}, copy));
      t.owned = std::move(copied[0].bytes);
    }
    w.embedding = std::move(t.owned);
    return absl::OkStatus();
  }

  // The bias of `layer`, empty if the model has none.
  absl::StatusOr<std::vector<float>> Bias(const std::string& layer, const Part& p) {
    if (!c_.attention_bias) return std::vector<float>();
    ASSIGN_OR_RETURN(const std::vector<float> all, Vector(layer + ".bias", p.n));
    return std::vector<float>(all.begin() + p.begin, all.begin() + p.begin + p.count);
  }

  absl::StatusOr<PackedExpert> Expert(const std::string& prefix, uint64_t width,
                                      const MoeTensorNames& names = {}) {
    const uint64_t hidden = c_.hidden_size;
    const auto matrix = [&](std::string_view name, uint64_t n, uint64_t k) {
      return Get(absl::StrCat(prefix, std::string(name), ".weight"), {n, k});
    };
    const auto pack = [&]() -> absl::StatusOr<std::vector<PackedWeight>> {
      ASSIGN_OR_RETURN(const LoadedTensor gate, matrix(names.gate, width, hidden));
      ASSIGN_OR_RETURN(const LoadedTensor up, matrix(names.up, width, hidden));
      ASSIGN_OR_RETURN(const LoadedTensor down, matrix(names.down, hidden, width));
      PackedExpert e = kernels_.grouped_gemm->PackExpert(gate.view, up.view, down.view, format());
      std::vector<PackedWeight> weights;
      weights.push_back(std::move(e.gate_up));
      weights.push_back(std::move(e.down));
      return weights;
    };
    const PackedShape shapes[] = {
        ShapeOf(format(), kernels_.grouped_gemm->GateUpRows(width), hidden),
        ShapeOf(format(), hidden, width)};
    ASSIGN_OR_RETURN(std::vector<PackedWeight> weights, Cached(prefix + "ffn", shapes, pack));
    return PackedExpert{std::move(weights[0]), std::move(weights[1]), hidden, width};
  }

  absl::StatusOr<LayerWeights> Layer(int l) {
    const std::string prefix = absl::StrCat("model.layers.", l, ".");
    LayerWeights w;
    ASSIGN_OR_RETURN(w.input_norm, Vector(prefix + "input_layernorm.weight", c_.hidden_size));
    ASSIGN_OR_RETURN(w.post_norm,
                     Vector(prefix + "post_attention_layernorm.weight", c_.hidden_size));
    const bool mla = c_.attention == ModelConfig::Attention::kMla;
    RETURN_IF_ERROR(
        (mla ? Mla(prefix + "self_attn.", w.attention) : Gqa(prefix + "self_attn.", w.attention)));
    RETURN_IF_ERROR(c_.layer_is_moe[l]
                        ? Moe(l, absl::StrCat(prefix, std::string(c_.moe_names.block), "."), w)
                        : Dense(prefix + "mlp.", w));
    w.MakeTable();
    return w;
  }

  absl::Status Gqa(const std::string& prefix, AttentionWeights& w) {
    const uint64_t hidden = c_.hidden_size, dim = c_.head_dim;
    const HeadShare& h = options_.heads;
    const Part q = HeadsPart(dim);
    const Part kv = {dim * c_.kv_heads, dim * h.first_stored, dim * h.stored};
    ASSIGN_OR_RETURN(w.q, Packed(prefix + "q_proj.weight", q, hidden));
    ASSIGN_OR_RETURN(w.k, Packed(prefix + "k_proj.weight", kv, hidden));
    ASSIGN_OR_RETURN(w.v, Packed(prefix + "v_proj.weight", kv, hidden));
    ASSIGN_OR_RETURN(w.q_bias, Bias(prefix + "q_proj", q));
    ASSIGN_OR_RETURN(w.k_bias, Bias(prefix + "k_proj", kv));
    ASSIGN_OR_RETURN(w.v_bias, Bias(prefix + "v_proj", kv));
    if (c_.qk_norm != ModelConfig::QkNorm::kNone) {
      const bool full = c_.qk_norm == ModelConfig::QkNorm::kFullWidth;
      ASSIGN_OR_RETURN(w.q_norm, Vector(prefix + "q_norm.weight", full ? q.n : dim));
      ASSIGN_OR_RETURN(w.k_norm, Vector(prefix + "k_norm.weight", full ? kv.n : dim));
    }
    return Output(prefix, c_.head_dim, w);
  }

  absl::Status Mla(const std::string& prefix, AttentionWeights& w) {
    const uint64_t hidden = c_.hidden_size, latent = c_.kv_lora_rank, rope = c_.qk_rope_head_dim;
    const uint64_t nope = c_.qk_nope_head_dim, v = c_.v_head_dim, heads = c_.heads;
    const uint64_t rank = c_.q_lora_rank, q_dim = nope + rope;
    const HeadShare& h = options_.heads;
    const Part q = HeadsPart(q_dim);
    if (rank > 0) {
      ASSIGN_OR_RETURN(w.q_a, Packed(prefix + "q_a_proj.weight", Whole(rank), hidden));
      ASSIGN_OR_RETURN(w.q_a_bias, Bias(prefix + "q_a_proj", Whole(rank)));
      ASSIGN_OR_RETURN(w.q_a_norm, Vector(prefix + "q_a_layernorm.weight", rank));
      ASSIGN_OR_RETURN(w.q_b, Packed(prefix + "q_b_proj.weight", q, rank));
    } else {
      ASSIGN_OR_RETURN(w.q_b, Packed(prefix + "q_proj.weight", q, hidden));
    }
    ASSIGN_OR_RETURN(w.kv_a,
                     Packed(prefix + "kv_a_proj_with_mqa.weight", Whole(latent + rope), hidden));
    ASSIGN_OR_RETURN(w.kv_a_bias, Bias(prefix + "kv_a_proj_with_mqa", Whole(latent + rope)));
    ASSIGN_OR_RETURN(w.kv_a_norm, Vector(prefix + "kv_a_layernorm.weight", latent));
    // Rows of a head: nope of W_uk [nope, C], then v of W_uv [v, C].
    const std::string name = prefix + "kv_b_proj.weight";
    const WeightFormat absorbed = FormatOf(options_.dtype);
    const auto pack = [&]() -> absl::StatusOr<std::vector<PackedWeight>> {
      ASSIGN_OR_RETURN(const LoadedTensor kv_b, Get(name, {heads * (nope + v), latent}));
      std::vector<PackedWeight> packed;
      for (int i = h.first_head; i < h.first_head + h.heads; ++i) {
        const LoadedTensor uk = Transpose(RowsOf(kv_b.view, i * (nope + v), nope));
        packed.push_back(kernels_.gemm->Pack(uk.view, absorbed));
        packed.push_back(
            kernels_.gemm->Pack(RowsOf(kv_b.view, i * (nope + v) + nope, v), absorbed));
      }
      return packed;
    };
    std::vector<PackedShape> shapes;
    for (int i = 0; i < h.heads; ++i) {
      shapes.push_back(ShapeOf(absorbed, latent, nope));
      shapes.push_back(ShapeOf(absorbed, v, latent));
    }
    ASSIGN_OR_RETURN(std::vector<PackedWeight> packed,
                     Cached(HeadsPart(nope + v).NameOf(name), shapes, pack));
    for (int i = 0; i < h.heads; ++i) {
      w.uk.push_back(std::move(packed[2 * i]));
      w.uv.push_back(std::move(packed[2 * i + 1]));
    }
    if (options_.mla_keys) RETURN_IF_ERROR(MlaKeys(name, w));
    return Output(prefix, c_.v_head_dim, w);
  }

  // W_uk of `name` as it is; uk, its transpose, is packed another way round.
  absl::Status MlaKeys(const std::string& name, AttentionWeights& w) {
    const uint64_t latent = c_.kv_lora_rank, nope = c_.qk_nope_head_dim;
    const uint64_t width = nope + c_.v_head_dim;
    const HeadShare& h = options_.heads;
    const WeightFormat format = FormatOf(options_.dtype);
    const auto pack = [&]() -> absl::StatusOr<std::vector<PackedWeight>> {
      ASSIGN_OR_RETURN(const LoadedTensor kv_b, Get(name, {c_.heads * width, latent}));
      std::vector<PackedWeight> packed;
      for (int i = h.first_head; i < h.first_head + h.heads; ++i) {
        packed.push_back(kernels_.gemm->Pack(RowsOf(kv_b.view, i * width, nope), format));
      }
      return packed;
    };
    const std::vector<PackedShape> shapes(h.heads, ShapeOf(format, nope, latent));
    ASSIGN_OR_RETURN(w.uk_keys, Cached(HeadsPart(width).NameOf(name) + ".keys", shapes, pack));
    return absl::OkStatus();
  }

  absl::Status Output(const std::string& prefix, uint64_t v_dim, AttentionWeights& w) {
    const uint64_t hidden = c_.hidden_size, width = v_dim * c_.heads;
    ASSIGN_OR_RETURN(w.o_bias, Bias(prefix + "o_proj", Whole(hidden)));
    const std::string name = prefix + "o_proj.weight";
    const Part part = HeadsPart(v_dim);
    const uint64_t group = width / OutputGroups(c_.heads);
    const auto pack = [&]() -> absl::StatusOr<std::vector<PackedWeight>> {
      ASSIGN_OR_RETURN(const LoadedTensor o, Get(name, {hidden, width}));
      std::vector<PackedWeight> packed;
      for (uint64_t begin = part.begin; begin < part.begin + part.count; begin += group) {
        packed.push_back(kernels_.gemm->Pack(Columns(o.view, begin, group).view, format()));
      }
      return packed;
    };
    const std::vector<PackedShape> shapes(part.count / group, ShapeOf(format(), hidden, group));
    ASSIGN_OR_RETURN(w.o, Cached(part.NameOf(name), shapes, pack));
    return absl::OkStatus();
  }

  absl::StatusOr<std::vector<PackedExpert>> LoadExperts(int l, std::span<const int32_t> wanted) {
    std::vector<PackedExpert> experts(wanted.size());
    std::vector<absl::Status> statuses(wanted.size());
    pool_.ParallelFor(wanted.size(), [&](size_t i, int) {
      if (wanted[i] < 0) return;
      auto expert = RoutedExpert(l, wanted[i]);
      statuses[i] = expert.status();
      if (expert.ok()) experts[i] = *std::move(expert);
    });
    for (const absl::Status& s : statuses) RETURN_IF_ERROR(s);
    return experts;
  }

  absl::Status Dense(const std::string& prefix, LayerWeights& w) {
    ASSIGN_OR_RETURN(PackedExpert ffn, Expert(prefix, c_.intermediate_size));
    w.experts.push_back(std::move(ffn));
    return absl::OkStatus();
  }

  absl::Status Moe(int l, const std::string& prefix, LayerWeights& w) {
    const uint64_t experts = c_.gate.experts, width = c_.moe_intermediate_size;
    ASSIGN_OR_RETURN(w.gate, Packed(prefix + "gate.weight", Whole(experts),
                                    static_cast<uint64_t>(c_.hidden_size), WeightFormat::kFloat32));
    if (c_.gate_bias) {
      ASSIGN_OR_RETURN(w.gate_bias, Vector(prefix + "gate.e_score_correction_bias", experts));
    }
    const std::span<const int32_t> local = options_.local_experts(l);
    w.logical_experts.assign(local.begin(), local.end());
    ASSIGN_OR_RETURN(w.experts, LoadExperts(l, local));
    if (c_.shared_experts > 0) {
      ASSIGN_OR_RETURN(w.shared, Expert(prefix + "shared_experts.", width * c_.shared_experts));
    }
    return absl::OkStatus();
  }

  const WeightSource& source_;
  const ModelConfig& c_;
  const KernelSet& kernels_;
  ComputePool& pool_;
  const LoadWeightsOptions& options_;
  std::atomic<size_t> done_{0};
};

}  // namespace

absl::StatusOr<ModelWeights> LoadWeights(const WeightSource& source, const ModelConfig& config,
                                         const KernelSet& kernels, ComputePool& pool,
                                         const LoadWeightsOptions& options) {
  return Loader(source, config, kernels, pool, options).Load();
}

absl::StatusOr<PackedExpert> LoadExpert(const WeightSource& source, const ModelConfig& config,
                                        const KernelSet& kernels, const LoadWeightsOptions& options,
                                        const ExpertKey& key) {
  if (key.layer < 0 || key.layer >= config.layers || !config.layer_is_moe[key.layer] ||
      key.expert < 0 || key.expert >= config.gate.experts) {
    return absl::InvalidArgumentError(
        absl::StrCat("expert ", key.expert, " of layer ", key.layer, ": there is none"));
  }
  ComputePool none(1);
  return Loader(source, config, kernels, none, options).RoutedExpert(key.layer, key.expert);
}

}  // namespace switchyard
