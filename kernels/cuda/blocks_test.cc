// Checksums of blocks against the library whose sums the host's frames carry, and the clearing of
// rows against what it must leave.
#include "kernels/cuda/blocks.h"

#include <xxhash.h>

#include <cstring>
#include <random>

#include "kernels/cuda/testing.h"

namespace switchyard::cuda {
namespace {

class BlocksTest : public testing::Test {
 protected:
  void SetUp() override {
    if (const std::string why = NoDevice(); !why.empty()) GTEST_SKIP() << "skipped: " << why;
  }
  std::vector<uint8_t> Bytes(size_t n) {
    std::vector<uint8_t> bytes(n);
    for (uint8_t& b : bytes) b = static_cast<uint8_t>(rng_());
    return bytes;
  }
  static std::vector<uint64_t> Sums(const std::vector<uint8_t>& bytes, int64_t block_bytes) {
    const DeviceArray<uint8_t> blocks(bytes);
    const int count = static_cast<int>(static_cast<int64_t>(bytes.size()) / block_bytes);
    DeviceArray<uint64_t> sums(count + 1, 7);
    const auto* data = reinterpret_cast<const std::byte*>(blocks.data());
    EXPECT_TRUE(BlockChecksums(nullptr, data, block_bytes, count, sums.data()).ok());
    std::vector<uint64_t> got = sums.Get();
    EXPECT_EQ(got.back(), 7u);
    got.pop_back();
    return got;
  }
  std::mt19937_64 rng_{3};
};

TEST_F(BlocksTest, ChecksumsAreTheLibrarysAtEverySize) {
  std::vector<int64_t> sizes;
  // Every even size around the ends of stripes and of what is mixed between two scrambles.
  for (int64_t bytes = kChecksumBytesOver + 2; bytes < 460; bytes += 2) sizes.push_back(bytes);
  for (const int64_t at : {1024, 5120}) {
    for (int64_t by = -66; by <= 66; by += 2) sizes.push_back(at + by);
  }
  // 16 tokens of OLMoE, of DeepSeek-V3, of it in FP32, of Mixtral; 15 of DeepSeek-V3; 64 of it.
  for (const int64_t bytes : {131072, 18432, 36864, 65536, 17280, 73728}) sizes.push_back(bytes);
  for (const int64_t bytes : sizes) {
    const std::vector<uint8_t> input = Bytes(static_cast<size_t>(bytes) * (bytes < 1000 ? 5 : 1));
    const std::vector<uint64_t> sums = Sums(input, bytes);
    for (size_t i = 0; i < sums.size(); ++i) {
      ASSERT_EQ(sums[i],
                XXH3_64bits(&input[i * static_cast<size_t>(bytes)], static_cast<size_t>(bytes)))
          << bytes << " bytes, block " << i;
    }
  }
}

TEST_F(BlocksTest, EveryByteCountsWhateverTheOrderOfThreads) {
  constexpr int64_t kBytes = 1200;
  std::vector<uint8_t> input = Bytes(kBytes);
  const uint64_t sum = XXH3_64bits(input.data(), kBytes);
  for (const uint64_t seed : TestedOrders()) {
    SetTestedOrder(seed);
    EXPECT_EQ(Sums(input, kBytes)[0], sum) << "order " << seed;
  }
  SetTestedOrder(0);
  for (int64_t at = 0; at < kBytes; at += 37) {
    input[at] ^= 0x10;
    EXPECT_NE(Sums(input, kBytes)[0], sum) << "byte " << at;
    input[at] ^= 0x10;
  }
}

TEST_F(BlocksTest, RowsFromTheFirstOnAreClearedAndNoOthers) {
  constexpr int kTokens = 5, kHeads = 3, kK = 6, kV = 4;
  const KvAddressing gqa{.dtype = DType::kBfloat16,
                         .block_tokens = kTokens,
                         .block_stride = kHeads * kTokens * (kK + kV),
                         .k_head_stride = kTokens * kK,
                         .k_token_stride = kK,
                         .v_offset = kHeads * kTokens * kK,
                         .v_head_stride = kTokens * kV,
                         .v_token_stride = kV};
  for (int first = 0; first <= kTokens; ++first) {
    DeviceArray<uint16_t> block(gqa.block_stride, 0x3f80);
    ASSERT_TRUE(
        ClearRows(nullptr, gqa, kHeads, first, reinterpret_cast<std::byte*>(block.data())).ok());
    const std::vector<uint16_t> got = block.Get();
    for (size_t i = 0; i < got.size(); ++i) {
      const size_t row = i < gqa.v_offset ? i / kK % kTokens : (i - gqa.v_offset) / kV % kTokens;
      ASSERT_EQ(got[i], row < static_cast<size_t>(first) ? 0x3f80 : 0) << first << " " << i;
    }
  }
}

}  // namespace
}  // namespace switchyard::cuda
