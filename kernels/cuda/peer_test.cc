// Both ends of an exchange on one device, one after the other on one stream: what is sent is there,
// and every wait ends.
#include "kernels/cuda/peer.h"

#include <random>

#include "kernels/cuda/testing.h"

namespace switchyard::cuda {
namespace {

constexpr uint64_t kHourNs = 3600ull * 1000 * 1000 * 1000;

// One rank's words. `stop` and `error` are the host's in production: any memory will do.
struct Device {
  DeviceArray<uint32_t> arrived{kPeersMax, 0u}, broken{1, 0u}, stop{1, 0u}, error{1, 0u};
  PeerWords words() { return {arrived.data(), broken.data(), stop.data(), error.data()}; }
};

#define SKIP_WITHOUT_DEVICE() \
  if (const std::string why = NoDevice(); !why.empty()) GTEST_SKIP() << why

TEST(PeerTest, WhatIsSentIsThere) {
  SKIP_WITHOUT_DEVICE();
  constexpr size_t kSlot = 40 << 10, kNone = 48;  // bytes; past the data that are nobody's
  for (const uint64_t order : TestedOrders()) {
    SetTestedOrder(order);
    for (const int ctas : {1, 3}) {
      std::mt19937 rng(static_cast<unsigned>(order) + 7);
      Device device;
      const size_t sizes[] = {0, 16, 33 << 10, kSlot, 4096};
      constexpr size_t kPeers = std::size(sizes);
      DeviceArray<uint8_t> slots(kPeers * kSlot, 0xee), came(kPeers * (kSlot + kNone), 0xdd);
      DeviceArray<uint64_t> flags(kPeers, 0);
      std::vector<uint8_t> bytes(kPeers * kSlot);
      for (uint8_t& b : bytes) b = static_cast<uint8_t>(rng());
      const DeviceArray<uint8_t> sent(bytes);
      PeerBlocks out, in;
      out.count = in.count = kPeers;
      for (size_t p = 0; p < kPeers; ++p) {
        const auto at = [](const DeviceArray<uint8_t>& a, size_t begin) {
          return reinterpret_cast<std::byte*>(a.data()) + begin;
        };
        out.at[p] = {.slot = at(slots, p * kSlot),
                     .flag = flags.data() + p,
                     .data = at(sent, p * kSlot),
                     .bytes = sizes[p],
                     .word = 0x700000001 + p,
                     .rank = static_cast<int>(p)};
        in.at[p] = out.at[p];
        in.at[p].data = at(came, p * (kSlot + kNone));
      }
      ASSERT_TRUE(SendToPeers(nullptr, out, device.words(), ctas).ok());
      ASSERT_TRUE(ReceiveFromPeers(nullptr, in, device.words(), kHourNs, ctas).ok());
      const std::vector<uint8_t> got = came.Get();
      for (size_t p = 0; p < kPeers; ++p) {
        for (size_t i = 0; i < kSlot + kNone; ++i) {
          ASSERT_EQ(got[p * (kSlot + kNone) + i], i < sizes[p] ? bytes[p * kSlot + i] : 0xdd)
              << "peer " << p << ", byte " << i;
        }
      }
      EXPECT_EQ(device.arrived.Get(), std::vector<uint32_t>(kPeersMax, 0)) << "for the next call";
      EXPECT_EQ(device.broken.Get()[0], 0u);
      EXPECT_EQ(device.error.Get()[0], 0u);
    }
  }
}

// A wait for a word that never comes, a call after it whose word is there, and rows sent then.
struct Ended {
  uint32_t error, broken;
  bool copied, sent;
};
Ended WaitInVain(uint32_t stop, uint64_t wait_ns_max) {
  Device device;
  CopyToDevice(device.stop.data(), &stop, sizeof stop);
  const DeviceArray<uint8_t> slot(64, 0xee), came(64, 0xdd);
  DeviceArray<uint64_t> flags(std::vector<uint64_t>{5, 6});
  PeerBlocks in;
  in.count = 1;
  in.at[0] = {.slot = reinterpret_cast<std::byte*>(slot.data()),
              .flag = flags.data(),
              .data = reinterpret_cast<std::byte*>(came.data()),
              .bytes = 64,
              .word = 6,
              .rank = 3};
  EXPECT_TRUE(ReceiveFromPeers(nullptr, in, device.words(), wait_ns_max, 2).ok());
  in.at[0].flag = flags.data() + 1;
  EXPECT_TRUE(ReceiveFromPeers(nullptr, in, device.words(), kHourNs, 2).ok());
  in.at[0].word = 7;
  EXPECT_TRUE(SendToPeers(nullptr, in, device.words(), 2).ok());
  const bool sent = flags.Get() != std::vector<uint64_t>{5, 6} || slot.Get()[0] != 0xee;
  return {device.error.Get()[0], device.broken.Get()[0], came.Get()[0] != 0xdd, sent};
}

TEST(PeerTest, AWaitEndsAtItsLimitAndNamesTheRank) {
  SKIP_WITHOUT_DEVICE();
  const Ended ended = WaitInVain(0, 1000 * 1000);
  EXPECT_EQ(ended.error, 4u);
  EXPECT_EQ(ended.broken, 1u);
  EXPECT_FALSE(ended.copied);
  EXPECT_FALSE(ended.sent);
}

TEST(PeerTest, TheHostEndsAWait) {
  SKIP_WITHOUT_DEVICE();
  const Ended ended = WaitInVain(1, kHourNs);
  EXPECT_EQ(ended.error, 0u) << "nobody is to blame";
  EXPECT_EQ(ended.broken, 1u);
  EXPECT_FALSE(ended.copied);
  EXPECT_FALSE(ended.sent);
}

}  // namespace
}  // namespace switchyard::cuda
