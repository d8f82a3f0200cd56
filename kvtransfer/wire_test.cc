#include "kvtransfer/wire.h"

#include <gtest/gtest.h>

#include <random>
#include <string>

#include "xxhash.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

namespace switchyard {
namespace {

const std::vector<FrameEntry> kEntries = {{3, 7, 0x1122334455667788}, {4, 9, 42}};
const FrameHeader kHeader = {.flags = 0,
                             .peer_token = 0xa1a2a3a4a5a6a7a8,
                             .session = 77,
                             .layer = 5,
                             .block_bytes = 10,
                             .ring_position = 0};

struct Bytes {
  std::vector<std::byte> header, payload;
};
Bytes Encoded(FrameHeader header = kHeader) {
  Bytes b;
  b.payload.resize(kEntries.size() * kFrameEntryBytes +
                   (header.flags & kFrameInRing ? 0 : kEntries.size() * header.block_bytes));
  auto h = EncodeFrame(header, kEntries, b.payload);
  b.header.assign(h.begin(), h.end());
  return b;
}

TEST(WireTest, FrameLiesOnTheWireAsDocumented) {
  Bytes b = Encoded();
  const auto* h = reinterpret_cast<const uint8_t*>(b.header.data());
  EXPECT_EQ(std::string(h, h + 4), "SYKF");
  EXPECT_EQ(h[4], 2);                      // version
  EXPECT_EQ(h[6], 0);                      // flags
  EXPECT_EQ(h[8], 0xa8);                   // peer_token, lowest byte first
  EXPECT_EQ(h[16], 77);                    // session
  EXPECT_EQ(h[24], 5);                     // layer
  EXPECT_EQ(h[28], 2);                     // count
  EXPECT_EQ(h[40], 10);                    // block_bytes
  EXPECT_EQ(uint8_t(b.payload[0]), 3);     // index
  EXPECT_EQ(uint8_t(b.payload[4]), 7);     // generation
  EXPECT_EQ(uint8_t(b.payload[8]), 0x88);  // checksum
  EXPECT_EQ(b.payload.size(), 2 * 16u + 20u);
}

TEST(WireTest, FrameComesBack) {
  for (uint16_t flags : {uint16_t{0}, kFrameInRing}) {
    FrameHeader header = kHeader;
    header.flags = flags;
    header.ring_position = flags ? 1 << 20 : 0;
    Bytes b = Encoded(header);
    auto frame = ParseFrame(b.header, b.payload);
    ASSERT_TRUE(frame.ok()) << frame.status();
    EXPECT_EQ(frame->entries, kEntries);
    EXPECT_EQ(frame->header.session, 77u);
    EXPECT_EQ(frame->header.ring_position, header.ring_position);
    EXPECT_EQ(frame->blocks.size(), flags ? 0u : 20u);
  }
}

TEST(WireTest, EveryFlippedBitOfHeaderAndEntriesIsRefused) {
  Bytes good = Encoded();
  const size_t bits = 8 * (good.header.size() + kEntries.size() * kFrameEntryBytes);
  for (size_t bit = 0; bit < bits; ++bit) {
    Bytes b = good;
    size_t byte = bit / 8;
    auto& where = byte < b.header.size() ? b.header[byte] : b.payload[byte - b.header.size()];
    where ^= std::byte(1 << bit % 8);
    EXPECT_FALSE(ParseFrame(b.header, b.payload).ok()) << "bit " << bit;
  }
}

TEST(WireTest, BlockChecksumIsXxh3WhateverTheProcessor) {
  // From the xxHash specification's reference: XXH3 64 bits, seed 0.
  EXPECT_EQ(BlockChecksum({}), 0x2d06800538d394c2u);
  for (size_t n : {1, 17, 200, 241, 2560, 5000}) {
    const std::vector<std::byte> bytes(n, std::byte{0x5a});
    EXPECT_EQ(BlockChecksum(bytes), XXH3_64bits(bytes.data(), n)) << n;
  }
}

TEST(WireTest, WrongSizesAreRefused) {
  Bytes good = Encoded();
  for (size_t n = 0; n < good.payload.size(); ++n) {
    EXPECT_FALSE(ParseFrame(good.header, std::span(good.payload).first(n)).ok());
  }
  for (size_t n = 0; n < good.header.size(); ++n) {
    EXPECT_FALSE(ParseFrame(std::span(good.header).first(n), good.payload).ok());
  }
  good.payload.push_back({});
  EXPECT_FALSE(ParseFrame(good.header, good.payload).ok());
}

TEST(WireTest, CreditComesBackAndItsFlippedBitsAreRefused) {
  const auto good = EncodeCredit({.peer_token = 5, .ring_position = uint64_t{1} << 40});
  auto credit = ParseCredit(good);
  ASSERT_TRUE(credit.ok());
  EXPECT_EQ(credit->peer_token, 5u);
  EXPECT_EQ(credit->ring_position, uint64_t{1} << 40);
  for (size_t bit = 0; bit < 8 * good.size(); ++bit) {
    auto bad = good;
    bad[bit / 8] ^= std::byte(1 << bit % 8);
    EXPECT_FALSE(ParseCredit(bad).ok()) << "bit " << bit;
  }
}

TEST(WireTest, ParsersSurviveRandomBytes) {
  const uint64_t seed = GTEST_FLAG_GET(random_seed);
  SCOPED_TRACE("seed " + std::to_string(seed));
  std::mt19937_64 rng(seed);
  Bytes good = Encoded();
  for (int i = 0; i < 20000; ++i) {
    // A good frame, cut, grown or changed in a few places.
    std::vector<uint8_t> input = {static_cast<uint8_t>(rng() % 4 ? kFrameHeaderBytes : rng())};
    for (const auto& part : {good.header, good.payload}) {
      for (std::byte b : part) input.push_back(static_cast<uint8_t>(b));
    }
    for (uint64_t n = rng() % 4; n > 0; --n) input[rng() % input.size()] = rng();
    if (rng() % 4 == 0) input.resize(rng() % (input.size() + 8));
    LLVMFuzzerTestOneInput(input.data(), input.size());
  }
}

}  // namespace
}  // namespace switchyard
