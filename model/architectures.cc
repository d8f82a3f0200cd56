// The architectures: what each calls its fields and tensors, and what it fixes without saying.
#include <array>
#include <climits>

#include "absl/strings/str_cat.h"
#include "model/config_parts.h"

namespace switchyard {
namespace {

void ReadPlainGate(JsonFields& f, ModelConfig& c, const char* experts_field) {
  c.gate.experts = f.Int(experts_field, 1, kExpertsMax);
  f.Require(c.gate.top_k <= c.gate.experts, "num_experts_per_tok",
            absl::StrCat("at most ", experts_field, " = ", c.gate.experts));
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

// The FFNs of DeepSeek: dense layers first, shared experts in the others.
void ReadDeepseekFfn(JsonFields& f, ModelConfig& c) {
  c.intermediate_size = f.Int("intermediate_size", 1, kWidthMax);
  c.moe_intermediate_size = f.Int("moe_intermediate_size", 1, kWidthMax);
  c.shared_experts = f.Int("n_shared_experts", 0, 64, 0);
  f.Require(f.Int("moe_layer_freq", 1, kLayersMax, 1) == 1, "moe_layer_freq", "1");
  f.Require(!f.Bool("mlp_bias", false), "mlp_bias", "false");
  const int dense = f.Int("first_k_dense_replace", 0, kLayersMax, 0);
  for (int l = 0; l < c.layers; ++l) c.layer_is_moe.push_back(l >= dense);
  c.mtp_layers = f.Int("num_nextn_predict_layers", 0, 16, 0);
}

void ReadDeepseekV2(JsonFields& f, ModelConfig& c) {
  ReadMla(f, c);
  f.Require(f.String("scoring_func", "softmax") == "softmax", "scoring_func", "softmax");
  const std::string method = f.String("topk_method", "greedy");
  if (method == "group_limited_greedy") {
    ReadGroupedGate(f, c);
  } else {
    f.Require(method == "greedy", "topk_method", "greedy, group_limited_greedy");
    ReadPlainGate(f, c, "n_routed_experts");
  }
  if (f.Bool("norm_topk_prob", false)) {
    c.notices.push_back("norm_topk_prob is not applied to DeepSeek-V2, as in transformers");
  }
  c.gate.scale = static_cast<float>(f.Number("routed_scaling_factor", 1e-6, 1e6, 1));
  ReadDeepseekFfn(f, c);
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
  ReadDeepseekFfn(f, c);
}

// A window that never slides is none.
int Window(int window, const ModelConfig& c) {
  return window >= c.max_position_embeddings ? 0 : window;
}

void ReadMixtral(JsonFields& f, ModelConfig& c) {
  ReadGqa(f, c);
  f.Require(!c.attention_bias, "attention_bias", "false");
  c.sliding_window = Window(f.Int("sliding_window", 1, INT_MAX, INT_MAX), c);
  ReadPlainGate(f, c, "num_local_experts");
  c.gate.normalize = true;  // a softmax over the chosen logits
  c.moe_intermediate_size = f.Int("intermediate_size", 1, kWidthMax);
  c.moe_names = {.block = "block_sparse_moe", .gate = "w1", .up = "w3", .down = "w2"};
  c.layer_is_moe.assign(c.layers, true);
}

// Newer files of both have Mixtral's name for it.
const char* ExpertsField(const JsonFields& f) {
  return f.Has("num_experts") || !f.Has("num_local_experts") ? "num_experts" : "num_local_experts";
}

void ReadOlmoe(JsonFields& f, ModelConfig& c) {
  ReadGqa(f, c);
  c.qk_norm = ModelConfig::QkNorm::kFullWidth;
  if (f.Has("clip_qkv")) c.clip_qkv = static_cast<float>(f.Number("clip_qkv", 1e-6, 1e6));
  ReadPlainGate(f, c, ExpertsField(f));
  c.gate.normalize = f.Bool("norm_topk_prob", false);
  c.moe_intermediate_size = f.Int("intermediate_size", 1, kWidthMax);
  c.layer_is_moe.assign(c.layers, true);
}

void ReadQwen3Moe(JsonFields& f, ModelConfig& c) {
  ReadGqa(f, c);
  c.qk_norm = ModelConfig::QkNorm::kPerHead;
  if (f.Bool("use_sliding_window", false)) {
    c.sliding_window = Window(f.Int("sliding_window", 1, INT_MAX, 4096), c);
  }
  ReadPlainGate(f, c, ExpertsField(f));
  c.gate.normalize = f.Bool("norm_topk_prob", false);
  c.intermediate_size = f.Int("intermediate_size", 1, kWidthMax);
  c.moe_intermediate_size = f.Int("moe_intermediate_size", 1, kWidthMax);
  const int step = f.Int("decoder_sparse_step", 1, kLayersMax, 1);
  for (int l = 0; l < c.layers; ++l) c.layer_is_moe.push_back((l + 1) % step == 0);
  for (int l : f.Ints("mlp_only_layers", 0, c.layers - 1)) c.layer_is_moe[l] = false;
}

constexpr std::array kArchitectures = {
    Architecture{"DeepseekV2ForCausalLM", 1e-6f, 1e4, ReadDeepseekV2},
    Architecture{"DeepseekV3ForCausalLM", 1e-6f, 1e4, ReadDeepseekV3},
    Architecture{"MixtralForCausalLM", 1e-5f, 1e6, ReadMixtral},
    Architecture{"OlmoeForCausalLM", 1e-5f, 1e4, ReadOlmoe},
    Architecture{"Qwen3MoeForCausalLM", 1e-6f, 1e4, ReadQwen3Moe},
};

}  // namespace

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

}  // namespace switchyard
