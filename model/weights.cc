#include "model/weights.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <map>

#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "common/status_macros.h"

namespace switchyard {
namespace {

size_t BytesOf(const WeightView& w) { return w.n * w.k * SizeOf(w.dtype); }

// Columns [begin, begin + count) of `w`, dense.
LoadedTensor Columns(const WeightView& w, size_t begin, size_t count) {
  const size_t size = SizeOf(w.dtype);
  LoadedTensor out;
  out.owned = AlignedBuffer(w.n * count * size);
  const auto* from = static_cast<const std::byte*>(w.data);
  for (size_t r = 0; r < w.n; ++r) {
    std::memcpy(out.owned.data() + r * count * size, from + (r * w.k + begin) * size, count * size);
  }
  out.view = {out.owned.data(), w.dtype, w.n, count};
  return out;
}

// Rows [begin, begin + count) of `w`, borrowed.
WeightView Rows(const WeightView& w, size_t begin, size_t count) {
  const auto* from = static_cast<const std::byte*>(w.data);
  return {from + begin * w.k * SizeOf(w.dtype), w.dtype, count, w.k};
}

template <typename T>
void TransposeInto(const WeightView& w, std::byte* to) {
  const T* from = static_cast<const T*>(w.data);
  T* out = reinterpret_cast<T*>(to);
  for (size_t r = 0; r < w.n; ++r) {
    for (size_t c = 0; c < w.k; ++c) out[c * w.n + r] = from[r * w.k + c];
  }
}

LoadedTensor Transpose(const WeightView& w) {
  LoadedTensor out;
  out.owned = AlignedBuffer(BytesOf(w));
  if (w.dtype == DType::kBfloat16) {
    TransposeInto<Bf16>(w, out.owned.data());
  } else {
    TransposeInto<float>(w, out.owned.data());
  }
  out.view = {out.owned.data(), w.dtype, w.k, w.n};
  return out;
}

void MakeTable(LayerWeights& w) {
  const auto there = [](const PackedExpert& e) { return e.hidden > 0; };
  const auto any = std::find_if(w.experts.begin(), w.experts.end(), there);
  w.expert_table.clear();
  for (const PackedExpert& e : w.experts) {
    // An empty slot never gets a row, but the kernel wants all experts of a call to be alike.
    w.expert_table.push_back(there(e) || any == w.experts.end() ? &e : &*any);
  }
}

class Loader {
 public:
  Loader(const WeightSource& source, const ModelConfig& config, const KernelSet& kernels,
         ComputePool& pool, const LoadWeightsOptions& options)
      : source_(source), c_(config), kernels_(kernels), pool_(pool), options_(options) {}

  absl::StatusOr<ModelWeights> Load() {
    ModelWeights w;
    const uint64_t vocab = c_.vocab_size, hidden = c_.hidden_size;
    ASSIGN_OR_RETURN(LoadedTensor embedding, Get("model.embed_tokens.weight", {vocab, hidden}));
    ASSIGN_OR_RETURN(w.final_norm, Vector("model.norm.weight", hidden));
    if (c_.tie_word_embeddings) {
      w.head = kernels_.gemm->Pack(embedding.view, FormatOf(options_.dtype));
    } else {
      ASSIGN_OR_RETURN(const LoadedTensor head, Get("lm_head.weight", {vocab, hidden}));
      w.head = kernels_.gemm->Pack(head.view, FormatOf(options_.dtype));
    }
    w.embedding_dtype = embedding.view.dtype;
    if (embedding.owned.size() == 0) {
      embedding.owned = AlignedBuffer(BytesOf(embedding.view));
      std::memcpy(embedding.owned.data(), embedding.view.data, embedding.owned.size());
    }
    w.embedding = std::move(embedding.owned);
    for (int l = 0; l < c_.layers; ++l) {
      ASSIGN_OR_RETURN(LayerWeights layer, Layer(l));
      w.layers.push_back(std::move(layer));
      if (options_.progress)
        options_.progress(done_, std::max(source_.total_bytes(), done_.load()));
    }
    if (options_.progress) options_.progress(done_, done_);
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

  absl::StatusOr<PackedWeight> Packed(const std::string& name, uint64_t n, uint64_t k) {
    ASSIGN_OR_RETURN(const LoadedTensor t, Get(name, {n, k}));
    return kernels_.gemm->Pack(t.view, format());
  }

  // The bias of `layer`, empty if the model has none.
  absl::StatusOr<std::vector<float>> Bias(const std::string& layer, uint64_t size) {
    if (!c_.attention_bias) return std::vector<float>();
    return Vector(layer + ".bias", size);
  }

  absl::StatusOr<PackedExpert> Expert(const std::string& prefix, uint64_t width,
                                      const MoeTensorNames& names = {}) {
    const uint64_t hidden = c_.hidden_size;
    const auto matrix = [&](std::string_view name, uint64_t n, uint64_t k) {
      return Get(absl::StrCat(prefix, std::string(name), ".weight"), {n, k});
    };
    ASSIGN_OR_RETURN(const LoadedTensor gate, matrix(names.gate, width, hidden));
    ASSIGN_OR_RETURN(const LoadedTensor up, matrix(names.up, width, hidden));
    ASSIGN_OR_RETURN(const LoadedTensor down, matrix(names.down, hidden, width));
    return kernels_.grouped_gemm->PackExpert(gate.view, up.view, down.view, format());
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
    MakeTable(w);
    return w;
  }

  absl::Status Gqa(const std::string& prefix, AttentionWeights& w) {
    const uint64_t hidden = c_.hidden_size, dim = c_.head_dim;
    const uint64_t q = dim * c_.heads, kv = dim * c_.kv_heads;
    ASSIGN_OR_RETURN(w.q, Packed(prefix + "q_proj.weight", q, hidden));
    ASSIGN_OR_RETURN(w.k, Packed(prefix + "k_proj.weight", kv, hidden));
    ASSIGN_OR_RETURN(w.v, Packed(prefix + "v_proj.weight", kv, hidden));
    ASSIGN_OR_RETURN(w.q_bias, Bias(prefix + "q_proj", q));
    ASSIGN_OR_RETURN(w.k_bias, Bias(prefix + "k_proj", kv));
    ASSIGN_OR_RETURN(w.v_bias, Bias(prefix + "v_proj", kv));
    if (c_.qk_norm != ModelConfig::QkNorm::kNone) {
      const bool full = c_.qk_norm == ModelConfig::QkNorm::kFullWidth;
      ASSIGN_OR_RETURN(w.q_norm, Vector(prefix + "q_norm.weight", full ? q : dim));
      ASSIGN_OR_RETURN(w.k_norm, Vector(prefix + "k_norm.weight", full ? kv : dim));
    }
    return Output(prefix, c_.head_dim, w);
  }

  absl::Status Mla(const std::string& prefix, AttentionWeights& w) {
    const uint64_t hidden = c_.hidden_size, latent = c_.kv_lora_rank, rope = c_.qk_rope_head_dim;
    const uint64_t nope = c_.qk_nope_head_dim, v = c_.v_head_dim, heads = c_.heads;
    const uint64_t rank = c_.q_lora_rank;
    if (rank > 0) {
      ASSIGN_OR_RETURN(w.q_a, Packed(prefix + "q_a_proj.weight", rank, hidden));
      ASSIGN_OR_RETURN(w.q_a_bias, Bias(prefix + "q_a_proj", rank));
      ASSIGN_OR_RETURN(w.q_a_norm, Vector(prefix + "q_a_layernorm.weight", rank));
      ASSIGN_OR_RETURN(w.q_b, Packed(prefix + "q_b_proj.weight", heads * (nope + rope), rank));
    } else {
      ASSIGN_OR_RETURN(w.q_b, Packed(prefix + "q_proj.weight", heads * (nope + rope), hidden));
    }
    ASSIGN_OR_RETURN(w.kv_a, Packed(prefix + "kv_a_proj_with_mqa.weight", latent + rope, hidden));
    ASSIGN_OR_RETURN(w.kv_a_bias, Bias(prefix + "kv_a_proj_with_mqa", latent + rope));
    ASSIGN_OR_RETURN(w.kv_a_norm, Vector(prefix + "kv_a_layernorm.weight", latent));
    // Rows of a head: nope of W_uk [nope, C], then v of W_uv [v, C].
    ASSIGN_OR_RETURN(const LoadedTensor kv_b,
                     Get(prefix + "kv_b_proj.weight", {heads * (nope + v), latent}));
    for (uint64_t h = 0; h < heads; ++h) {
      const LoadedTensor uk = Transpose(Rows(kv_b.view, h * (nope + v), nope));
      w.uk.push_back(kernels_.gemm->Pack(uk.view, FormatOf(options_.dtype)));
      w.uv.push_back(
          kernels_.gemm->Pack(Rows(kv_b.view, h * (nope + v) + nope, v), FormatOf(options_.dtype)));
    }
    return Output(prefix, c_.v_head_dim, w);
  }

  absl::Status Output(const std::string& prefix, uint64_t v_dim, AttentionWeights& w) {
    const uint64_t hidden = c_.hidden_size, width = v_dim * c_.heads;
    ASSIGN_OR_RETURN(w.o_bias, Bias(prefix + "o_proj", hidden));
    ASSIGN_OR_RETURN(const LoadedTensor o, Get(prefix + "o_proj.weight", {hidden, width}));
    const uint64_t group = v_dim * OutputGroupHeads(c_.heads);
    for (uint64_t begin = 0; begin < width; begin += group) {
      w.o.push_back(kernels_.gemm->Pack(Columns(o.view, begin, group).view, format()));
    }
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
    {
      ASSIGN_OR_RETURN(
          const LoadedTensor gate,
          Get(prefix + "gate.weight", {experts, static_cast<uint64_t>(c_.hidden_size)}));
      w.gate = kernels_.gemm->Pack(gate.view, WeightFormat::kFloat32);
    }
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

std::vector<ExpertKey> MissingExperts(const ModelWeights& weights, const HostedExperts& hosted,
                                      const SpareExperts& spare) {
  std::vector<ExpertKey> missing;
  for (int l = 0; l < static_cast<int>(weights.layers.size()); ++l) {
    const std::vector<int32_t>& there = weights.layers[l].logical_experts;
    const std::span<const int32_t> wanted = hosted(l);
    if (there.empty() || std::equal(there.begin(), there.end(), wanted.begin(), wanted.end())) {
      continue;
    }
    std::map<int32_t, size_t> had;
    for (const int32_t e : there) ++had[e];
    std::map<int32_t, size_t> needed;
    for (const int32_t e : wanted) {
      if (e >= 0 && ++needed[e] > had[e] + spare.count({l, e})) missing.push_back({l, e});
    }
  }
  return missing;
}

void RehostExperts(const HostedExperts& hosted, ModelWeights* weights, SpareExperts* spare) {
  for (int l = 0; l < static_cast<int>(weights->layers.size()); ++l) {
    LayerWeights& w = weights->layers[l];
    const std::span<const int32_t> wanted = hosted(l);
    const std::vector<int32_t>& there = w.logical_experts;
    if (there.empty() || std::equal(there.begin(), there.end(), wanted.begin(), wanted.end())) {
      continue;
    }
    for (size_t i = 0; i < w.experts.size(); ++i) {
      if (there[i] >= 0) spare->emplace(ExpertKey{l, there[i]}, std::move(w.experts[i]));
    }
    w.experts.clear();
    for (const int32_t e : wanted) {
      PackedExpert& slot = w.experts.emplace_back();
      if (e < 0) continue;
      const auto it = spare->find({l, e});
      SY_CHECK(it != spare->end());
      slot = std::move(it->second);
      spare->erase(it);
    }
    w.logical_experts.assign(wanted.begin(), wanted.end());
    MakeTable(w);
  }
}

}  // namespace switchyard
