#include "model/fp8.h"

#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>
#include <random>

#include "common/bf16.h"
#include "model/weight_source.h"

namespace switchyard {
namespace {

TEST(Fp8Test, DecodesEveryValue) {
  for (int bits = 0; bits < 256; ++bits) {
    const int exponent = (bits >> 3) % 16, mantissa = bits % 8;
    const double sign = bits < 128 ? 1 : -1;
    const double wanted = sign * (exponent == 0 ? mantissa / 8.0 * std::pow(2, -6)
                                                : (1 + mantissa / 8.0) * std::pow(2, exponent - 7));
    const float found = FromE4m3(static_cast<std::byte>(bits));
    if (bits % 128 == 127) {
      EXPECT_TRUE(std::isnan(found)) << bits;
    } else {
      EXPECT_EQ(found, wanted) << bits;
      EXPECT_EQ(std::signbit(found), bits >= 128) << bits;
    }
  }
  EXPECT_EQ(FromE4m3(std::byte{0x7e}), 448);  // the largest
}

// A checkpoint of one FP8 weight, cut blocks in both directions, and its scales.
class Fp8CheckpointTest : public testing::Test {
 protected:
  static constexpr size_t kN = 7, kK = 11;
  static constexpr Fp8Blocks kBlocks{4, 5};

  void SetUp() override {
    std::mt19937 rng(3);
    for (std::byte& v : values_) v = static_cast<std::byte>(rng() % 127);  // no NaN
    for (float& s : scales_) s = static_cast<float>(rng() % 1000 + 1) / 256;
  }

  // Writes the tensors w [N, K] and w_scale_inv [scale_shape] of `dtype`, and asks for w.
  absl::StatusOr<LoadedTensor> Load(std::optional<Fp8Blocks> blocks = kBlocks,
                                    std::vector<int> scale_shape = {2, 3},
                                    const std::string& dtype = "F32",
                                    const std::string& scale_name = "w_scale_inv") {
    std::string scales;
    for (const float s : scales_) {
      const Bf16 narrow = ToBf16(s);
      const char* from = dtype == "F32" ? reinterpret_cast<const char*>(&s)
                                        : reinterpret_cast<const char*>(&narrow);
      scales.append(from, dtype == "F32" ? 4 : 2);
    }
    const size_t size = kN * kK;
    const std::string header =
        nlohmann::json{
            {"w", {{"dtype", "F8_E4M3"}, {"shape", {kN, kK}}, {"data_offsets", {0, size}}}},
            {scale_name,
             {{"dtype", dtype},
              {"shape", scale_shape},
              {"data_offsets", {size, size + scales.size()}}}}}
            .dump();
    const uint64_t length = header.size();
    const std::string path = testing::TempDir() + "/fp8.safetensors";
    std::ofstream out(path, std::ios::binary);
    out.write(reinterpret_cast<const char*>(&length), sizeof(length));
    out << header;
    out.write(reinterpret_cast<const char*>(values_), size);
    out << scales;
    out.close();
    checkpoint_ = *Checkpoint::OpenFile(path);
    ModelConfig config;
    config.layers = 1;
    config.fp8 = blocks;
    source_ = MakeCheckpointSource(checkpoint_, config);
    return source_->Get("w", {kN, kK});
  }

  std::byte values_[kN * kK];
  float scales_[6];
  Checkpoint checkpoint_;
  std::unique_ptr<WeightSource> source_;
};

TEST_F(Fp8CheckpointTest, ScalesEveryBlock) {
  for (const char* dtype : {"F32", "BF16"}) {
    const auto t = Load(kBlocks, {2, 3}, dtype);
    ASSERT_TRUE(t.ok()) << t.status();
    ASSERT_EQ(t->view.dtype, DType::kBfloat16);
    for (size_t r = 0; r < kN; ++r) {
      for (size_t c = 0; c < kK; ++c) {
        float scale = scales_[r / 4 * 3 + c / 5];
        if (dtype == std::string("BF16")) scale = RoundToBf16(scale);
        const float wanted = RoundToBf16(FromE4m3(values_[r * kK + c]) * scale);
        EXPECT_EQ(ToFloat(static_cast<const Bf16*>(t->view.data)[r * kK + c]), wanted)
            << r << " " << c;
      }
    }
    EXPECT_EQ(source_->total_bytes(), kN * kK * sizeof(Bf16));  // what Get returns
  }
}

TEST_F(Fp8CheckpointTest, RefusesWhatDoesNotFit) {
  const auto shape = Load(kBlocks, {3, 2});
  EXPECT_EQ(shape.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_NE(shape.status().message().find("w_scale_inv: shape [3, 2], wanted [2, 3]"),
            std::string::npos)
      << shape.status();
  EXPECT_FALSE(Load(Fp8Blocks{128, 128}).ok());
  EXPECT_EQ(Load(kBlocks, {2, 3}, "F32", "v_scale_inv").status().code(),
            absl::StatusCode::kNotFound);
  EXPECT_FALSE(Load(std::nullopt).ok());  // config.json says nothing of FP8
}

}  // namespace
}  // namespace switchyard
