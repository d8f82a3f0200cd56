#include "model/weight_source.h"

#include <sys/mman.h>
#include <xxhash.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <optional>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/status_macros.h"
#include "model/fp8.h"

namespace switchyard {
namespace {

constexpr std::string_view kDtypes[] = {"BF16", "F32"};
constexpr std::string_view kDtypesWithFp8[] = {"BF16", "F32", "F8_E4M3"};
// What a tensor's FP8 scales are called. They multiply the values; "inv" is of the quantiser's own.
constexpr std::string_view kScaleSuffix = "_scale_inv";

WeightView ViewOf(const void* data, DType dtype, std::span<const uint64_t> shape) {
  return {data, dtype, shape.size() == 1 ? 1 : shape[0], shape.back()};
}

// The disk is asked for mapped bytes that are read soon, and for nothing around them.
void ReadAhead(std::span<const std::byte> bytes) {
  constexpr uintptr_t kPage = 4096;
  const uintptr_t begin = reinterpret_cast<uintptr_t>(bytes.data()) / kPage * kPage;
  const uintptr_t end = reinterpret_cast<uintptr_t>(bytes.data() + bytes.size());
  madvise(reinterpret_cast<void*>(begin), end - begin, MADV_WILLNEED);
}

// L of "model.layers.L.…", or nothing.
std::optional<int> LayerOf(std::string_view name) {
  constexpr std::string_view kPrefix = "model.layers.";
  if (!name.starts_with(kPrefix)) return std::nullopt;
  name.remove_prefix(kPrefix.size());
  name = name.substr(0, name.find('.'));
  int layer;
  if (!absl::SimpleAtoi(absl::string_view(name.data(), name.size()), &layer)) return std::nullopt;
  return layer;
}

class CheckpointSource final : public WeightSource {
 public:
  CheckpointSource(const Checkpoint& checkpoint, const ModelConfig& config)
      : checkpoint_(checkpoint), fp8_(config.fp8) {
    int skipped = 0;
    for (const auto& [name, shard] : checkpoint.tensors()) {
      const auto layer = LayerOf(name);
      if (layer && *layer >= config.layers) {
        ++skipped;
        continue;
      }
      const auto& tensors = checkpoint.shards()[shard].header.tensors;
      const TensorEntry& entry = tensors.find(name)->second;
      if (name.ends_with(kScaleSuffix)) continue;
      total_bytes_ += (entry.end - entry.begin) * (entry.dtype == "F8_E4M3" ? sizeof(Bf16) : 1);
    }
    if (skipped > 0 && config.mtp_layers > 0) {
      notices_.push_back(absl::StrCat("skipped ", skipped, " tensors of ", config.mtp_layers,
                                      " multi-token prediction layer(s), from layer ",
                                      config.layers, " on: not used yet"));
    }
  }

  absl::StatusOr<LoadedTensor> Get(const std::string& name,
                                   std::initializer_list<uint64_t> shape) const override {
    const bool may_be_fp8 = fp8_ && shape.size() == 2;
    ASSIGN_OR_RETURN(
        const TensorBytes tensor,
        checkpoint_.Get(name, {shape.begin(), shape.size()},
                        may_be_fp8 ? std::span<const std::string_view>(kDtypesWithFp8) : kDtypes));
    if (tensor.entry->dtype == "F8_E4M3") return Dequantized(name, tensor);
    const DType dtype = tensor.entry->dtype == "F32" ? DType::kFloat32 : DType::kBfloat16;
    LoadedTensor out;
    const void* data = tensor.bytes.data();
    if (reinterpret_cast<uintptr_t>(data) % SizeOf(dtype) != 0) {  // the format allows any offset
      out.owned = AlignedBuffer(tensor.bytes.size());
      std::memcpy(out.owned.data(), data, tensor.bytes.size());
      data = out.owned.data();
    }
    out.view = ViewOf(data, dtype, {shape.begin(), shape.size()});
    return out;
  }

  void Release() const override {
    for (const auto& shard : checkpoint_.shards()) shard.file.Release();
  }
  size_t total_bytes() const override { return total_bytes_; }
  std::vector<std::string> notices() const override { return notices_; }

 private:
  absl::StatusOr<LoadedTensor> Dequantized(const std::string& name,
                                           const TensorBytes& tensor) const {
    const std::vector<uint64_t>& shape = tensor.entry->shape;
    const uint64_t blocks[] = {(shape[0] + fp8_->rows - 1) / fp8_->rows,
                               (shape[1] + fp8_->columns - 1) / fp8_->columns};
    ASSIGN_OR_RETURN(
        const TensorBytes stored,
        checkpoint_.Get(absl::StrCat(name, std::string(kScaleSuffix)), blocks, kDtypes));
    std::vector<float> scales(blocks[0] * blocks[1]);
    if (stored.entry->dtype == "F32") {
      std::memcpy(scales.data(), stored.bytes.data(), stored.bytes.size());
    } else {
      std::vector<Bf16> narrow(scales.size());
      std::memcpy(narrow.data(), stored.bytes.data(), stored.bytes.size());
      std::transform(narrow.begin(), narrow.end(), scales.begin(),
                     [](Bf16 s) { return ToFloat(s); });
    }
    LoadedTensor out;
    out.owned = DequantizeFp8(tensor.bytes, shape[0], shape[1], scales, *fp8_);
    out.view = ViewOf(out.owned.data(), DType::kBfloat16, shape);
    return out;
  }

  const Checkpoint& checkpoint_;
  const std::optional<Fp8Blocks> fp8_;
  size_t total_bytes_ = 0;
  std::vector<std::string> notices_;
};

// A bijective mix of 32 bits (two rounds of xor-shift and multiply): fast enough to be bound by
// memory, good enough for weights that mean nothing.
inline uint32_t Mix(uint32_t x) {
  x ^= x >> 16;
  x *= 0x7feb352du;
  x ^= x >> 15;
  x *= 0x846ca68bu;
  return x ^ (x >> 16);
}

class DummySource final : public WeightSource {
 public:
  explicit DummySource(const ModelConfig& config)
      : total_bytes_(ParameterCount(config) * sizeof(Bf16)) {}

  absl::StatusOr<LoadedTensor> Get(const std::string& name,
                                   std::initializer_list<uint64_t> shape) const override {
    LoadedTensor out;
    out.view = ViewOf(nullptr, DType::kBfloat16, {shape.begin(), shape.size()});
    const size_t rows = out.view.n, columns = out.view.k;
    out.owned = AlignedBuffer(rows * columns * sizeof(Bf16));
    out.view.data = out.owned.data();
    Bf16* to = reinterpret_cast<Bf16*>(out.owned.data());
    if (shape.size() == 1) {
      const float value = absl::EndsWith(name, "bias") ? 0.0f : 1.0f;
      std::fill_n(to, columns, ToBf16(value));
      return out;
    }
    // Uniform in ±√3/√columns. Only the upper 24 bits are used: exact in FP32.
    const float scale = std::sqrt(3.0f / static_cast<float>(columns)) * 0x1.0p-23f;
    const uint64_t seed = XXH3_64bits(name.data(), name.size());
    for (size_t r = 0; r < rows; ++r, to += columns) {
      const uint32_t row_seed = Mix(static_cast<uint32_t>(seed) + Mix(static_cast<uint32_t>(r))) ^
                                static_cast<uint32_t>(seed >> 32);
      for (uint32_t c = 0; c < columns; ++c) {
        const auto centred = static_cast<int32_t>(Mix(row_seed + c * 0x9E3779B9u) >> 8) - (1 << 23);
        to[c] = ToBf16(static_cast<float>(centred) * scale);
      }
    }
    return out;
  }

  size_t total_bytes() const override { return total_bytes_; }

 private:
  const size_t total_bytes_;
};

}  // namespace

std::unique_ptr<WeightSource> MakeCheckpointSource(const Checkpoint& checkpoint,
                                                   const ModelConfig& config) {
  return std::make_unique<CheckpointSource>(checkpoint, config);
}

std::unique_ptr<WeightSource> MakeDummySource(const ModelConfig& config) {
  return std::make_unique<DummySource>(config);
}

AttentionParameters CountAttentionParameters(const ModelConfig& c) {
  const uint64_t hidden = c.hidden_size, heads = c.heads;
  if (c.attention == ModelConfig::Attention::kGqa) {
    return {2 * hidden * c.head_dim * (heads + c.kv_heads), 0};  // q and o, k and v
  }
  const uint64_t q = heads * (c.qk_nope_head_dim + c.qk_rope_head_dim), latent = c.kv_lora_rank;
  return {(c.q_lora_rank > 0 ? (hidden + q) * c.q_lora_rank : hidden * q) +
              hidden * (latent + c.qk_rope_head_dim) + hidden * heads * c.v_head_dim,
          latent * heads * (c.qk_nope_head_dim + c.v_head_dim)};
}

uint64_t ParameterCount(const ModelConfig& c) {
  const uint64_t hidden = c.hidden_size;
  const AttentionParameters attention = CountAttentionParameters(c);
  uint64_t count = (c.tie_word_embeddings ? 1 : 2) * hidden * c.vocab_size + hidden;
  for (int l = 0; l < c.layers; ++l) {
    count += attention.projections + attention.absorbed + 2 * hidden;
    const uint64_t experts = c.gate.experts;
    count += c.layer_is_moe[l]
                 ? experts * hidden + 3 * hidden * c.moe_intermediate_size *
                                          (experts + static_cast<uint64_t>(c.shared_experts))
                 : 3 * hidden * c.intermediate_size;
  }
  return count;
}

std::string ModelDigest(std::string_view config_json, const Checkpoint* checkpoint) {
  constexpr size_t kWholeMax = 64 << 20, kSampleBytes = 4096, kSamples = 1024;
  struct FreeState {
    void operator()(XXH3_state_t* s) const { XXH3_freeState(s); }
  };
  std::unique_ptr<XXH3_state_t, FreeState> state(XXH3_createState());
  SY_CHECK(state != nullptr && XXH3_64bits_reset(state.get()) == XXH_OK);
  const auto add = [&](std::span<const std::byte> bytes) {
    XXH3_64bits_update(state.get(), bytes.data(), bytes.size());
  };
  add(std::as_bytes(std::span(config_json)));
  size_t total = 0;
  if (checkpoint != nullptr) {
    for (const auto& shard : checkpoint->shards()) total += shard.file.bytes().size();
    for (const auto& shard : checkpoint->shards()) {
      const auto file = shard.file.bytes();
      if (total <= kWholeMax) {
        add(file);
        continue;
      }
      const auto data = file.subspan(shard.header.data_begin);
      add(file.first(shard.header.data_begin));
      const size_t stride = std::max(kSampleBytes, data.size() / kSamples);
      std::vector<std::span<const std::byte>> samples;
      for (size_t at = 0; at < data.size(); at += stride) {
        samples.push_back(data.subspan(at, std::min(kSampleBytes, data.size() - at)));
        ReadAhead(samples.back());  // all at once: one after the other were a thousand waits
      }
      for (const auto& sample : samples) add(sample);
    }
  }
  return absl::StrFormat("%016x", XXH3_64bits_digest(state.get()));
}

}  // namespace switchyard
