#include "model/config.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "common/file.h"
#include "common/status_macros.h"
#include "model/config_parts.h"

namespace switchyard {
namespace {

using nlohmann::json;

constexpr size_t kFileBytesMax = 1 << 20;

// FP8 weights as DeepSeek-V3 stores them. Activations stay BF16, whatever the scheme for them.
void ReadQuantization(JsonFields& f, ModelConfig& c) {
  const json* object = f.Object("quantization_config");
  if (object == nullptr) return;
  JsonFields q(*object, absl::StrCat(f.where(), ": quantization_config"));
  q.Require(q.String("quant_method", "") == "fp8", "quant_method", "fp8");
  q.Require(q.String("fmt", "e4m3") == "e4m3", "fmt", "e4m3");
  const std::vector<int32_t> block = q.Ints("weight_block_size", 1, kWidthMax);
  q.Require(block.size() == 2, "weight_block_size", "[rows, columns]");
  f.Adopt(q.status());
  if (!q.status().ok()) return;
  c.fp8 = Fp8Blocks{block[0], block[1]};
  c.notices.push_back("FP8 weights are computed as BF16: they take twice the memory of the files");
}

// Fields that every decoder of the family shares.
void ReadCommon(JsonFields& f, ModelConfig& c) {
  c.vocab_size = f.Int("vocab_size", 1, kVocabMax);
  c.hidden_size = f.Int("hidden_size", 1, kWidthMax);
  c.layers = f.Int("num_hidden_layers", 1, kLayersMax);
  c.max_position_embeddings = f.Int("max_position_embeddings", 1, kPositionsMax);
  c.rms_norm_eps = static_cast<float>(f.Number("rms_norm_eps", 1e-12, 1e-1, c.rms_norm_eps));
  c.tie_word_embeddings = f.Bool("tie_word_embeddings", false);
  c.heads = f.Int("num_attention_heads", 1, kHeadsMax);
  c.gate.top_k = f.Int("num_experts_per_tok", 1, kTopKMax);

  f.Require(f.String("hidden_act", "silu") == "silu", "hidden_act", "silu");
  c.attention_bias = f.Bool("attention_bias", false);
  ReadQuantization(f, c);
  for (const char* name : {"dtype", "torch_dtype"}) {
    const std::string dtype = f.String(name, "bfloat16");
    f.Require(dtype == "bfloat16" || dtype == "float32", name, "bfloat16, float32");
  }
  for (const std::string& type : f.Strings("layer_types")) {
    f.Require(type == "full_attention", "layer_types", "full_attention only");
  }
}

void AddEndTokens(JsonFields& f, ModelConfig& c) {
  for (int32_t id : f.Ints("eos_token_id", 0, c.vocab_size - 1)) {
    auto& ids = c.eos_token_ids;
    if (std::find(ids.begin(), ids.end(), id) == ids.end()) ids.push_back(id);
  }
}

}  // namespace

absl::StatusOr<ModelConfig> ParseModelConfig(std::string_view config_json,
                                             std::string_view generation_json) {
  constexpr const char* kFile = "config.json";
  constexpr const char* kGenerationFile = "generation_config.json";
  ASSIGN_OR_RETURN(const json document, ParseJsonObject(config_json, kFile));
  JsonFields f(document, kFile);
  ModelConfig c;
  const std::vector<std::string> names = f.Strings("architectures");
  const Architecture* architecture = names.empty() ? nullptr : FindArchitecture(names[0]);
  if (architecture == nullptr) {
    return absl::InvalidArgumentError(
        absl::StrCat(kFile, ": architectures: ", names.empty() ? "missing" : names[0],
                     "; supported: ", SupportedArchitectures()));
  }
  c.architecture = names[0];
  c.rms_norm_eps = architecture->rms_norm_eps;
  c.rope_theta = architecture->rope_theta;
  ReadCommon(f, c);
  RETURN_IF_ERROR(f.status());  // the rest divides by what was read
  architecture->read(f, c);
  AddEndTokens(f, c);
  if (f.Has("bos_token_id")) c.bos_token_id = f.Int("bos_token_id", 0, c.vocab_size - 1);
  RETURN_IF_ERROR(f.status());

  if (!generation_json.empty()) {
    ASSIGN_OR_RETURN(const json generation, ParseJsonObject(generation_json, kGenerationFile));
    JsonFields g(generation, kGenerationFile);
    AddEndTokens(g, c);
    RETURN_IF_ERROR(g.status());
  }
  return c;
}

absl::StatusOr<ModelConfig> LoadModelConfig(const std::string& dir) {
  ASSIGN_OR_RETURN(const std::string config, ReadFile(dir + "/config.json", kFileBytesMax));
  auto generation = ReadFile(dir + "/generation_config.json", kFileBytesMax);
  if (!generation.ok() && !absl::IsNotFound(generation.status())) return generation.status();
  auto parsed = ParseModelConfig(config, generation.ok() ? *generation : "");
  if (!parsed.ok()) {
    return absl::Status(parsed.status().code(),
                        absl::StrCat(dir, "/", std::string(parsed.status().message())));
  }
  return parsed;
}

KvLayout ModelConfig::KvLayoutFor(DType dtype, int block_tokens) const {
  KvLayout layout;
  const bool mla = attention == Attention::kMla;
  layout.kind = mla ? KvLayout::Kind::kMla : KvLayout::Kind::kGqa;
  layout.layers = layers;
  layout.kv_heads = mla ? 1 : kv_heads;
  layout.k_dim = mla ? kv_lora_rank + qk_rope_head_dim : head_dim;
  layout.v_dim = mla ? kv_lora_rank : head_dim;
  layout.block_tokens = block_tokens;
  layout.dtype = dtype;
  return layout;
}

}  // namespace switchyard
