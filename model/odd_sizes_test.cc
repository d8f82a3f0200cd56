// Models of sizes that fit no tile: every kernel path against the reference, and chunks against the
// whole. Weights are dummies; the meaning of every field is tested against stored references.
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "model/model_testing.h"

namespace switchyard {
namespace {

using nlohmann::json;

int Pick(std::mt19937& rng, int low, int high) {
  return low + static_cast<int>(rng() % static_cast<uint32_t>(high - low + 1));
}

// A config.json of a random architecture and random sizes.
json RandomConfig(std::mt19937& rng) {
  const int heads = Pick(rng, 1, 11), experts = 3 * Pick(rng, 1, 5);
  json c = {{"vocab_size", Pick(rng, 1, 150)},
            {"hidden_size", Pick(rng, 1, 90)},
            {"num_hidden_layers", Pick(rng, 1, 4)},
            {"max_position_embeddings", 512},
            {"num_attention_heads", heads},
            {"intermediate_size", Pick(rng, 1, 70)},
            {"moe_intermediate_size", Pick(rng, 1, 40)},
            {"num_experts_per_tok", Pick(rng, 1, experts / 3)},
            {"tie_word_embeddings", rng() % 2 == 0},
            {"norm_topk_prob", rng() % 2 == 0},
            {"head_dim", 2 * Pick(rng, 1, 20)},
            {"num_key_value_heads", heads}};
  for (const char* field : {"num_experts", "num_local_experts", "n_routed_experts"}) {
    c[field] = experts;
  }
  constexpr const char* kGqa[] = {"MixtralForCausalLM", "OlmoeForCausalLM", "Qwen3MoeForCausalLM"};
  const bool v3 = rng() % 2 == 0;
  if (rng() % 2 == 0) {
    c["architectures"] = {kGqa[rng() % 3]};
    if (heads % 3 == 0) c["num_key_value_heads"] = heads / 3;
    if (rng() % 2 == 0) c["num_key_value_heads"] = 1;
    c["clip_qkv"] = 0.5;
    c["decoder_sparse_step"] = Pick(rng, 1, 3);
    c["mlp_only_layers"] = {0};
    return c;
  }
  c["architectures"] = {v3 ? "DeepseekV3ForCausalLM" : "DeepseekV2ForCausalLM"};
  c["topk_method"] = v3 ? "noaux_tc" : "group_limited_greedy";
  if (!v3 || experts > 3) {
    c["n_group"] = 3;
    c["topk_group"] = Pick(rng, 1, 3);
  }
  if (rng() % 2 == 0) c["q_lora_rank"] = Pick(rng, 1, 40);
  c["kv_lora_rank"] = Pick(rng, 1, 60);
  c["qk_nope_head_dim"] = Pick(rng, 1, 40);
  c["qk_rope_head_dim"] = 2 * Pick(rng, 1, 16);
  c["v_head_dim"] = Pick(rng, 1, 40);
  c["first_k_dense_replace"] = Pick(rng, 0, 2);
  c["n_shared_experts"] = Pick(rng, 0, 2);
  return c;
}

// Logits of one sequence, in one step or in `chunk`s.
std::vector<float> Logits(Model& model, std::span<const int32_t> tokens, int chunk) {
  const auto blocks = Blocks(0, 4);
  Bench bench(model, 4);
  std::vector<float> out;
  for (int begin = 0; begin < static_cast<int>(tokens.size()); begin += chunk) {
    const size_t count = std::min<size_t>(chunk, tokens.size() - begin);
    const auto part =
        bench.Run(std::vector<Bench::Part>{{tokens.subspan(begin, count), begin, blocks}});
    out.insert(out.end(), part.begin(), part.end());
  }
  return out;
}

class OddSizesTest : public testing::TestWithParam<int> {};

TEST_P(OddSizesTest, EveryPathIsTheReferenceAndChunksAreTheWhole) {
  std::mt19937 rng(GetParam());
  const json config = RandomConfig(rng);
  SCOPED_TRACE(config.dump());
  const std::string dir = testing::TempDir() + "/odd" + std::to_string(GetParam());
  std::filesystem::create_directories(dir);
  std::ofstream(dir + "/config.json") << config;
  const auto tokens = RandomTokens(rng, 37, config["vocab_size"]);
  for (const DType dtype : kBothDtypes) {
    std::vector<float> wanted;
    for (const KernelSet& kernels : AvailableKernels()) {
      SCOPED_TRACE(kernels.name);
      ModelOptions options;
      options.kernels = kernels.name;
      options.dtype = dtype;
      options.dummy_weights = true;
      const auto model = Model::Load(dir, options);
      ASSERT_TRUE(model.ok()) << model.status();
      const auto whole = Logits(**model, tokens, 37);
      EXPECT_TRUE(SameBits(whole, Logits(**model, tokens, 5)));
      if (wanted.empty()) wanted = whole;  // the first is the reference
      std::vector<double> deltas;
      for (size_t i = 0; i < whole.size(); ++i) {
        ASSERT_TRUE(std::isfinite(whole[i]));
        deltas.push_back(std::abs(whole[i] - wanted[i]));
      }
      std::sort(deltas.begin(), deltas.end());
      if (dtype == DType::kFloat32) {
        EXPECT_LE(deltas.back(), 1e-3);
      } else {  // a last bit may choose another expert, but not for most tokens
        EXPECT_LE(deltas[deltas.size() / 2], 0.03);
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Seeds, OddSizesTest, testing::Range(0, 24));

}  // namespace
}  // namespace switchyard
