// The cache on a device beside the host's image: sums of what the device has, before it is copied
// and after; rows that nobody has.
#include "model/cuda/device_kv.h"

#include <gtest/gtest.h>
#include <xxhash.h>

#include <algorithm>
#include <cstring>
#include <random>

namespace switchyard::cuda {
namespace {

// 640 bytes of MLA, 1,280 of GQA, and 490 that are not aligned to 16.
const KvLayout kMla{
    .kind = KvLayout::Kind::kMla, .layers = 2, .k_dim = 20, .v_dim = 16, .block_tokens = 16};
const KvLayout kGqa{.layers = 2, .kv_heads = 2, .k_dim = 10, .v_dim = 10, .block_tokens = 16};
const KvLayout kOdd{
    .kind = KvLayout::Kind::kMla, .layers = 2, .k_dim = 49, .v_dim = 40, .block_tokens = 5};

class DeviceKvTest : public ::testing::TestWithParam<KvLayout> {
 protected:
  static constexpr int kBlocks = 6;
  DeviceKvTest() : kv_(GetParam(), kBlocks) {
    auto device = DeviceKv::Create(kv_);
    EXPECT_TRUE(device.ok()) << device.status();
    device_ = device->get();
    kv_.Attach(*std::move(device));
    std::mt19937 random(5);
    for (int l = 0; l < GetParam().layers; ++l) {
      for (size_t i = 0; i < bytes() * kBlocks; ++i) {
        device_->Layer(l)[i] = static_cast<std::byte>(random() % 255 + 1);
      }
    }
  }
  size_t bytes() const { return GetParam().BlockBytes(); }
  uint64_t HashOf(int layer, int block) const {
    return XXH3_64bits(kv_.Block(layer, block), bytes());
  }

  KvStorage kv_;
  DeviceKv* device_ = nullptr;
  const OwnedStream stream_;
};

TEST_P(DeviceKvTest, WhatIsDownloadedHasTheSumsOfItsBytes) {
  const BlockRun runs[] = {{1, 2}, {5, 1}};
  ASSERT_TRUE(device_->Download(1, runs, stream_).ok());
  for (int b = 0; b < kBlocks; ++b) {
    const bool wanted = b == 1 || b == 2 || b == 5;
    EXPECT_EQ(device_->Checksums(1)[b], wanted ? HashOf(1, b) : 0) << b;
    EXPECT_EQ(device_->Checksums(0)[b], 0u);
    EXPECT_EQ(std::memcmp(kv_.Block(1, b), device_->Layer(1) + b * bytes(), bytes()) == 0, wanted);
  }
}

TEST_P(DeviceKvTest, AnUploadThatIsNotWhatWasHandedOffIsDataLoss) {
  const BlockRun runs[] = {{2, 3}};
  for (int l = 0; l < GetParam().layers; ++l) {
    for (int b = 2; b < 5; ++b) {
      std::memset(kv_.Block(l, b), b + l, bytes());
      device_->Checksums(l)[b] = HashOf(l, b);
    }
  }
  const auto upload = [&] {
    for (int l = 0; l < GetParam().layers; ++l) {
      EXPECT_TRUE(device_->Upload(l, runs, stream_).ok());
    }
    return device_->CheckUploads(runs);
  };
  EXPECT_TRUE(upload().ok());
  kv_.Block(1, 4)[bytes() - 1] ^= std::byte{1};
  const absl::Status damaged = upload();
  EXPECT_EQ(damaged.code(), absl::StatusCode::kDataLoss);
  EXPECT_NE(damaged.message().find("layer 1, block 4"), absl::string_view::npos) << damaged;
  kv_.Block(1, 4)[bytes() - 1] ^= std::byte{1};
  EXPECT_TRUE(upload().ok());
}

TEST_P(DeviceKvTest, RowsThatNobodyHasAreClearedInOneBlockOfOneLayer) {
  const std::vector<std::byte> before(device_->Layer(0), device_->Layer(0) + 2 * kBlocks * bytes());
  const BlockTail tails[] = {{3, 2}};
  ASSERT_TRUE(device_->Clear(1, tails, stream_).ok());
  size_t cleared = 0;
  for (size_t i = 0; i < before.size(); ++i) {
    const bool in_block = i / bytes() == kBlocks + 3;
    if (device_->Layer(0)[i] == before[i]) continue;
    EXPECT_TRUE(in_block) << i;
    EXPECT_EQ(device_->Layer(0)[i], std::byte{0}) << i;
    ++cleared;
  }
  const size_t tokens = static_cast<size_t>(GetParam().block_tokens);
  EXPECT_EQ(cleared, bytes() / tokens * (tokens - 2));
}

INSTANTIATE_TEST_SUITE_P(Layouts, DeviceKvTest, ::testing::Values(kMla, kGqa, kOdd),
                         [](const auto& p) {
                           std::string name = p.param.LayoutId();
                           std::replace(name.begin(), name.end(), ':', '_');
                           return name;
                         });

TEST(DeviceKvSizeTest, BlocksOfTooFewBytesAreRefusedWithBothNumbers) {
  KvLayout tiny = kMla;
  tiny.block_tokens = 6;  // 240 bytes
  const KvStorage kv(tiny, 2);
  const absl::Status refused = DeviceKv::Create(kv).status();
  EXPECT_EQ(refused.code(), absl::StatusCode::kUnimplemented);
  EXPECT_NE(refused.message().find("--block-size 6: a KV block has 240 bytes"),
            absl::string_view::npos)
      << refused;
}

}  // namespace
}  // namespace switchyard::cuda
