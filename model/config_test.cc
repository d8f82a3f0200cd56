#include "model/config.h"

#include <gtest/gtest.h>

#include <cmath>
#include <nlohmann/json.hpp>
#include <random>

#include "common/file.h"

namespace switchyard {
namespace {

using nlohmann::json;

json Golden(const std::string& name) {
  auto text = ReadFile("tests/data/goldens/" + name + "/config.json", 1 << 20);
  SY_CHECK_MSG(text.ok(), text.status().ToString());
  return json::parse(*text);
}

absl::StatusOr<ModelConfig> Parse(const json& config, const std::string& generation = "") {
  return ParseModelConfig(config.dump(), generation);
}

// The config with one field changed; null removes its effect.
absl::StatusOr<ModelConfig> With(const std::string& golden, const std::string& field, json value) {
  json config = Golden(golden);
  config[field] = std::move(value);
  return Parse(config);
}

TEST(ConfigTest, ReadsDeepseekV3) {
  const auto c = Parse(Golden("deepseek_v3"));
  ASSERT_TRUE(c.ok()) << c.status();
  EXPECT_EQ(c->attention, ModelConfig::Attention::kMla);
  EXPECT_EQ(c->q_lora_rank, 48);
  EXPECT_EQ(c->layer_is_moe, (std::vector<bool>{false, true, true}));
  EXPECT_EQ(c->gate.groups, 4);
  EXPECT_EQ(c->gate.groups_chosen, 2);
  EXPECT_TRUE(c->gate.group_score_top2 && c->gate.normalize && c->gate_bias);
  EXPECT_FLOAT_EQ(c->gate.scale, 2.5f);
  EXPECT_FLOAT_EQ(c->attention_scale, 1 / std::sqrt(48.0f));
  EXPECT_EQ(c->rope_style, RopeStyle::kInterleaved);
  EXPECT_EQ(c->eos_token_ids, (std::vector<int32_t>{1}));
  EXPECT_EQ(c->KvLayoutFor(DType::kBfloat16, 16).k_dim, 80);
}

TEST(ConfigTest, ReadsQwen3Moe) {
  const auto c = Parse(Golden("qwen3_moe"));
  ASSERT_TRUE(c.ok()) << c.status();
  EXPECT_EQ(c->attention, ModelConfig::Attention::kGqa);
  EXPECT_EQ(c->qk_norm, ModelConfig::QkNorm::kPerHead);
  EXPECT_TRUE(c->gate.normalize);
  EXPECT_EQ(c->head_dim, 32);
  EXPECT_EQ(c->gate.scoring, GateScoring::kSoftmax);
  EXPECT_EQ(c->layer_is_moe, (std::vector<bool>{true, true, true}));
  EXPECT_EQ(With("qwen3_moe", "mlp_only_layers", {1})->layer_is_moe,
            (std::vector<bool>{true, false, true}));
  EXPECT_EQ(With("qwen3_moe", "decoder_sparse_step", 2)->layer_is_moe,
            (std::vector<bool>{false, true, false}));
}

TEST(ConfigTest, ReadsDeepseekV2) {
  const auto c = Parse(Golden("deepseek_v2"));
  ASSERT_TRUE(c.ok()) << c.status();
  EXPECT_EQ(c->attention, ModelConfig::Attention::kMla);
  EXPECT_EQ(c->q_lora_rank, 0);
  EXPECT_EQ(c->shared_experts, 2);
  EXPECT_EQ(c->gate.scoring, GateScoring::kSoftmax);
  EXPECT_FALSE(c->gate.normalize || c->gate_bias || c->gate.group_score_top2);
  EXPECT_EQ(c->rope_style, RopeStyle::kInterleaved);
  EXPECT_TRUE(c->notices.empty());
  json config = Golden("deepseek_v2");
  config["n_group"] = 4;
  config["topk_group"] = 2;
  config["norm_topk_prob"] = true;
  EXPECT_EQ(Parse(config)->gate.groups, 1);  // greedy knows no groups
  EXPECT_EQ(Parse(config)->notices.size(), 1u);
  config["topk_method"] = "group_limited_greedy";
  EXPECT_EQ(Parse(config)->gate.groups, 4);
  EXPECT_EQ(Parse(config)->gate.groups_chosen, 2);
}

TEST(ConfigTest, ReadsOlmoe) {
  const auto c = Parse(Golden("olmoe"));
  ASSERT_TRUE(c.ok()) << c.status();
  EXPECT_EQ(c->qk_norm, ModelConfig::QkNorm::kFullWidth);
  EXPECT_EQ(c->head_dim, 32);
  EXPECT_EQ(c->moe_intermediate_size, 64);
  EXPECT_FALSE(c->clip_qkv.has_value() || c->gate.normalize);
  EXPECT_EQ(With("olmoe", "clip_qkv", 8.0)->clip_qkv, 8.0f);
  EXPECT_TRUE(With("olmoe", "norm_topk_prob", true)->gate.normalize);
  EXPECT_TRUE(With("olmoe", "attention_bias", true)->attention_bias);
}

TEST(ConfigTest, ReadsMixtral) {
  const auto c = Parse(Golden("mixtral"));
  ASSERT_TRUE(c.ok()) << c.status();
  EXPECT_EQ(c->moe_names.block, "block_sparse_moe");
  EXPECT_EQ(c->gate.experts, 8);
  EXPECT_TRUE(c->gate.normalize);
  json bare = Golden("mixtral");
  bare.erase("rms_norm_eps");
  bare.erase("rope_theta");
  EXPECT_EQ(Parse(bare)->rms_norm_eps, 1e-5f);
  EXPECT_EQ(Parse(bare)->rope_theta, 1e6);
}

TEST(ConfigTest, AWindowThatNeverSlidesIsNone) {
  for (const json& window : {json(), json(4096), json(1 << 30)}) {
    const auto c = With("mixtral", "sliding_window", window);
    ASSERT_TRUE(c.ok()) << c.status();
    EXPECT_EQ(c->sliding_window, 0);
  }
  const auto c = With("mixtral", "sliding_window", 4095);
  EXPECT_EQ(c->sliding_window, 4095);
  EXPECT_EQ(c->max_position_embeddings, 4096);

  json qwen3 = Golden("qwen3_moe");
  qwen3["sliding_window"] = 100;  // not used
  EXPECT_EQ(Parse(qwen3)->sliding_window, 0);
  qwen3["use_sliding_window"] = true;
  EXPECT_EQ(Parse(qwen3)->sliding_window, 100);
}

TEST(ConfigTest, ReadsFp8) {
  const auto c = Parse(Golden("deepseek_v3_fp8"));
  ASSERT_TRUE(c.ok()) << c.status();
  ASSERT_TRUE(c->fp8.has_value());
  EXPECT_EQ(c->fp8->rows, 128);
  EXPECT_EQ(c->fp8->columns, 128);
  EXPECT_EQ(c->notices.size(), 1u);
  const std::pair<const char*, json> bad[] = {{"quant_method", "gptq"},
                                              {"quant_method", nullptr},
                                              {"fmt", "e5m2"},
                                              {"weight_block_size", {128}},
                                              {"weight_block_size", {0, 128}},
                                              {"weight_block_size", nullptr}};
  for (const auto& [field, value] : bad) {
    json config = Golden("deepseek_v3_fp8");
    config["quantization_config"][field] = value;
    const auto status = Parse(config).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << field;
    EXPECT_NE(status.message().find(std::string("config.json: quantization_config: ") + field),
              std::string::npos)
        << status;
  }
}

// Errors name file, field, value and what is supported.
TEST(ConfigTest, RefusesWhatItCannotHonour) {
  struct Bad {
    const char* golden;
    const char* field;
    json value;
  };
  const Bad cases[] = {
      {"deepseek_v3", "architectures", {"GPT2LMHeadModel"}},
      {"deepseek_v3", "architectures", json::array()},
      {"deepseek_v3", "hidden_act", "gelu"},
      {"mixtral", "attention_bias", true},
      {"deepseek_v3", "attention_bias", "yes"},
      {"deepseek_v3", "quantization_config", "fp8"},
      {"mixtral", "sliding_window", 0},
      {"olmoe", "clip_qkv", 0},
      {"olmoe", "clip_qkv", -2},
      {"olmoe", "num_experts_per_tok", 17},
      {"mixtral", "num_local_experts", nullptr},
      {"deepseek_v2", "scoring_func", "sigmoid"},
      {"deepseek_v2", "topk_method", "noaux_tc"},
      {"deepseek_v2", "mlp_bias", true},
      {"qwen3_moe", "layer_types", {"full_attention", "sliding_attention"}},
      {"deepseek_v3", "scoring_func", "softmax"},
      {"deepseek_v3", "topk_method", "greedy"},
      {"deepseek_v3", "moe_layer_freq", 2},
      {"deepseek_v3", "num_key_value_heads", 2},
      {"qwen3_moe", "num_key_value_heads", 3},
      {"qwen3_moe", "head_dim", 31},
      {"deepseek_v3", "qk_rope_head_dim", 15},
      {"deepseek_v3", "n_group", 3},
      {"deepseek_v3", "topk_group", 5},
      {"deepseek_v3", "num_experts_per_tok", 9},
      {"qwen3_moe", "num_experts_per_tok", 17},
      {"deepseek_v3", "vocab_size", 0},
      {"deepseek_v3", "vocab_size", -5},
      {"deepseek_v3", "vocab_size", 1e18},
      {"deepseek_v3", "hidden_size", 128.5},
      {"deepseek_v3", "hidden_size", "128"},
      {"deepseek_v3", "num_hidden_layers", 1000000},
      {"deepseek_v3", "kv_lora_rank", nullptr},
      {"deepseek_v3", "eos_token_id", 512},
      {"deepseek_v3", "rope_theta", 0.5},
      {"deepseek_v3", "torch_dtype", "float16"},
      {"deepseek_v3", "dtype", "float16"},
      {"qwen3_moe", "mlp_only_layers", {3}},
      {"qwen3_moe", "partial_rotary_factor", 0.5},
      {"deepseek_v3", "tie_word_embeddings", 1},
  };
  for (const Bad& bad : cases) {
    const auto c = With(bad.golden, bad.field, bad.value);
    ASSERT_FALSE(c.ok()) << bad.field << " = " << bad.value;
    EXPECT_EQ(c.status().code(), absl::StatusCode::kInvalidArgument);
    const std::string message(c.status().message());
    EXPECT_NE(message.find("config.json: "), std::string::npos) << message;
    EXPECT_NE(message.find(bad.field), std::string::npos) << message;
    EXPECT_NE(message.find("supported: "), std::string::npos) << message;
  }
  json lonely = Golden("deepseek_v3");  // a group of one expert has no two best
  lonely["n_group"] = lonely["topk_group"] = 16;
  EXPECT_FALSE(Parse(lonely).ok());
  const auto c = With("deepseek_v3", "architectures", {"GPT2LMHeadModel"});
  for (const char* name : {"GPT2LMHeadModel", "DeepseekV3ForCausalLM", "Qwen3MoeForCausalLM"}) {
    EXPECT_NE(c.status().message().find(name), std::string::npos) << c.status();
  }
}

TEST(ConfigTest, RefusesWhatIsNoObject) {
  for (const std::string& text :
       {std::string(), std::string("[]"), std::string("{"), std::string("{\"a\":1,\"a\":2}"),
        std::string(500000, '['), "{\"a\":" + std::string(500000, '[')}) {
    EXPECT_EQ(ParseModelConfig(text, "").status().code(), absl::StatusCode::kInvalidArgument);
  }
  EXPECT_FALSE(ParseModelConfig(Golden("deepseek_v3").dump(), "[]").ok());
}

TEST(ConfigTest, JoinsEndTokensOfBothFiles) {
  json config = Golden("qwen3_moe");
  config["eos_token_id"] = {7, 3};
  const auto c = Parse(config, R"({"eos_token_id": [3, 9]})");
  ASSERT_TRUE(c.ok()) << c.status();
  EXPECT_EQ(c->eos_token_ids, (std::vector<int32_t>{7, 3, 9}));
  EXPECT_FALSE(Parse(config, R"({"eos_token_id": 512})").ok());
}

double Mscale(double factor, double m) { return 0.1 * m * std::log(factor) + 1; }

TEST(ConfigTest, YarnScalesAttentionAsTheModelDoes) {
  const double plain = 1 / std::sqrt(48.0);
  struct Case {
    json mscale, all_dim;
    double factor_on_cos, on_scale;
  };
  const Case cases[] = {
      {1.0, 1.0, 1.0, Mscale(8, 1)},
      {0.7, 1.3, Mscale(8, 0.7) / Mscale(8, 1.3), Mscale(8, 1.3)},
      {nullptr, nullptr, Mscale(8, 1), 1.0},
      {nullptr, 0.5, Mscale(8, 1), Mscale(8, 0.5)},  // no ratio without both
      {0.5, 0.0, Mscale(8, 1), 1.0},
  };
  for (const Case& k : cases) {
    json config = Golden("deepseek_v3_yarn");
    config["rope_scaling"]["mscale"] = k.mscale;
    config["rope_scaling"]["mscale_all_dim"] = k.all_dim;
    const auto c = Parse(config);
    ASSERT_TRUE(c.ok()) << c.status();
    EXPECT_DOUBLE_EQ(c->yarn->attention_factor, k.factor_on_cos);
    EXPECT_FLOAT_EQ(c->attention_scale, static_cast<float>(plain * k.on_scale * k.on_scale));
    EXPECT_FLOAT_EQ(c->MakeRopeTable(1).cos[0], static_cast<float>(k.factor_on_cos));
  }
  json config = Golden("deepseek_v3_yarn");
  config["rope_scaling"]["attention_factor"] = 1.5;
  EXPECT_DOUBLE_EQ(Parse(config)->yarn->attention_factor, 1.5);
}

TEST(ConfigTest, OldAndNewSpellingsOfRopeAgree) {
  const auto wanted = Parse(Golden("deepseek_v3_yarn"))->MakeRopeTable(100);
  for (const char* key : {"type", "rope_type"}) {
    for (const char* field : {"rope_scaling", "rope_parameters"}) {
      json config = Golden("deepseek_v3_yarn");
      json rope = config["rope_scaling"];
      rope.erase("type");
      rope.erase("rope_type");
      rope[key] = "yarn";
      config.erase("rope_scaling");
      config.erase("rope_theta");
      config[field] = rope;
      const auto c = Parse(config);
      ASSERT_TRUE(c.ok()) << c.status();
      EXPECT_EQ(c->MakeRopeTable(100).cos, wanted.cos);
    }
  }
  json config = Golden("qwen3_moe");
  config.erase("rope_theta");
  config["rope_parameters"] = {{"rope_type", "default"}, {"rope_theta", 5e6}};
  EXPECT_EQ(Parse(config)->rope_theta, 5e6);
  EXPECT_FALSE(Parse(config)->yarn.has_value());
  config["rope_parameters"]["rope_type"] = "llama3";
  EXPECT_NE(
      Parse(config).status().message().find("rope_type: \"llama3\"; supported: default, yarn"),
      std::string::npos)
      << Parse(config).status();
}

TEST(ConfigTest, OldAndNewNamesOfTheNumberOfExpertsAgree) {
  for (const char* name : {"qwen3_moe", "olmoe"}) {
    json config = Golden(name);
    const int experts = config["num_experts"];
    config["num_local_experts"] = experts + 1;  // the old name counts where both are
    EXPECT_EQ(Parse(config)->gate.experts, experts);
    config["num_local_experts"] = experts;
    config.erase("num_experts");
    EXPECT_EQ(Parse(config)->gate.experts, experts);
    config.erase("num_local_experts");
    EXPECT_NE(Parse(config).status().message().find("num_experts: missing"), std::string::npos);
  }
}

TEST(ConfigTest, RopeTableIsThePlainFormula) {
  const auto c = Parse(Golden("qwen3_moe"));
  const RopeTable t = c->MakeRopeTable(300);
  for (const int p : {0, 1, 17, 299}) {
    for (int i = 0; i < 16; ++i) {
      const double angle = p * std::pow(1e6, -2.0 * i / 32);
      EXPECT_NEAR(t.cos[p * 16 + i], std::cos(angle), 3e-5);
      EXPECT_NEAR(t.sin[p * 16 + i], std::sin(angle), 3e-5);
    }
  }
}

// Whatever a file says, parsing ends with a status or a config whose parts fit each other.
TEST(ConfigTest, SurvivesRandomFields) {
  const uint32_t seed = 20;
  SCOPED_TRACE(seed);
  std::mt19937 rng(seed);
  const json values[] = {nullptr,
                         true,
                         -1,
                         0,
                         1,
                         2,
                         3,
                         7,
                         16,
                         1e9,
                         1e300,
                         0.5,
                         "yarn",
                         "",
                         json::array(),
                         json::array({1, "x"}),
                         json::object()};
  for (int round = 0; round < 3000; ++round) {
    constexpr const char* kGoldens[] = {"deepseek_v3_yarn", "qwen3_moe", "deepseek_v2",
                                        "deepseek_v3_fp8",  "mixtral",   "olmoe"};
    json config = Golden(kGoldens[round % std::size(kGoldens)]);
    for (int n = 0; n < 2; ++n) {
      json& object =
          config.contains("rope_scaling") && config["rope_scaling"].is_object() && rng() % 4 == 0
              ? config["rope_scaling"]
              : config;
      auto it = object.begin();
      std::advance(it, rng() % object.size());
      *it = values[rng() % std::size(values)];
    }
    const auto c = Parse(config);
    if (!c.ok()) continue;
    EXPECT_EQ(c->layer_is_moe.size(), static_cast<size_t>(c->layers));
    EXPECT_GT(c->attention_scale, 0);
    EXPECT_LE(c->gate.top_k, c->gate.experts / c->gate.groups * c->gate.groups_chosen);
    for (const float v : c->MakeRopeTable(2).cos) EXPECT_TRUE(std::isfinite(v)) << config;
  }
}

}  // namespace
}  // namespace switchyard
