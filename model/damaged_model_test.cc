// Checkpoints that are changed before they are loaded: errors, identity, and layouts of weights
// that no stored checkpoint has.
#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>

#include "model/model_testing.h"
#include "model/safetensors.h"
#include "model/verify.h"

namespace switchyard {
namespace {

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

// Writes the BF16 and F32 tensors of `in` to a safetensors file, each as `change` leaves it.
void Rewrite(
    const Checkpoint& in, const std::string& path,
    const std::function<void(const std::string& name, TensorEntry&, std::string&)>& change) {
  nlohmann::json header;
  std::string data;
  for (const auto& [name, shard] : in.tensors()) {
    constexpr std::string_view kDtypes[] = {"BF16", "F32"};
    const TensorBytes t = *in.Get(name, kDtypes);
    TensorEntry entry = *t.entry;
    std::string bytes(reinterpret_cast<const char*>(t.bytes.data()), t.bytes.size());
    change(name, entry, bytes);
    header[name] = {{"dtype", entry.dtype},
                    {"shape", entry.shape},
                    {"data_offsets", {data.size(), data.size() + bytes.size()}}};
    data += bytes;
  }
  const std::string text = header.dump();
  const uint64_t length = text.size();
  std::ofstream out(path, std::ios::binary);
  out.write(reinterpret_cast<const char*>(&length), sizeof(length));
  out << text << data;
}

// `bytes` as `parts` equal parts, each `copies` times, or once and behind zeros.
std::string Repeat(const std::string& bytes, int parts, int copies, bool zeros) {
  const size_t size = bytes.size() / parts;
  std::string out;
  for (int i = 0; i < parts * copies; ++i) {
    const bool real = !zeros || i % copies == copies - 1;
    out += real ? bytes.substr(i / copies * size, size) : std::string(size, '\0');
  }
  return out;
}

// A group of the output projection is as many heads as there are eights of them. Heads whose
// weights are zero, put before each of eight real ones, make groups that end with the same sums.
TEST_F(DamagedModelTest, OutputProjectionJoinsGroupsOfHeads) {
  const Case qwen3{kQwen3, "reference", DType::kFloat32};
  const auto plain = LoadOrDie(qwen3);
  const auto checkpoint = Checkpoint::Open(kQwen3);
  ASSERT_TRUE(checkpoint.ok());
  std::mt19937 rng(15);
  const auto tokens = RandomTokens(rng, 20, 512), blocks = Blocks(0, 2);
  const std::vector<Bench::Part> part{{tokens, 0, blocks}};
  Bench bench(*plain, 2);
  const auto wanted = bench.Run(part);
  for (const int copies : {2, 3, 5}) {
    config_ = Read(qwen3.dir + "/config.json");
    Replace(config_, "\"num_attention_heads\": 8",
            "\"num_attention_heads\": " + std::to_string(8 * copies));
    Replace(config_, "\"num_key_value_heads\": 2",
            "\"num_key_value_heads\": " + std::to_string(2 * copies));
    const std::string path = dir_ + "/model.safetensors";
    Rewrite(*checkpoint, path, [&](const std::string& name, TensorEntry& e, std::string& bytes) {
      if (name.ends_with("o_proj.weight")) {
        const size_t row = e.shape[1] * 2;
        std::string wide;
        for (size_t r = 0; r < e.shape[0]; ++r) {
          wide += Repeat(bytes.substr(r * row, row), 8, copies, /*zeros=*/true);
        }
        bytes = wide;
        e.shape[1] *= copies;
      } else if (name.ends_with("q_proj.weight")) {
        bytes = Repeat(bytes, 8, copies, /*zeros=*/true);
        e.shape[0] *= copies;
      } else if (name.ends_with("k_proj.weight") || name.ends_with("v_proj.weight")) {
        bytes = Repeat(bytes, 2, copies, /*zeros=*/false);
        e.shape[0] *= copies;
      }
    });
    weights_ = Read(path);
    ModelOptions options;
    options.dtype = DType::kFloat32;
    const auto model = Load(options);
    ASSERT_TRUE(model.ok()) << model.status();
    Bench wide(**model, 2);
    EXPECT_TRUE(SameBits(wide.Run(part), wanted)) << copies << " heads a group";
  }
}

// The head shares the embedding: equal to a checkpoint that stores it twice.
TEST_F(DamagedModelTest, TiedEmbeddingsAreTheHead) {
  const auto checkpoint = Checkpoint::Open(kQwen3);
  ASSERT_TRUE(checkpoint.ok());
  constexpr std::string_view kBf16[] = {"BF16"};
  const TensorBytes embedding = *checkpoint->Get("model.embed_tokens.weight", kBf16);
  const std::string path = dir_ + "/model.safetensors";
  Rewrite(*checkpoint, path, [&](const std::string& name, TensorEntry&, std::string& bytes) {
    if (name == "lm_head.weight") {
      bytes.assign(reinterpret_cast<const char*>(embedding.bytes.data()), embedding.bytes.size());
    }
  });
  weights_ = Read(path);
  config_ = Read(std::string(kQwen3) + "/config.json");
  const auto twice = Load();
  Replace(weights_, "\"lm_head.weight\"", "\"xx_head.weight\"");
  Replace(config_, "\"tie_word_embeddings\": false", "\"tie_word_embeddings\": true");
  const auto tied = Load();
  ASSERT_TRUE(twice.ok() && tied.ok()) << twice.status() << tied.status();
  std::mt19937 rng(16);
  const auto tokens = RandomTokens(rng, 5, 512), blocks = Blocks(0, 1);
  const std::vector<Bench::Part> part{{tokens, 0, blocks}};
  Bench a(**twice, 1), b(**tied, 1);
  EXPECT_TRUE(SameBits(a.Run(part), b.Run(part)));
}

// The verdict itself: a model that is wrong must fail.
TEST_F(DamagedModelTest, VerifyFailsAWrongModel) {
  Replace(config_, "\"routed_scaling_factor\": 2.5", "\"routed_scaling_factor\": 2.0");
  for (const DType dtype : kBothDtypes) {
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
