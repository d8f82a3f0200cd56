#include "model/cuda/device_weights.h"

#include <algorithm>
#include <map>

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

size_t DeviceWeights::bytes() const {
  size_t bytes = memory.held_bytes();
  for (const DeviceLayer& layer : layers) {
    for (const DeviceBuffer& buffer : layer.experts.memory) bytes += buffer.size();
  }
  return bytes;
}

absl::StatusOr<const float*> WeightUploader::Vector(std::span<const float> host) {
  if (host.empty()) return nullptr;
  ASSIGN_OR_RETURN(float* const to, to_.memory.Allocate<float>(host.size()));
  RETURN_IF_ERROR(CopyAsync(to, host.data(), host.size_bytes(), stream_));
  return to;
}

WeightUploader::Group WeightUploader::GroupOf(const PackedWeight& host) {
  if (host.bytes.size() == 0) return {};
  const PackedSizes sizes = SizesOf(host.format, host.n, host.k);
  return {host.bytes.data(), host.bytes.data() + sizes.data};
}

WeightUploader::Group WeightUploader::GroupOf(const DeviceWeight& w, size_t slot) {
  const size_t data = WeightBytes(w.format, w.n, w.k), scales = WeightScales(w.format, w.n, w.k);
  return {w.data + slot * data, reinterpret_cast<const std::byte*>(w.scales + slot * scales)};
}

absl::StatusOr<std::byte*> WeightUploader::Allocate(size_t bytes, Owned* own) {
  if (own == nullptr) return to_.memory.Allocate(bytes);
  ASSIGN_OR_RETURN(DeviceBuffer buffer, DeviceBuffer::Create(bytes));
  own->push_back(std::move(buffer));
  return own->back().data();
}

absl::StatusOr<DeviceWeight> WeightUploader::Weight(WeightFormat format, size_t n, size_t k,
                                                    std::span<const Group> groups, Owned* own) {
  const PackedSizes sizes = SizesOf(format, n, k);
  DeviceWeight w{.format = FormatOf(format),
                 .groups = static_cast<int>(groups.size()),
                 .n = static_cast<int>(n),
                 .k = static_cast<int>(k)};
  ASSIGN_OR_RETURN(std::byte* const data, Allocate(sizes.data * groups.size(), own));
  const size_t scale_bytes = sizes.scales * sizeof(float);
  std::byte* scales = nullptr;
  if (scale_bytes > 0) {
    ASSIGN_OR_RETURN(scales, Allocate(scale_bytes * groups.size(), own));
  }
  for (size_t i = 0; i < groups.size(); ++i) {
    const Group& from = groups[i];
    if (from.data == nullptr) continue;
    RETURN_IF_ERROR(CopyAsync(data + i * sizes.data, from.data, sizes.data, stream_));
    if (scales == nullptr) continue;
    RETURN_IF_ERROR(CopyAsync(scales + i * scale_bytes, from.scales, scale_bytes, stream_));
  }
  w.data = data;
  w.scales = reinterpret_cast<const float*>(scales);
  return w;
}

absl::StatusOr<DeviceWeight> WeightUploader::Weight(std::span<const PackedWeight* const> groups,
                                                    Owned* own) {
  const PackedWeight* like = nullptr;
  std::vector<Group> from;
  for (const PackedWeight* w : groups) {
    from.push_back(GroupOf(*w));
    if (from.back().data == nullptr) continue;
    SY_CHECK(like == nullptr || (w->n == like->n && w->k == like->k && w->format == like->format));
    like = w;
  }
  if (like == nullptr) return DeviceWeight{};
  return Weight(like->format, like->n, like->k, from, own);
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

absl::StatusOr<DeviceFfn> WeightUploader::Ffn(std::span<const PackedExpert* const> experts,
                                              Owned* own) {
  std::vector<const PackedWeight*> gate_up, down;
  for (const PackedExpert* e : experts) {
    gate_up.push_back(&e->gate_up);
    down.push_back(&e->down);
  }
  DeviceFfn ffn;
  ASSIGN_OR_RETURN(ffn.gate_up, Weight(gate_up, own));
  ASSIGN_OR_RETURN(ffn.down, Weight(down, own));
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
  if (host->logical_experts.empty()) {
    ASSIGN_OR_RETURN(layer.dense, Ffn(experts));
  } else {
    ASSIGN_OR_RETURN(layer.experts.ffn, Ffn(experts, &layer.experts.memory));
    layer.experts.logical = host->logical_experts;
  }
  if (host->shared) {
    const PackedExpert* const shared = &*host->shared;
    ASSIGN_OR_RETURN(layer.shared, Ffn({&shared, 1}));
  }
  to_.layers.push_back(std::move(layer));
  // The copies read what is freed now.
  RETURN_IF_ERROR(Synchronize(stream_));
  host->attention = {};
  host->gate = {};
  host->experts.clear();
  host->expert_table.clear();
  host->shared.reset();
  return absl::OkStatus();
}

absl::Status WeightUploader::Rehost(int layer, std::span<const int32_t> wanted,
                                    SpareExperts* spare) {
  DeviceExperts& there = to_.layers[layer].experts;
  if (std::equal(wanted.begin(), wanted.end(), there.logical.begin(), there.logical.end())) {
    return absl::OkStatus();
  }
  std::multimap<int32_t, size_t> slots;
  for (size_t i = 0; i < there.logical.size(); ++i) slots.emplace(there.logical[i], i);
  SpareExperts taken;
  std::vector<Group> gate_up(wanted.size()), down(wanted.size());
  for (size_t i = 0; i < wanted.size(); ++i) {
    if (wanted[i] < 0) continue;
    if (const auto slot = slots.find(wanted[i]); slot != slots.end()) {
      gate_up[i] = GroupOf(there.ffn.gate_up, slot->second);
      down[i] = GroupOf(there.ffn.down, slot->second);
      slots.erase(slot);
      continue;
    }
    const auto found = spare->find({layer, wanted[i]});
    SY_CHECK(found != spare->end());
    const PackedExpert& fetched = taken.insert(spare->extract(found))->second;
    gate_up[i] = GroupOf(fetched.gate_up);
    down[i] = GroupOf(fetched.down);
  }
  const PackedExpert* const like = taken.empty() ? nullptr : &taken.begin()->second;
  DeviceExperts next;
  next.logical.assign(wanted.begin(), wanted.end());
  const auto copy = [&](const DeviceWeight& old, const PackedWeight* other,
                        std::span<const Group> groups, DeviceWeight* to) -> absl::Status {
    if (old.n == 0 && other == nullptr) return absl::OkStatus();  // as ever, none
    const bool first = old.n == 0;                                // that this rank has of the layer
    ASSIGN_OR_RETURN(
        *to, Weight(first ? other->format : static_cast<WeightFormat>(old.format),
                    first ? other->n : old.n, first ? other->k : old.k, groups, &next.memory));
    return absl::OkStatus();
  };
  absl::Status done =
      copy(there.ffn.gate_up, like ? &like->gate_up : nullptr, gate_up, &next.ffn.gate_up);
  if (done.ok()) {
    done = copy(there.ffn.down, like ? &like->down : nullptr, down, &next.ffn.down);
  }
  done.Update(Synchronize(stream_));  // the copies read what is freed now
  if (done.ok()) {
    there = std::move(next);
  } else {
    spare->merge(taken);
  }
  return done;
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
