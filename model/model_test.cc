// The model against stored references, and the promise that a row's bits depend on its own history
// alone. Runs every kernel path that this machine has.
#include "model/model.h"

#include <gtest/gtest.h>

#include "model/model_testing.h"
#include "model/verify.h"
#include "moe/loopback.h"

namespace switchyard {
namespace {

class GoldenTest : public testing::TestWithParam<Case> {};

TEST_P(GoldenTest, AgreesWithTheReference) {
  const auto model = LoadOrDie(GetParam());
  const auto report = Verify(*model, GetParam().dir + "/golden.safetensors");
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_TRUE(report->passed) << VerifyReportText(*report);
  EXPECT_EQ(report->cases.size(), 3u);
  EXPECT_GE(report->greedy_compared, 1);
}

INSTANTIATE_TEST_SUITE_P(All, GoldenTest,
                         testing::ValuesIn(AllKernels({kV3, kV3Yarn, kV3Fp8, kV2, kV2Groups,
                                                       kMixtral, kOlmoe, kOlmoeClip, kQwen3,
                                                       kQwen3Bias, kFables})),
                         CaseName);

INSTANTIATE_TEST_SUITE_P(Quantized, GoldenTest,
                         testing::ValuesIn(AllKernelsQuantized({kV3Fp8, kQwen3, kFables})),
                         CaseName);

INSTANTIATE_TEST_SUITE_P(Expanded, GoldenTest,
                         testing::ValuesIn(AllKernelsExpanded({kV3, kV3Yarn, kV3Fp8, kV2, kV2Groups,
                                                               kFables})),
                         CaseName);

class BitsTest : public testing::TestWithParam<Case> {};

TEST_P(BitsTest, ChunksEqualTheWhole) {
  const auto model = LoadOrDie(GetParam());
  std::mt19937 rng(11);
  const auto tokens = RandomTokens(rng, 50, model->config().vocab_size);
  const auto blocks = Blocks(0, 4);
  Bench whole(*model, 4), chunked(*model, 4);
  const auto wanted = whole.Run(std::vector<Bench::Part>{{tokens, 0, blocks}});
  std::vector<float> found;
  for (int begin = 0; begin < 50;) {
    const int count = begin < 32 ? 16 : 1;  // two chunks, then one token at a time
    const auto part = chunked.Run(
        std::vector<Bench::Part>{{std::span(tokens).subspan(begin, count), begin, blocks}});
    found.insert(found.end(), part.begin(), part.end());
    begin += count;
  }
  EXPECT_TRUE(SameBits(found, wanted));
}

TEST_P(BitsTest, BatchEqualsEachAlone) {
  const auto model = LoadOrDie(GetParam(), 2), single_threaded = LoadOrDie(GetParam(), 1);
  const int vocab = model->config().vocab_size;
  std::mt19937 rng(12);
  const int lengths[] = {33, 1, 17};
  std::vector<std::vector<int32_t>> tokens, blocks;
  std::vector<Bench::Part> parts;
  for (int i = 0; i < 3; ++i) {
    tokens.push_back(RandomTokens(rng, lengths[i], vocab));
    blocks.push_back(Blocks(3 * i, 3));
  }
  for (int i = 0; i < 3; ++i) parts.push_back({tokens[i], 0, blocks[i]});
  Bench together(*model, 9);
  const auto batch = together.Run(parts);
  size_t row = 0;
  for (int i = 0; i < 3; ++i) {
    const auto home = Blocks(0, 3);
    Bench alone(*single_threaded, 3);
    const auto wanted = alone.Run(std::vector<Bench::Part>{{tokens[i], 0, home}});
    EXPECT_TRUE(SameBits(std::span(batch).subspan(row * vocab, wanted.size()), wanted))
        << "sequence " << i;
    row += lengths[i];
  }
}

INSTANTIATE_TEST_SUITE_P(All, BitsTest,
                         testing::ValuesIn(AllKernels({kV3Yarn, kQwen3, kOlmoeClip})), CaseName);

INSTANTIATE_TEST_SUITE_P(Quantized, BitsTest,
                         testing::ValuesIn(AllKernelsQuantized({kV3Yarn, kQwen3})), CaseName);

INSTANTIATE_TEST_SUITE_P(Expanded, BitsTest, testing::ValuesIn(AllKernelsExpanded({kV3Yarn})),
                         CaseName);

TEST(ModelTest, ObserverSeesEveryLayerOnceWithFinalBytes) {
  struct Observer : LayerObserver {
    KvStorage* kv;
    std::vector<int> layers;
    std::vector<std::string> seen;
    void OnLayerWritten(int layer) override {
      layers.push_back(layer);
      const auto* p = reinterpret_cast<const char*>(kv->Block(layer, 0));
      seen.emplace_back(p, kv->layout().BlockBytes());
    }
  } observer;
  const auto model = LoadOrDie(kPlain);
  Bench bench(*model, 1);
  observer.kv = &bench.kv();
  std::mt19937 rng(13);
  const auto tokens = RandomTokens(rng, 16, model->config().vocab_size), blocks = Blocks(0, 1);
  bench.Run(std::vector<Bench::Part>{{tokens, 0, blocks}}, &observer);
  EXPECT_EQ(observer.layers, (std::vector<int>{0, 1, 2}));
  for (int l = 0; l < 3; ++l) {
    EXPECT_EQ(
        0, std::memcmp(observer.seen[l].data(), bench.kv().Block(l, 0), observer.seen[l].size()));
  }
}

TEST(ModelTest, RefusesBatchesThatDoNotFit) {
  const auto model = LoadOrDie(kPlain, 1, 8);
  const int vocab = model->config().vocab_size;
  KvStorage kv(model->config().KvLayoutFor(DType::kBfloat16, 16), 1);
  KvStorage other(model->config().KvLayoutFor(DType::kFloat32, 16), 1);
  const std::vector<int32_t> block = {0}, bad_block = {1}, none;
  const auto code = [&](std::vector<int32_t> tokens, AttentionSequence s, std::vector<int32_t> rows,
                        KvStorage& storage) {
    std::vector<float> logits(rows.size() * vocab);
    return model
        ->Forward({tokens, {&s, 1}, rows}, storage, nullptr,
                  {logits.data(), {rows.size(), static_cast<size_t>(vocab)}})
        .code();
  };
  constexpr auto kBad = absl::StatusCode::kInvalidArgument;
  EXPECT_EQ(code({1, 2}, {0, 2, 0, block}, {1}, kv), absl::StatusCode::kOk);
  EXPECT_EQ(code({1, vocab}, {0, 2, 0, block}, {1}, kv), kBad);
  EXPECT_EQ(code({1, -1}, {0, 2, 0, block}, {1}, kv), kBad);
  EXPECT_EQ(code({1, 2}, {0, 1, 0, block}, {1}, kv), kBad);
  EXPECT_EQ(code({1, 2}, {0, 3, 0, block}, {1}, kv), kBad);
  EXPECT_EQ(code({1, 2}, {0, 2, 15, block}, {1}, kv), kBad);
  EXPECT_EQ(code({1, 2}, {0, 2, 0, bad_block}, {1}, kv), kBad);
  EXPECT_EQ(code({1, 2}, {0, 2, 0, none}, {1}, kv), kBad);
  EXPECT_EQ(code({1, 2}, {0, 2, INT32_MAX - 1, block}, {1}, kv), kBad);
  EXPECT_EQ(code({1, 2}, {0, 2, 0, block}, {2}, kv), kBad);
  EXPECT_EQ(code({1, 2}, {0, 2, 0, block}, {1, 1}, kv), kBad);
  EXPECT_EQ(code({1, 2}, {0, 2, 0, block}, {1}, other), kBad);
  EXPECT_EQ(code(std::vector<int32_t>(9, 1), {0, 9, 0, block}, {1}, kv), kBad);
}

TEST(ModelTest, AnEmptyStepIsAStep) {
  const auto model = LoadOrDie(kPlain);
  KvStorage kv(model->config().KvLayoutFor(DType::kBfloat16, 16), 1);
  EXPECT_TRUE(model->Forward({}, kv, nullptr, {}).ok());
}

TEST(ModelTest, NumericsIdNamesWeightsAndArithmetic) {
  const auto a = LoadOrDie(kPlain);
  Case c = kPlain;
  EXPECT_EQ(a->numerics_id(), LoadOrDie(c)->numerics_id());
  EXPECT_TRUE(a->numerics_id().ends_with(":bfloat16:reference:absorbed:2")) << a->numerics_id();
  c.dtype = DType::kFloat32;
  EXPECT_NE(a->numerics_id(), LoadOrDie(c)->numerics_id());
  c = kPlain;
  c.dir = kV3Yarn;
  EXPECT_NE(a->numerics_id(), LoadOrDie(c)->numerics_id());
  c = kPlain;
  c.quantization = WeightFormat::kInt8;
  EXPECT_TRUE(LoadOrDie(c)->numerics_id().ends_with(":bfloat16-int8:reference:absorbed:2"));
  c.quantization = WeightFormat::kInt4;
  EXPECT_TRUE(LoadOrDie(c)->numerics_id().ends_with(":bfloat16-int4:reference:absorbed:2"));
  c.payload = EpPayload::kInt8;
  EXPECT_TRUE(LoadOrDie(c)->numerics_id().ends_with(":bfloat16-int4:reference:absorbed:2"))
      << "the experts do it anyway";
  c.quantization = std::nullopt;
  EXPECT_TRUE(LoadOrDie(c)->numerics_id().ends_with(":bfloat16-int8_tokens:reference:absorbed:2"));
  ModelOptions reduced;
  reduced.kernels = "reference";
  reduced.reduced_combine = true;
  const auto model = Model::Load(kV3, reduced);
  ASSERT_TRUE(model.ok()) << model.status();
  EXPECT_TRUE((*model)->numerics_id().ends_with(":bfloat16-reduced:reference:absorbed:2"));
  EXPECT_NE((*model)->notices().back().find("--ep-combine reduced"), std::string::npos);
}

TEST(ModelTest, TokensOf8BitsNeedBfloat16) {
  ModelOptions options;
  options.dtype = DType::kFloat32;
  options.ep_payload = EpPayload::kInt8;
  const absl::Status status = Model::Load(kV3, options).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
}

const std::vector<int32_t> kPayloadBlocks = {0, 1, 2};

class PayloadTest : public testing::TestWithParam<Case> {};

// Logits of a model whose tokens go by a dispatcher, as 8-bit integers or as they are.
std::vector<float> Dispatched(const Case& c, bool int8_tokens) {
  ModelOptions options;
  options.kernels = c.kernels;
  options.quantization = c.quantization;
  auto config = LoadModelConfig(c.dir);
  SY_CHECK(config.ok());
  options.placement = std::make_shared<const Placement>(
      *Placement::InOrder(1, config->layers, config->gate.experts, 1));
  auto model = Model::Load(c.dir, options);
  SY_CHECK_MSG(model.ok(), model.status().ToString());
  auto dispatcher = LoopbackDispatcher::Create({.experts = config->gate.experts,
                                                .top_k = config->gate.top_k,
                                                .hidden = config->hidden_size,
                                                .max_tokens = 64,
                                                .int8_tokens = int8_tokens});
  SY_CHECK(dispatcher.ok());
  (*model)->UseDispatcher(dispatcher->get());
  std::mt19937 rng(5);
  const auto tokens = RandomTokens(rng, 48, config->vocab_size);
  const Bench::Part part = {tokens, 0, kPayloadBlocks};
  return Bench(**model, 3).Run({&part, 1});
}

TEST_P(PayloadTest, TokensOf8BitsChangeNoBitWhereWeightsAreIntegers) {
  const Case& c = GetParam();
  EXPECT_TRUE(SameBits(Dispatched(c, true), Dispatched(c, false)));
}

TEST_P(PayloadTest, TokensOf8BitsAreRoundedOnOneRankToo) {
  Case c = GetParam();
  c.quantization = std::nullopt;
  c.payload = EpPayload::kInt8;
  const auto model = LoadOrDie(c);
  std::mt19937 rng(5);
  const auto tokens = RandomTokens(rng, 48, model->config().vocab_size);
  const Bench::Part part = {tokens, 0, kPayloadBlocks};
  const std::vector<float> alone = Bench(*model, 3).Run({&part, 1});
  EXPECT_TRUE(SameBits(alone, Dispatched(c, true)));
  EXPECT_FALSE(SameBits(alone, Dispatched(c, false)));
}

INSTANTIATE_TEST_SUITE_P(Quantized, PayloadTest, testing::ValuesIn(AllKernelsQuantized({kQwen3})),
                         CaseName);

TEST(ModelTest, QuantizationNeedsIntegersAndBfloat16) {
  for (const auto& [dtype, format] : {std::pair{DType::kFloat32, WeightFormat::kInt8},
                                      {DType::kFloat32, WeightFormat::kInt4},
                                      {DType::kBfloat16, WeightFormat::kFloat32}}) {
    ModelOptions options;
    options.dtype = dtype;
    options.quantization = format;
    const absl::Status status = Model::Load(kV3, options).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
  }
}

}  // namespace
}  // namespace switchyard
