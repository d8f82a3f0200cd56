// The model against stored references, and the promise that a row's bits depend on its own history
// alone. Runs every kernel path that this machine has.
#include "model/model.h"

#include <gtest/gtest.h>

#include <cstring>
#include <fstream>
#include <numeric>
#include <random>

#include "model/verify.h"

namespace switchyard {
namespace {

struct Case {
  std::string dir, kernels;
  DType dtype;
};

std::vector<Case> AllCases(bool with_fables) {
  std::vector<std::string> dirs = {"tests/data/goldens/deepseek_v3",
                                   "tests/data/goldens/deepseek_v3_yarn",
                                   "tests/data/goldens/qwen3_moe"};
  if (with_fables) dirs.push_back("models/fables-7m");
  std::vector<Case> cases;
  for (const std::string& dir : dirs) {
    for (const KernelSet& k : AvailableKernels()) {
      for (const DType dtype : {DType::kFloat32, DType::kBfloat16}) {
        cases.push_back({dir, k.name, dtype});
      }
    }
  }
  return cases;
}

std::string CaseName(const testing::TestParamInfo<Case>& info) {
  std::string name = info.param.dir.substr(info.param.dir.rfind('/') + 1) + "_" +
                     info.param.kernels + "_" + std::string(Name(info.param.dtype));
  std::replace(name.begin(), name.end(), '-', '_');
  return name;
}

std::unique_ptr<Model> LoadOrDie(const Case& c, int threads = 2, int max_batch_tokens = 0) {
  ModelOptions options;
  options.kernels = c.kernels;
  options.dtype = c.dtype;
  options.threads = threads;
  options.max_batch_tokens = max_batch_tokens;
  auto model = Model::Load(c.dir, options);
  SY_CHECK_MSG(model.ok(), model.status().ToString());
  return *std::move(model);
}

class GoldenTest : public testing::TestWithParam<Case> {};

TEST_P(GoldenTest, AgreesWithTheReference) {
  const auto model = LoadOrDie(GetParam());
  const auto report = Verify(*model, GetParam().dir + "/golden.safetensors");
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_TRUE(report->passed) << VerifyReportText(*report);
  EXPECT_EQ(report->cases.size(), 3u);
  EXPECT_GE(report->greedy_compared, 1);
}

INSTANTIATE_TEST_SUITE_P(All, GoldenTest, testing::ValuesIn(AllCases(true)), CaseName);

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
  };
  // One step over all parts; logits of every row.
  std::vector<float> Run(std::span<const Part> parts, LayerObserver* observer = nullptr) {
    std::vector<int32_t> tokens, rows;
    std::vector<AttentionSequence> sequences;
    for (const Part& p : parts) {
      sequences.push_back({static_cast<int32_t>(tokens.size()),
                           static_cast<int32_t>(p.tokens.size()), p.position, p.blocks});
      tokens.insert(tokens.end(), p.tokens.begin(), p.tokens.end());
    }
    rows.resize(tokens.size());
    std::iota(rows.begin(), rows.end(), 0);
    const size_t vocab = model_.config().vocab_size;
    std::vector<float> logits(tokens.size() * vocab, NAN);
    const auto status = model_.Forward({tokens, sequences, rows}, kv_, observer,
                                       {logits.data(), {tokens.size(), vocab}});
    SY_CHECK_MSG(status.ok(), status.ToString());
    return logits;
  }
  KvStorage& kv() { return kv_; }

 private:
  Model& model_;
  KvStorage kv_;
};

std::vector<int32_t> RandomTokens(std::mt19937& rng, int count, int vocab) {
  std::vector<int32_t> out(count);
  for (int32_t& t : out) t = static_cast<int32_t>(rng() % vocab);
  return out;
}

std::vector<int32_t> Blocks(int begin, int count) {
  std::vector<int32_t> out(count);
  std::iota(out.begin(), out.end(), begin);
  return out;
}

bool SameBits(std::span<const float> a, std::span<const float> b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size_bytes()) == 0;
}

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

INSTANTIATE_TEST_SUITE_P(All, BitsTest, testing::ValuesIn(AllCases(false)), CaseName);

const Case kPlain{"tests/data/goldens/deepseek_v3", "reference", DType::kBfloat16};

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
  EXPECT_TRUE(a->numerics_id().ends_with(":bfloat16:reference:absorbed")) << a->numerics_id();
  c.dtype = DType::kFloat32;
  EXPECT_NE(a->numerics_id(), LoadOrDie(c)->numerics_id());
  c = kPlain;
  c.dir = "tests/data/goldens/deepseek_v3_yarn";
  EXPECT_NE(a->numerics_id(), LoadOrDie(c)->numerics_id());
}

// Copies of the checkpoint's files, to be damaged.
class DamagedModelTest : public testing::Test {
 protected:
  void SetUp() override {
    dir_ = testing::TempDir() + "/damaged";
    ASSERT_EQ(0, system(("rm -rf " + dir_ + " && mkdir -p " + dir_).c_str()));
    config_ = Read(kPlain.dir + "/config.json");
    weights_ = Read(kPlain.dir + "/model.safetensors");
  }
  static std::string Read(const std::string& path) {
    std::ifstream in(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(in), {}};
  }
  absl::StatusOr<std::unique_ptr<Model>> Load(ModelOptions options = {}) {
    std::ofstream(dir_ + "/config.json", std::ios::binary) << config_;
    std::ofstream(dir_ + "/model.safetensors", std::ios::binary) << weights_;
    options.kernels = "reference";
    return Model::Load(dir_, options);
  }
  static void Replace(std::string& in, const std::string& from, const std::string& to) {
    ASSERT_NE(in.find(from), std::string::npos) << from;
    in.replace(in.find(from), from.size(), to);
  }
  std::string dir_, config_, weights_;
};

TEST_F(DamagedModelTest, NamesAMissingTensor) {
  Replace(weights_, "model.layers.2.mlp.experts.7.up_proj.weight",
          "model.layers.2.mlp.experts.7.ux_proj.weight");
  const auto model = Load();
  EXPECT_EQ(model.status().code(), absl::StatusCode::kNotFound);
  EXPECT_NE(model.status().message().find("model.layers.2.mlp.experts.7.up_proj.weight"),
            std::string::npos)
      << model.status();
}

TEST_F(DamagedModelTest, NamesShapeWantedAndFound) {
  Replace(config_, "\"intermediate_size\": 256", "\"intermediate_size\": 128");
  const auto model = Load();
  for (const char* part : {"model.safetensors", "gate_proj.weight", "[256, 128]", "[128, 128]"}) {
    EXPECT_NE(model.status().message().find(part), std::string::npos) << model.status();
  }
}

TEST_F(DamagedModelTest, SkipsMtpLayersWithANotice) {
  Replace(config_, "\"num_hidden_layers\": 3",
          "\"num_hidden_layers\": 2, \"num_nextn_predict_layers\": 1");
  const auto model = Load();
  ASSERT_TRUE(model.ok()) << model.status();
  ASSERT_EQ((*model)->notices().size(), 1u);
  EXPECT_EQ((*model)->config().layers, 2);
}

TEST_F(DamagedModelTest, ADifferentByteIsADifferentModel) {
  const auto before = Load();
  ASSERT_TRUE(before.ok());
  weights_[weights_.size() / 2] ^= 1;
  const auto after = Load();
  ASSERT_TRUE(after.ok());
  EXPECT_NE((*before)->numerics_id(), (*after)->numerics_id());
}

TEST_F(DamagedModelTest, DummyWeightsNeedOnlyTheConfig) {
  weights_ = "nothing";
  size_t done_last = 0, total_last = 0;
  ModelOptions options;
  options.dummy_weights = true;
  options.progress = [&](size_t done, size_t total) {
    EXPECT_LE(done_last, done);
    EXPECT_LE(done, total);
    done_last = done;
    total_last = total;
  };
  const auto a = Load(options);
  ASSERT_TRUE(a.ok()) << a.status();
  EXPECT_GT(done_last, 0u);
  EXPECT_EQ(done_last, total_last);
  options.progress = nullptr;
  const auto b = Load(options);
  ASSERT_TRUE(b.ok()) << b.status();
  std::mt19937 rng(14);
  const auto tokens = RandomTokens(rng, 9, 512), blocks = Blocks(0, 1);
  Bench first(**a, 1), second(**b, 1);
  const std::vector<Bench::Part> part{{tokens, 0, blocks}};
  const auto logits = first.Run(part);
  EXPECT_TRUE(SameBits(logits, second.Run(part)));
  for (const float l : logits) EXPECT_TRUE(std::isfinite(l));
  EXPECT_NE(logits[0], logits[1]);
}

TEST_F(DamagedModelTest, RefusesOptionsOutOfRange) {
  ModelOptions options;
  options.threads = 0;
  EXPECT_EQ(Load(options).status().code(), absl::StatusCode::kInvalidArgument);
  options = {};
  options.max_model_len = 4097;
  EXPECT_EQ(Load(options).status().code(), absl::StatusCode::kInvalidArgument);
}

// The verdict itself: a model that is wrong must fail.
TEST_F(DamagedModelTest, VerifyFailsAWrongModel) {
  Replace(config_, "\"routed_scaling_factor\": 2.5", "\"routed_scaling_factor\": 2.0");
  for (const DType dtype : {DType::kFloat32, DType::kBfloat16}) {
    ModelOptions options;
    options.dtype = dtype;
    const auto model = Load(options);
    ASSERT_TRUE(model.ok());
    const auto report = Verify(**model, kPlain.dir + "/golden.safetensors");
    ASSERT_TRUE(report.ok()) << report.status();
    EXPECT_FALSE(report->passed) << VerifyReportText(*report);
    EXPECT_FALSE(report->failures.empty());
    EXPECT_NE(VerifyReportJson(*report).find("\"passed\": false"), std::string::npos);
  }
}

}  // namespace
}  // namespace switchyard
