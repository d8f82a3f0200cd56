#include "engine/work_estimate.h"

#include <gtest/gtest.h>

namespace switchyard {
namespace {

// 2 layers of 4 heads of 8, hidden 32; the second has 4 experts of 16, 2 for a token.
ModelConfig Config() {
  ModelConfig c;
  c.vocab_size = 100;
  c.hidden_size = 32;
  c.layers = 2;
  c.heads = 4;
  c.kv_heads = 2;
  c.head_dim = 8;
  c.intermediate_size = 64;
  c.moe_intermediate_size = 16;
  c.gate.experts = 4;
  c.gate.top_k = 2;
  c.layer_is_moe = {false, true};
  return c;
}

constexpr double kAttention = 32 * 32 + 2 * 32 * 16 + 32 * 32;  // q, k and v, o
constexpr double kDense = 3 * 32 * 64, kExpert = 3 * 32 * 16, kGate = 32 * 4;

TEST(WorkEstimateTest, CountsTheWeightsThatATokenMeets) {
  const WorkEstimate w = EstimateWork(Config(), DType::kBfloat16, {}, 1);
  EXPECT_EQ(w.token_flops, 2 * (2 * kAttention + kDense + kGate + 2 * kExpert));
  EXPECT_EQ(w.step_bytes, 2 * (2 * kAttention + kDense + 100 * 32) + 4 * kGate);
  EXPECT_EQ(EstimateWork(Config(), DType::kFloat32, {}, 1).step_bytes,
            2 * w.step_bytes - 4 * kGate);
  EXPECT_EQ(w.key_flops, 2 * 4 * (2 * 8 + 2 * 8));
  EXPECT_EQ(w.key_bytes, 2 * 2 * (2 * 8 + 2 * 8));
  EXPECT_EQ(w.expert_bytes, 2 * kExpert);
  const WorkEstimate int4 = EstimateWork(Config(), DType::kBfloat16, WeightFormat::kInt4, 1);
  EXPECT_EQ(int4.token_flops, w.token_flops);
  EXPECT_EQ(int4.expert_bytes, (0.5 + 4.0 / 128) * kExpert);
  EXPECT_EQ(int4.step_bytes,
            (0.5 + 4.0 / 128) * (2 * kAttention + kDense) + 2 * 100 * 32 + 4 * kGate);
}

TEST(WorkEstimateTest, ReadsAnExpertOnceInAStep) {
  const WorkEstimate w = EstimateWork(Config(), DType::kBfloat16, {}, 1);
  EXPECT_DOUBLE_EQ(w.ReadBytes(1, 1), w.step_bytes + 2 * 2 * kExpert);
  EXPECT_DOUBLE_EQ(w.ReadBytes(10, 10), 10 * w.ReadBytes(1, 1));
  EXPECT_NEAR(w.ReadBytes(1000, 1), w.step_bytes + 2 * 4 * kExpert, 1) << "all of them, once";
  EXPECT_EQ(w.ReadBytes(0, 0), 0);
  // Two ranks share the experts and each other's tokens.
  const WorkEstimate half = EstimateWork(Config(), DType::kBfloat16, {}, 2);
  EXPECT_NEAR(half.ReadBytes(1000, 1), w.step_bytes + 2 * 2 * kExpert, 1);
}

TEST(WorkEstimateTest, MlaAndNoExperts) {
  ModelConfig c = Config();
  c.layer_is_moe = {false, false};
  c.gate = {};
  c.attention = ModelConfig::Attention::kMla;
  c.q_lora_rank = 0;
  c.kv_lora_rank = 16;
  c.qk_nope_head_dim = 8;
  c.qk_rope_head_dim = 4;
  c.v_head_dim = 8;
  const double mla = 32 * 4 * 12 + 32 * 20 + 4 * 16 * 16 + 4 * 8 * 32;
  const WorkEstimate w = EstimateWork(c, DType::kBfloat16, {}, 1);
  EXPECT_EQ(w.token_flops, 2 * (2 * mla + 2 * kDense));
  EXPECT_EQ(w.key_flops, 2 * 4 * 2 * (20 + 16));
  EXPECT_EQ(w.key_bytes, 2 * 2 * 20);
  EXPECT_EQ(w.prompt_key_flops, w.key_flops);
  const WorkEstimate expanded = EstimateWork(c, DType::kBfloat16, {}, 1, true);
  EXPECT_EQ(expanded.prompt_key_flops, 2 * 4 * 2 * (8 + 4 + 8));
  EXPECT_EQ(expanded.key_flops, w.key_flops);
  EXPECT_EQ(w.ReadBytes(50, 1), w.step_bytes);
  // What is absorbed stays in 16 bits.
  const WorkEstimate int8 = EstimateWork(c, DType::kBfloat16, WeightFormat::kInt8, 1);
  EXPECT_EQ(w.step_bytes - int8.step_bytes,
            (1 - 4.0 / 128) * (2 * (mla - 4 * 16 * 16) + 2 * kDense));
}

}  // namespace
}  // namespace switchyard
