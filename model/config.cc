#include "model/config.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/file.h"
#include "common/status_macros.h"
#include "model/json_fields.h"

namespace switchyard {
namespace {

using nlohmann::json;

constexpr size_t kFileBytesMax = 1 << 20;
// Upper bounds: a few times the largest model that exists, small enough that no product of two
// overflows and that a hostile file cannot ask for absurd tables.
constexpr int kWidthMax = 1 << 17, kHeadDimMax = 512, kHeadsMax = 1024, kLayersMax = 1024;
constexpr int kVocabMax = 1 << 22, kPositionsMax = 1 << 21, kExpertsMax = 4096, kTopKMax = 64;

// YaRN's temperature, section 3.4 of the paper; DeepSeek scales it by `mscale`.
double YarnMscale(double factor, double mscale) {
  return factor <= 1 ? 1.0 : 0.1 * mscale * std::log(factor) + 1.0;
}

// What RoPE leaves for the attention scale: DeepSeek multiplies it by mscale_all_dim's temperature,
// squared; others do not.
struct RopeExtras {
  double factor = 1;
  double mscale_all_dim = 0;
};

RopeExtras ReadYarn(JsonFields& f, ModelConfig& c) {
  YarnScaling y;
  y.factor = f.Number("factor", 1, 4096);
  y.beta_fast = f.Number("beta_fast", 1e-3, 1e6, 32);
  y.beta_slow = f.Number("beta_slow", 1e-3, 1e6, 1);
  y.truncate = f.Bool("truncate", true);
  y.original_max_position_embeddings =
      f.Int("original_max_position_embeddings", 1, kPositionsMax, c.max_position_embeddings);
  const double mscale = f.Number("mscale", 0, 100, 0);
  const double mscale_all_dim = f.Number("mscale_all_dim", 0, 100, 0);
  const double derived = mscale != 0 && mscale_all_dim != 0
                             ? YarnMscale(y.factor, mscale) / YarnMscale(y.factor, mscale_all_dim)
                             : YarnMscale(y.factor, 1);
  y.attention_factor = f.Number("attention_factor", 1e-3, 1e3, derived);
  c.yarn = y;
  return {y.factor, mscale_all_dim};
}

// rope_theta and rope_scaling; newer files put both into rope_parameters.
RopeExtras ReadRope(JsonFields& f, ModelConfig& c) {
  constexpr double kThetaMax = 1e12;
  f.Require(f.Number("partial_rotary_factor", 0, 1, 1) == 1, "partial_rotary_factor", "1");
  c.rope_theta = f.Number("rope_theta", 1.001, kThetaMax, 10000);
  const char* name = f.Has("rope_parameters") ? "rope_parameters" : "rope_scaling";
  const json* object = f.Object(name);
  if (object == nullptr) return {};
  JsonFields s(*object, absl::StrCat(f.where(), ": ", name));
  c.rope_theta = s.Number("rope_theta", 1.001, kThetaMax, c.rope_theta);
  s.Require(s.Number("partial_rotary_factor", 0, 1, 1) == 1, "partial_rotary_factor", "1");
  const char* key = s.Has("rope_type") ? "rope_type" : "type";
  const std::string type = s.String(key, "default");
  RopeExtras extras;
  if (type == "yarn") {
    extras = ReadYarn(s, c);
  } else {
    s.Require(type == "default", key, "default, yarn");
  }
  f.Adopt(s.status());
  return extras;
}

// Fields that every decoder of the family shares.
void ReadCommon(JsonFields& f, ModelConfig& c) {
  c.vocab_size = f.Int("vocab_size", 1, kVocabMax);
  c.hidden_size = f.Int("hidden_size", 1, kWidthMax);
  c.layers = f.Int("num_hidden_layers", 1, kLayersMax);
  c.max_position_embeddings = f.Int("max_position_embeddings", 1, kPositionsMax);
  c.rms_norm_eps = static_cast<float>(f.Number("rms_norm_eps", 1e-12, 1e-1, 1e-6));
  c.tie_word_embeddings = f.Bool("tie_word_embeddings", false);
  c.heads = f.Int("num_attention_heads", 1, kHeadsMax);
  c.gate.top_k = f.Int("num_experts_per_tok", 1, kTopKMax);

  f.Require(f.String("hidden_act", "silu") == "silu", "hidden_act", "silu");
  f.Require(!f.Bool("attention_bias", false), "attention_bias", "false");
  f.Require(!f.Has("quantization_config"), "quantization_config", "none (BF16 and F32 weights)");
  for (const char* name : {"dtype", "torch_dtype"}) {
    const std::string dtype = f.String(name, "bfloat16");
    f.Require(dtype == "bfloat16" || dtype == "float32", name, "bfloat16, float32");
  }
  for (const std::string& type : f.Strings("layer_types")) {
    f.Require(type == "full_attention", "layer_types", "full_attention only");
  }
}

void ReadGqa(JsonFields& f, ModelConfig& c) {
  c.attention = ModelConfig::Attention::kGqa;
  c.kv_heads = f.Int("num_key_value_heads", 1, kHeadsMax, c.heads);
  f.Require(c.heads % c.kv_heads == 0, "num_key_value_heads",
            absl::StrCat("a divisor of num_attention_heads = ", c.heads));
  if (!f.Has("head_dim")) {
    f.Require(c.hidden_size % c.heads == 0, "head_dim",
              absl::StrCat("a value, as num_attention_heads = ", c.heads,
                           " does not divide hidden_size = ", c.hidden_size));
  }
  c.head_dim = f.Int("head_dim", 1, kHeadDimMax, c.hidden_size / c.heads);
  f.Require(c.head_dim % 2 == 0 && c.head_dim <= kHeadDimMax, "head_dim",
            absl::StrCat("an even number, at most ", kHeadDimMax));
  c.rope_style = RopeStyle::kHalfSplit;
  ReadRope(f, c);
  c.attention_scale = static_cast<float>(1 / std::sqrt(static_cast<double>(c.head_dim)));
}

void ReadMla(JsonFields& f, ModelConfig& c) {
  c.attention = ModelConfig::Attention::kMla;
  c.kv_heads = f.Int("num_key_value_heads", 1, kHeadsMax, c.heads);
  f.Require(c.kv_heads == c.heads, "num_key_value_heads",
            absl::StrCat("num_attention_heads = ", c.heads));
  c.q_lora_rank = f.Int("q_lora_rank", 1, kWidthMax, 0);
  c.kv_lora_rank = f.Int("kv_lora_rank", 1, 8192);
  c.qk_nope_head_dim = f.Int("qk_nope_head_dim", 1, kHeadDimMax);
  c.qk_rope_head_dim = f.Int("qk_rope_head_dim", 2, kHeadDimMax);
  c.v_head_dim = f.Int("v_head_dim", 1, kHeadDimMax);
  f.Require(c.qk_rope_head_dim % 2 == 0, "qk_rope_head_dim", "an even number");
  c.rope_style = f.Bool("rope_interleave", true) ? RopeStyle::kInterleaved : RopeStyle::kHalfSplit;
  const RopeExtras rope = ReadRope(f, c);
  double scale = 1 / std::sqrt(static_cast<double>(c.qk_nope_head_dim + c.qk_rope_head_dim));
  if (rope.mscale_all_dim != 0) {
    const double mscale = YarnMscale(rope.factor, rope.mscale_all_dim);
    scale *= mscale * mscale;
  }
  c.attention_scale = static_cast<float>(scale);
}

// Experts in groups, as DeepSeek has them.
void ReadGroupedGate(JsonFields& f, ModelConfig& c) {
  GateConfig& g = c.gate;
  g.experts = f.Int("n_routed_experts", 1, kExpertsMax);
  g.groups = f.Int("n_group", 1, kExpertsMax, 1);
  f.Require(g.experts % g.groups == 0, "n_group",
            absl::StrCat("a divisor of n_routed_experts = ", g.experts));
  g.groups_chosen = f.Int("topk_group", 1, kExpertsMax, g.groups);
  f.Require(g.groups_chosen <= g.groups, "topk_group",
            absl::StrCat("at most n_group = ", g.groups));
  const int eligible = g.experts / g.groups * g.groups_chosen;
  f.Require(g.top_k <= eligible, "num_experts_per_tok",
            absl::StrCat("at most the ", eligible, " experts of topk_group groups"));
}

void ReadDeepseekV3(JsonFields& f, ModelConfig& c) {
  ReadMla(f, c);
  ReadGroupedGate(f, c);
  f.Require(f.String("scoring_func", "sigmoid") == "sigmoid", "scoring_func", "sigmoid");
  f.Require(f.String("topk_method", "noaux_tc") == "noaux_tc", "topk_method", "noaux_tc");
  c.gate.scoring = GateScoring::kSigmoid;
  c.gate.group_score_top2 = true;
  f.Require(c.gate.groups == 1 || c.gate.experts / c.gate.groups >= 2, "n_group",
            "groups of at least two experts");
  c.gate.normalize = f.Bool("norm_topk_prob", true);
  c.gate.scale = static_cast<float>(f.Number("routed_scaling_factor", 1e-6, 1e6, 2.5));
  c.gate_bias = true;

  c.intermediate_size = f.Int("intermediate_size", 1, kWidthMax);
  c.moe_intermediate_size = f.Int("moe_intermediate_size", 1, kWidthMax);
  c.shared_experts = f.Int("n_shared_experts", 0, 64, 0);
  f.Require(f.Int("moe_layer_freq", 1, kLayersMax, 1) == 1, "moe_layer_freq", "1");
  const int dense = f.Int("first_k_dense_replace", 0, kLayersMax, 0);
  for (int l = 0; l < c.layers; ++l) c.layer_is_moe.push_back(l >= dense);
  c.mtp_layers = f.Int("num_nextn_predict_layers", 0, 16, 0);
}

void ReadQwen3Moe(JsonFields& f, ModelConfig& c) {
  ReadGqa(f, c);
  c.qk_norm = true;
  f.Require(!f.Bool("use_sliding_window", false), "use_sliding_window", "false");
  c.gate.experts = f.Int("num_experts", 1, kExpertsMax);
  f.Require(c.gate.top_k <= c.gate.experts, "num_experts_per_tok",
            absl::StrCat("at most num_experts = ", c.gate.experts));
  c.gate.normalize = f.Bool("norm_topk_prob", false);
  c.intermediate_size = f.Int("intermediate_size", 1, kWidthMax);
  c.moe_intermediate_size = f.Int("moe_intermediate_size", 1, kWidthMax);
  const int step = f.Int("decoder_sparse_step", 1, kLayersMax, 1);
  for (int l = 0; l < c.layers; ++l) c.layer_is_moe.push_back((l + 1) % step == 0);
  for (int l : f.Ints("mlp_only_layers", 0, c.layers - 1)) c.layer_is_moe[l] = false;
}

struct Architecture {
  std::string_view name;
  void (*read)(JsonFields&, ModelConfig&);
};
constexpr std::array kArchitectures = {
    Architecture{"DeepseekV3ForCausalLM", ReadDeepseekV3},
    Architecture{"Qwen3MoeForCausalLM", ReadQwen3Moe},
};

const Architecture* FindArchitecture(std::string_view name) {
  for (const Architecture& a : kArchitectures) {
    if (a.name == name) return &a;
  }
  return nullptr;
}

std::string SupportedArchitectures() {
  std::string out;
  for (const Architecture& a : kArchitectures) {
    absl::StrAppend(&out, out.empty() ? "" : ", ", std::string(a.name));
  }
  return out;
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
