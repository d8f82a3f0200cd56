// Both forms of MLA in one model: a row's form, and so its bits, follow from its token, however
// steps are cut and batched. Tolerances against references are in model_test.cc.
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "model/model_testing.h"

namespace switchyard {
namespace {

Case Auto(const char* dir, DType dtype = DType::kBfloat16, const char* kernels = "auto") {
  Case c{dir, kernels, dtype};
  c.mla = MlaForms::kAuto;
  return c;
}

// Logits of all rows of one sequence, computed in chunks.
std::vector<float> InChunks(Model& model, std::span<const int32_t> tokens, int32_t prompt,
                            const std::vector<int>& chunks) {
  const auto blocks = Blocks(0, static_cast<int>(tokens.size() + 15) / 16);
  Bench bench(model, static_cast<int>(blocks.size()));
  std::vector<float> out;
  int32_t at = 0;
  for (const int count : chunks) {
    const Bench::Part part{tokens.subspan(at, count), at, blocks, prompt};
    const auto logits = bench.Run({&part, 1});
    out.insert(out.end(), logits.begin(), logits.end());
    at += count;
  }
  SY_CHECK(at == static_cast<int32_t>(tokens.size()));
  return out;
}

class MlaFormsTest : public testing::TestWithParam<Case> {};

TEST_P(MlaFormsTest, AReplayEqualsPromptAndDecode) {
  const auto model = LoadOrDie(GetParam());
  const size_t vocab = model->config().vocab_size;
  std::mt19937 rng(21);
  const auto tokens = RandomTokens(rng, 40, static_cast<int>(vocab));
  constexpr int kPrompt = 25;
  std::vector<int> decoded = {16, 9};
  decoded.resize(2 + 40 - kPrompt, 1);
  const auto wanted = InChunks(*model, tokens, kPrompt, decoded);
  EXPECT_TRUE(SameBits(InChunks(*model, tokens, kPrompt, {40}), wanted));
  EXPECT_TRUE(SameBits(InChunks(*model, tokens, kPrompt, {20, 10, 10}), wanted));
  EXPECT_TRUE(SameBits(InChunks(*model, tokens, kPrompt, {24, 1, 1, 14}), wanted));
  // That the forms differ: else nothing is shown. The prompt's rows do not know what follows.
  const auto all_prompt = InChunks(*model, tokens, 40, {40});
  EXPECT_TRUE(SameBits(std::span(all_prompt).first(kPrompt * vocab),
                       std::span(wanted).first(kPrompt * vocab)));
  EXPECT_FALSE(SameBits(all_prompt, wanted));
  Case absorbed = GetParam();
  absorbed.mla = MlaForms::kAbsorbed;
  const auto other = LoadOrDie(absorbed);
  EXPECT_FALSE(SameBits(InChunks(*other, tokens, kPrompt, {40}), wanted));
  const auto all_generated = InChunks(*model, tokens, 0, {40});
  EXPECT_TRUE(SameBits(InChunks(*other, tokens, kPrompt, {40}), all_generated));
}

// Prompts, replays and decode rows side by side, in an order that leaves rows of a form apart.
TEST_P(MlaFormsTest, BatchEqualsEachAlone) {
  const auto model = LoadOrDie(GetParam(), 2), single_threaded = LoadOrDie(GetParam(), 1);
  const int vocab = model->config().vocab_size;
  std::mt19937 rng(22);
  const int lengths[] = {12, 30, 9, 1, 17}, prompts[] = {1, 100, 4, 0, 17};
  std::vector<std::vector<int32_t>> tokens, blocks;
  std::vector<Bench::Part> parts;
  for (int i = 0; i < 5; ++i) {
    tokens.push_back(RandomTokens(rng, lengths[i], vocab));
    blocks.push_back(Blocks(2 * i, 2));
  }
  for (int i = 0; i < 5; ++i) parts.push_back({tokens[i], 0, blocks[i], prompts[i]});
  Bench together(*model, 10);
  const auto batch = together.Run(parts);
  size_t row = 0;
  for (int i = 0; i < 5; ++i) {
    const auto wanted = InChunks(*single_threaded, tokens[i], prompts[i], {lengths[i]});
    EXPECT_TRUE(SameBits(std::span(batch).subspan(row * vocab, wanted.size()), wanted))
        << "sequence " << i;
    row += lengths[i];
  }
}

INSTANTIATE_TEST_SUITE_P(All, MlaFormsTest, testing::ValuesIn(AllKernelsExpanded({kV3})), CaseName);

// Past a segment of keys, a GEMM's tokens, and what is expanded at once.
TEST(MlaFormsTest, LongContexts) {
  const auto model = LoadOrDie(Auto(kFables));
  std::mt19937 rng(23);
  const auto tokens = RandomTokens(rng, 1100, model->config().vocab_size);
  const auto wanted = InChunks(*model, tokens, 1090, {1100});
  EXPECT_TRUE(SameBits(InChunks(*model, tokens, 1090, {512, 3, 509, 1, 70, 5}), wanted));
}

// One thread expands three of four such heads at once, four threads expand them all.
TEST(MlaFormsTest, HeadsByGroups) {
  const std::string dir = testing::TempDir() + "/wide_heads";
  std::filesystem::create_directories(dir);
  std::ofstream(dir + "/config.json") << R"({
    "architectures": ["DeepseekV3ForCausalLM"], "model_type": "deepseek_v3", "hidden_act": "silu",
    "vocab_size": 256, "hidden_size": 64, "num_hidden_layers": 1, "max_position_embeddings": 256,
    "rms_norm_eps": 1e-6, "bos_token_id": 0, "eos_token_id": 1, "tie_word_embeddings": false,
    "num_attention_heads": 4, "num_key_value_heads": 4, "q_lora_rank": null, "kv_lora_rank": 64,
    "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128, "intermediate_size": 64,
    "moe_intermediate_size": 32, "first_k_dense_replace": 1, "n_routed_experts": 4,
    "n_shared_experts": 1, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1,
    "norm_topk_prob": true, "routed_scaling_factor": 1.0, "rope_theta": 10000.0,
    "scoring_func": "sigmoid", "topk_method": "noaux_tc"})";
  std::vector<std::vector<float>> found;
  for (const int threads : {1, 4}) {
    ModelOptions options;
    options.dtype = DType::kFloat32;
    options.mla = MlaForms::kAuto;
    options.threads = threads;
    options.dummy_weights = true;
    const auto model = Model::Load(dir, options);
    ASSERT_TRUE(model.ok()) << model.status();
    std::mt19937 rng(24);
    const auto tokens = RandomTokens(rng, 60, (*model)->config().vocab_size);
    found.push_back(InChunks(**model, tokens, 55, {60}));
    // In FP32 both forms are the same sums in another order.
    const auto absorbed = InChunks(**model, tokens, 0, {60});
    for (size_t i = 0; i < absorbed.size(); ++i) {
      ASSERT_NEAR(found.back()[i], absorbed[i], 1e-4) << i;
    }
  }
  EXPECT_TRUE(SameBits(found[0], found[1]));
}

TEST(MlaFormsTest, NumericsIdNamesTheForm) {
  const auto absorbed = LoadOrDie(kPlain),
             expanded = LoadOrDie(Auto(kV3, kPlain.dtype, "reference"));
  EXPECT_TRUE(expanded->options().expands_prompts());
  EXPECT_TRUE(expanded->numerics_id().ends_with(":bfloat16:reference:expanded_prompts:2"))
      << expanded->numerics_id();
  // Another attention has one form.
  const Case gqa{kQwen3, "reference", DType::kBfloat16};
  const auto plain = LoadOrDie(gqa), other = LoadOrDie(Auto(kQwen3, gqa.dtype, "reference"));
  EXPECT_EQ(plain->numerics_id(), other->numerics_id());
  EXPECT_FALSE(other->options().expands_prompts());
}

TEST(MlaFormsTest, PromptsAreWantedThen) {
  const auto model = LoadOrDie(Auto(kV3));
  KvStorage kv(model->config().KvLayoutFor(DType::kBfloat16, 16), 1);
  const std::vector<int32_t> tokens = {1}, blocks = {0};
  const AttentionSequence s{0, 1, 0, blocks};
  EXPECT_EQ(model->Forward({tokens, {&s, 1}, {}}, kv, nullptr, {}).code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_TRUE(model->Forward({}, kv, nullptr, {}).ok());
}

TEST(MlaFormsTest, DevicesHaveOneForm) {
  ModelOptions options;
  options.mla = MlaForms::kAuto;
  options.device = Device::kCuda;
  const absl::Status status = Model::Load(kV3, options).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(status.message(), "mla: auto; devices compute only absorbed");
}

}  // namespace
}  // namespace switchyard
