// model/weights.h: the weights of this rank, packed for one kernel path. Immutable once loaded.
//
// Letters: H hidden, V vocabulary, E experts hosted here, I intermediate width; attention: h query
// heads of this rank, g key/value heads that it stores, D head size, C latent width, R rope width.
#pragma once

#include <functional>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "kernels/kernel_set.h"
#include "model/config.h"
#include "model/experts.h"
#include "model/head_share.h"
#include "model/packed_cache.h"
#include "model/weight_source.h"

namespace switchyard {

struct AttentionWeights {
  // GQA
  PackedWeight q, k, v;                       // [h·D, H], [g·D, H], [g·D, H]
  std::vector<float> q_norm, k_norm;          // [D], [h·D] and [g·D], or empty
  std::vector<float> q_bias, k_bias, v_bias;  // [h·D], [g·D], [g·D] or empty
  // MLA; q_b is q_proj, with q_a empty, where the model has no low-rank queries.
  PackedWeight q_a, q_b;                   // [Rq, H], [h·(nope + R), Rq or H]
  std::vector<float> q_a_norm;             // [Rq]
  std::vector<float> q_a_bias, kv_a_bias;  // [Rq], [C + R] or empty
  PackedWeight kv_a;                       // [C + R, H]
  std::vector<float> kv_a_norm;            // [C]
  std::vector<PackedWeight> uk;            // h × [C, nope]: queries into latent space
  std::vector<PackedWeight> uv;            // h × [v, C]: latent values out of it
  std::vector<PackedWeight> uk_keys;       // h × [nope, C]: latents into keys; or empty
  // The output projection by fixed groups of heads, those of this rank, each [H, group·v]:
  // docs/numerics.md.
  std::vector<PackedWeight> o;
  std::vector<float> o_bias;  // [H] or empty
};

struct LayerWeights {
  std::vector<float> input_norm, post_norm;  // [H]
  AttentionWeights attention;
  // A dense layer is one expert without a gate.
  PackedWeight gate;                     // [experts of the model, H], always FP32
  std::vector<float> gate_bias;          // [experts of the model] or empty
  std::vector<PackedExpert> experts;     // MoE: [expert slots]
  std::vector<int32_t> logical_experts;  // MoE: [expert slots] which ones; negative: none
  std::optional<PackedExpert> shared;
  std::vector<const PackedExpert*> expert_table;  // `experts`, as the FFN kernel wants them

  void MakeTable();  // after every change of `experts`
};

struct ModelWeights {
  AlignedBuffer embedding;  // [V, H] as in the checkpoint: looked up, never multiplied
  DType embedding_dtype = DType::kBfloat16;
  std::vector<float> final_norm;  // [H]
  PackedWeight head;              // [V, H]
  std::vector<LayerWeights> layers;
};

// [expert slots of this rank]: the logical experts of a layer; negative: the slot is empty.
using HostedExperts = std::function<std::span<const int32_t>(int layer)>;

struct LoadWeightsOptions {
  DType dtype = DType::kBfloat16;
  std::optional<WeightFormat> quantization;  // of projections and experts
  HeadShare heads;                           // of attention, that this rank computes
  bool mla_keys = false;                     // AttentionWeights::uk_keys
  HostedExperts local_experts;
  PackedCache* cache = nullptr;                             // may be null
  std::function<void(size_t done, size_t total)> progress;  // may be empty
  // Given each layer as it is loaded, and may take what it wants of it. May be empty.
  std::function<absl::Status(int layer, LayerWeights* weights)> on_layer = {};
};

// One expert of an MoE layer, as LoadWeights would load it. Thread-safe.
absl::StatusOr<PackedExpert> LoadExpert(const WeightSource& source, const ModelConfig& config,
                                        const KernelSet& kernels, const LoadWeightsOptions& options,
                                        const ExpertKey& key);

// Errors name the tensor that is missing or wrong.
absl::StatusOr<ModelWeights> LoadWeights(const WeightSource& source, const ModelConfig& config,
                                         const KernelSet& kernels, ComputePool& pool,
                                         const LoadWeightsOptions& options);

}  // namespace switchyard
