// model/model_testing.h: what the model's tests share: stored checkpoints under every kernel path
// of this machine, and a cache to run steps on.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "model/model.h"

namespace switchyard {

struct Case {
  std::string dir, kernels;
  DType dtype;
  std::optional<WeightFormat> quantization = {};
  EpPayload payload = EpPayload::kAuto;
  MlaForms mla = MlaForms::kAbsorbed;
};

inline constexpr DType kBothDtypes[] = {DType::kFloat32, DType::kBfloat16};

inline std::vector<Case> AllKernels(std::initializer_list<const char*> dirs) {
  std::vector<Case> cases;
  for (const char* dir : dirs) {
    for (const KernelSet& k : AvailableKernels()) {
      for (const DType dtype : kBothDtypes) cases.push_back({dir, k.name, dtype});
    }
  }
  return cases;
}

inline std::vector<Case> AllKernelsQuantized(std::initializer_list<const char*> dirs) {
  std::vector<Case> cases;
  for (Case& c : AllKernels(dirs)) {
    if (c.dtype != DType::kBfloat16) continue;
    for (const WeightFormat format : {WeightFormat::kInt8, WeightFormat::kInt4}) {
      cases.push_back({c.dir, c.kernels, c.dtype, format});
    }
  }
  return cases;
}

inline std::vector<Case> AllKernelsExpanded(std::initializer_list<const char*> dirs) {
  std::vector<Case> cases = AllKernels(dirs);
  for (Case& c : cases) c.mla = MlaForms::kAuto;
  return cases;
}

inline constexpr const char* kV3 = "tests/data/goldens/deepseek_v3";
inline constexpr const char* kV3Yarn = "tests/data/goldens/deepseek_v3_yarn";
inline constexpr const char* kV3Fp8 = "tests/data/goldens/deepseek_v3_fp8";
inline constexpr const char* kV2 = "tests/data/goldens/deepseek_v2";
inline constexpr const char* kMixtral = "tests/data/goldens/mixtral";
inline constexpr const char* kOlmoe = "tests/data/goldens/olmoe";
inline constexpr const char* kQwen3 = "tests/data/goldens/qwen3_moe";
inline constexpr const char* kV2Groups = "model/testdata/deepseek_v2_groups";
inline constexpr const char* kOlmoeClip = "model/testdata/olmoe_clip";
inline constexpr const char* kQwen3Bias = "model/testdata/qwen3_moe_bias";
inline constexpr const char* kFables = "models/fables-7m";

inline std::string CaseName(const testing::TestParamInfo<Case>& info) {
  std::string name =
      info.param.dir.substr(info.param.dir.rfind('/') + 1) + "_" + info.param.kernels + "_" +
      std::string(Name(info.param.dtype)) +
      (info.param.quantization ? "_" + std::string(Name(*info.param.quantization)) : "") +
      (info.param.mla == MlaForms::kAuto ? "_expanded" : "");
  std::replace(name.begin(), name.end(), '-', '_');
  return name;
}

inline std::unique_ptr<Model> LoadOrDie(const Case& c, int threads = 2, int max_batch_tokens = 0) {
  ModelOptions options;
  options.kernels = c.kernels;
  options.dtype = c.dtype;
  options.quantization = c.quantization;
  options.ep_payload = c.payload;
  options.mla = c.mla;
  options.threads = threads;
  options.max_batch_tokens = max_batch_tokens;
  auto model = Model::Load(c.dir, options);
  SY_CHECK_MSG(model.ok(), model.status().ToString());
  return *std::move(model);
}

// Sequences of one model, each with its own blocks in one cache.
class Bench {
 public:
  Bench(Model& model, int blocks)
      : model_(model), kv_(model.config().KvLayoutFor(model.options().dtype, 16), blocks) {
    for (int b = 0; b < blocks; ++b) {  // NaN: a read of what was not written shows
      for (int l = 0; l < kv_.layout().layers; ++l) {
        std::memset(kv_.Block(l, b), 0xff, kv_.layout().BlockBytes());
      }
    }
  }

  struct Part {
    std::span<const int32_t> tokens;
    int32_t position;
    std::span<const int32_t> blocks;
    int32_t prompt = INT32_MAX;  // its length
  };
  // One step over all parts; logits of every row.
  std::vector<float> Run(std::span<const Part> parts, LayerObserver* observer = nullptr) {
    std::vector<int32_t> tokens, rows, prompts;
    std::vector<AttentionSequence> sequences;
    for (const Part& p : parts) {
      sequences.push_back({static_cast<int32_t>(tokens.size()),
                           static_cast<int32_t>(p.tokens.size()), p.position, p.blocks});
      tokens.insert(tokens.end(), p.tokens.begin(), p.tokens.end());
      prompts.push_back(p.prompt);
    }
    rows.resize(tokens.size());
    std::iota(rows.begin(), rows.end(), 0);
    const size_t vocab = model_.config().vocab_size;
    std::vector<float> logits(tokens.size() * vocab, NAN);
    const auto status = model_.Forward(
        {.tokens = tokens, .sequences = sequences, .logit_rows = rows, .prompts = prompts}, kv_,
        observer, {logits.data(), {tokens.size(), vocab}});
    SY_CHECK_MSG(status.ok(), status.ToString());
    return logits;
  }
  KvStorage& kv() { return kv_; }

 private:
  Model& model_;
  KvStorage kv_;
};

inline std::vector<int32_t> RandomTokens(std::mt19937& rng, int count, int vocab) {
  std::vector<int32_t> out(count);
  for (int32_t& t : out) t = static_cast<int32_t>(rng() % vocab);
  return out;
}

inline std::vector<int32_t> Blocks(int begin, int count) {
  std::vector<int32_t> out(count);
  std::iota(out.begin(), out.end(), begin);
  return out;
}

inline bool SameBits(std::span<const float> a, std::span<const float> b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size_bytes()) == 0;
}

inline const Case kPlain{kV3, "reference", DType::kBfloat16};

}  // namespace switchyard
