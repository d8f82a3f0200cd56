#include "model/cuda/device_weights.h"

#include <algorithm>

#include "common/check.h"
#include "common/status_macros.h"
#include "model/cuda/packers.h"

namespace switchyard::cuda {
namespace {

std::vector<const PackedWeight*> Pointers(const std::vector<PackedWeight>& weights) {
  std::vector<const PackedWeight*> pointers;
  for (const PackedWeight& w : weights) pointers.push_back(&w);
  return pointers;
}

}  // namespace

absl::StatusOr<const float*> WeightUploader::Vector(std::span<const float> host) {
  if (host.empty()) return nullptr;
  ASSIGN_OR_RETURN(float* const to, to_.memory.Allocate<float>(host.size()));
  RETURN_IF_ERROR(CopyAsync(to, host.data(), host.size_bytes(), stream_));
  return to;
}

absl::StatusOr<DeviceWeight> WeightUploader::Weight(std::span<const PackedWeight* const> groups) {
  const auto any = std::find_if(groups.begin(), groups.end(),
                                [](const PackedWeight* w) { return w->bytes.size() > 0; });
  if (any == groups.end()) return DeviceWeight{};
  const PackedWeight& like = **any;
  const PackedSizes sizes = SizesOf(like.format, like.n, like.k);
  DeviceWeight w{.format = FormatOf(like.format),
                 .groups = static_cast<int>(groups.size()),
                 .n = static_cast<int>(like.n),
                 .k = static_cast<int>(like.k)};
  ASSIGN_OR_RETURN(std::byte* const data, to_.memory.Allocate(sizes.data * groups.size()));
  float* scales = nullptr;
  if (sizes.scales > 0) {
    ASSIGN_OR_RETURN(scales, to_.memory.Allocate<float>(sizes.scales * groups.size()));
  }
  for (size_t i = 0; i < groups.size(); ++i) {
    const PackedWeight& from = *groups[i];
    if (from.bytes.size() == 0) continue;
    SY_CHECK(from.n == like.n && from.k == like.k && from.format == like.format);
    RETURN_IF_ERROR(CopyAsync(data + i * sizes.data, from.bytes.data(), sizes.data, stream_));
    if (scales == nullptr) continue;
    RETURN_IF_ERROR(CopyAsync(scales + i * sizes.scales, from.bytes.data() + sizes.data,
                              sizes.scales * sizeof(float), stream_));
  }
  w.data = data;
  w.scales = scales;
  return w;
}

absl::Status WeightUploader::One(const PackedWeight& host, DeviceWeight* to) {
  const PackedWeight* const one = &host;
  ASSIGN_OR_RETURN(*to, Weight({&one, 1}));
  return absl::OkStatus();
}

absl::Status WeightUploader::Attention(const AttentionWeights& host, DeviceAttention* to) {
  const std::pair<const PackedWeight*, DeviceWeight*> weights[] = {
      {&host.q, &to->q},     {&host.k, &to->k},     {&host.v, &to->v},
      {&host.q_a, &to->q_a}, {&host.q_b, &to->q_b}, {&host.kv_a, &to->kv_a}};
  for (const auto& [from, into] : weights) RETURN_IF_ERROR(One(*from, into));
  const std::pair<const std::vector<PackedWeight>*, DeviceWeight*> grouped[] = {
      {&host.uk, &to->uk}, {&host.uv, &to->uv}, {&host.o, &to->o}};
  for (const auto& [from, into] : grouped) {
    ASSIGN_OR_RETURN(*into, Weight(Pointers(*from)));
  }
  const std::pair<const std::vector<float>*, const float**> vectors[] = {
      {&host.q_norm, &to->q_norm},       {&host.k_norm, &to->k_norm},
      {&host.q_bias, &to->q_bias},       {&host.k_bias, &to->k_bias},
      {&host.v_bias, &to->v_bias},       {&host.q_a_norm, &to->q_a_norm},
      {&host.q_a_bias, &to->q_a_bias},   {&host.kv_a_bias, &to->kv_a_bias},
      {&host.kv_a_norm, &to->kv_a_norm}, {&host.o_bias, &to->o_bias}};
  for (const auto& [from, into] : vectors) {
    ASSIGN_OR_RETURN(*into, Vector(*from));
  }
  to->q_norm_width = static_cast<int>(host.q_norm.size());
  to->k_norm_width = static_cast<int>(host.k_norm.size());
  return absl::OkStatus();
}

absl::StatusOr<DeviceFfn> WeightUploader::Ffn(std::span<const PackedExpert* const> experts) {
  std::vector<const PackedWeight*> gate_up, down;
  for (const PackedExpert* e : experts) {
    gate_up.push_back(&e->gate_up);
    down.push_back(&e->down);
  }
  DeviceFfn ffn;
  ASSIGN_OR_RETURN(ffn.gate_up, Weight(gate_up));
  ASSIGN_OR_RETURN(ffn.down, Weight(down));
  return ffn;
}

absl::Status WeightUploader::Layer(LayerWeights* host) {
  DeviceLayer layer;
  ASSIGN_OR_RETURN(layer.input_norm, Vector(host->input_norm));
  ASSIGN_OR_RETURN(layer.post_norm, Vector(host->post_norm));
  RETURN_IF_ERROR(Attention(host->attention, &layer.attention));
  RETURN_IF_ERROR(One(host->gate, &layer.gate));
  ASSIGN_OR_RETURN(layer.gate_bias, Vector(host->gate_bias));
  std::vector<const PackedExpert*> experts;
  for (const PackedExpert& e : host->experts) experts.push_back(&e);
  ASSIGN_OR_RETURN(layer.experts, Ffn(experts));
  if (host->shared) {
    const PackedExpert* const shared = &*host->shared;
    ASSIGN_OR_RETURN(layer.shared, Ffn({&shared, 1}));
  }
  to_.layers.push_back(layer);
  // The copies read what is freed now.
  RETURN_IF_ERROR(Synchronize(stream_));
  host->attention = {};
  host->gate = {};
  host->experts.clear();
  host->expert_table.clear();
  host->shared.reset();
  return absl::OkStatus();
}

absl::Status WeightUploader::Rest(const ModelWeights& host, const RopeTable& rope) {
  ASSIGN_OR_RETURN(std::byte* const embedding, to_.memory.Allocate(host.embedding.size()));
  RETURN_IF_ERROR(CopyAsync(embedding, host.embedding.data(), host.embedding.size(), stream_));
  to_.embedding = embedding;
  to_.embedding_dtype = host.embedding_dtype;
  ASSIGN_OR_RETURN(to_.final_norm, Vector(host.final_norm));
  RETURN_IF_ERROR(One(host.head, &to_.head));
  ASSIGN_OR_RETURN(to_.rope_cos, Vector(rope.cos));
  ASSIGN_OR_RETURN(to_.rope_sin, Vector(rope.sin));
  to_.rope_positions = rope.positions;
  return Synchronize(stream_);
}

}  // namespace switchyard::cuda
