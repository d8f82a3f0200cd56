#include "model/cuda/support.h"

#include <gtest/gtest.h>

namespace switchyard::cuda {
namespace {

constexpr size_t kKiB = 1024;
const DeviceProperties kH100{.name = "H100", .major = 9, .minor = 0, .shared_bytes = 227 * kKiB};
const DeviceProperties kA100{.name = "A100", .major = 8, .minor = 0, .shared_bytes = 163 * kKiB};
const DeviceProperties kL40{.name = "L40", .major = 8, .minor = 9, .shared_bytes = 99 * kKiB};

ModelConfig DeepSeek() {
  ModelConfig c;
  c.attention = ModelConfig::Attention::kMla;
  c.heads = c.kv_heads = 128;
  c.kv_lora_rank = 512;
  c.qk_rope_head_dim = 64;
  c.qk_nope_head_dim = c.v_head_dim = 128;
  c.moe_intermediate_size = 2048;
  c.intermediate_size = 18432;
  c.gate.experts = 256;
  c.gate.top_k = 8;
  return c;
}

ModelConfig Gqa(int head_dim) {
  ModelConfig c;
  c.attention = ModelConfig::Attention::kGqa;
  c.heads = 32;
  c.kv_heads = 4;
  c.head_dim = head_dim;
  c.moe_intermediate_size = 768;
  c.gate.experts = 128;
  c.gate.top_k = 8;
  return c;
}

ModelOptions Options(int rows = 2048) {
  ModelOptions o;
  o.max_batch_tokens = rows;
  return o;
}

// The error's text; empty: supported.
std::string Check(const ModelConfig& c, const ModelOptions& o,
                  const DeviceProperties& device = kH100, GemmPath path = GemmPath::kWgmma) {
  const absl::Status status = CheckSupported(c, o, path, device);
  EXPECT_TRUE(status.ok() || status.code() == absl::StatusCode::kUnimplemented) << status;
  return std::string(status.message());
}

TEST(SupportTest, SharedMemoryIsAskedForAtLoad) {
  EXPECT_EQ(Check(DeepSeek(), Options()), "");
  EXPECT_EQ(Check(DeepSeek(), Options(), kA100, GemmPath::kMmaSync), "");
  const std::string refused = Check(DeepSeek(), Options(), kL40, GemmPath::kMmaSync);
  EXPECT_NE(refused.find("119056 bytes"), std::string::npos) << refused;
  EXPECT_NE(refused.find("101376"), std::string::npos) << refused;
  ModelOptions floats = Options();
  floats.dtype = DType::kFloat32;
  EXPECT_EQ(Check(DeepSeek(), floats, kL40, GemmPath::kMmaSync), "");
  EXPECT_EQ(Check(Gqa(256), Options(), kL40, GemmPath::kMmaSync), "");
}

TEST(SupportTest, WidthsWithoutAKernelAreRefused) {
  EXPECT_NE(Check(Gqa(512), Options()).find("keys of 512"), std::string::npos);
  EXPECT_NE(Check(Gqa(3), Options()), "") << "heads of a group are no multiple of 16 bytes";
  ModelConfig c = Gqa(128);
  c.moe_intermediate_size = 772;
  EXPECT_NE(Check(c, Options()).find("moe_intermediate_size is 772"), std::string::npos);
  ModelOptions ranks = Options();
  ranks.tensor_ranks = 2;
  EXPECT_NE(Check(Gqa(128), ranks), "");
}

TEST(SupportTest, RowsFitIntoAGrid) {
  // 128 heads: 511 blocks of rows each are 65,408.
  EXPECT_EQ(Check(DeepSeek(), Options(511 * 128)), "");
  EXPECT_NE(Check(DeepSeek(), Options(511 * 128 + 1)), "");
  EXPECT_EQ(Check(DeepSeek(), Options(511 * 64), kA100, GemmPath::kMmaSync), "");
  EXPECT_NE(Check(DeepSeek(), Options(511 * 64 + 1), kA100, GemmPath::kMmaSync), "");
  ModelOptions floats = Options(511 * 32 + 1);
  floats.dtype = DType::kFloat32;
  EXPECT_NE(Check(DeepSeek(), floats), "");
  EXPECT_NE(Check(Gqa(128), Options(1 << 20)), "") << "experts' rows: 8 for each";
}

TEST(SupportTest, NumericsNameTheGeneration) {
  EXPECT_EQ(NumericsPath(GemmPath::kWgmma, kH100), "cuda_wgmma_sm90");
  EXPECT_EQ(NumericsPath(GemmPath::kMmaSync, kA100), "cuda_mma_sm80");
  EXPECT_EQ(NumericsPath(GemmPath::kMmaSync, kL40), "cuda_mma_sm89");
}

}  // namespace
}  // namespace switchyard::cuda
