// Ranks as threads of this process, by real UCX; their "devices" are the host
// (host_communicator.cc): which lane they choose, what blocks bring, and what becomes of ranks that
// are silent.
#include "model/cuda/direct_lane.h"

#include <gtest/gtest.h>

#include <array>
#include <atomic>

#include "common/check.h"
#include "moe/ep_testing.h"

namespace switchyard::cuda {
namespace {

using switchyard::testing::RunRanks;

template <typename T>
T OrDie(absl::StatusOr<T> value) {
  SY_CHECK_MSG(value.ok(), value.status().ToString());
  return *std::move(value);
}

LaneOffer Able(char device) {
  LaneOffer offer;
  offer.able = true;
  offer.host = "here";
  offer.facts.device[0] = device;
  offer.facts.library = 22807;
  offer.id[5] = 1;
  return offer;
}

TEST(ChooseLaneTest, AllAreAbleAndOnDevicesOfTheirOwnOrNoneIs) {
  std::vector<LaneOffer> offers = {Able('a'), Able('b'), Able('c')};
  switchyard::DeviceLane wanted = switchyard::DeviceLane::kDirect;
  const auto choose = [&] {
    std::vector<std::string> bytes;
    for (const LaneOffer& offer : offers) bytes.push_back(EncodeLaneOffer(offer));
    return OrDie(ChooseLane(bytes, wanted));
  };
  EXPECT_EQ(choose().rows_go, RowsGo::kByLibrary);
  EXPECT_EQ(choose().number, std::vector<int>({0, 1, 2}));
  EXPECT_EQ(choose().id, offers[0].id);
  const auto refused = [&](const LaneOffer& second) {
    std::vector<LaneOffer> before = std::exchange(offers, {Able('a'), second, Able('c')});
    LaneChoice choice = choose();
    offers = std::move(before);
    EXPECT_EQ(choice.rows_go, RowsGo::kStaged);
    return choice.why;
  };
  EXPECT_EQ(refused(Able('a')), "ranks 0 and 1 share a device");
  LaneOffer other = Able('b');
  other.facts.library = 22304;
  EXPECT_EQ(refused(other), "ranks 0 and 1 have versions 22807 and 22304 of NCCL");
  other = Able('b');
  other.able = false;
  other.why = std::string(300, 'x') + "\n";
  EXPECT_EQ(refused(other), "rank 1: " + std::string(kWhyBytes, 'x'));
  // Those that the library refuses share memory, if they share a machine.
  wanted = switchyard::DeviceLane::kAuto;
  offers[1].facts = offers[0].facts;
  EXPECT_EQ(choose().rows_go, RowsGo::kByPeerMemory);
  EXPECT_EQ(choose().why, "ranks 0 and 1 share a device");
  other = Able('b');
  other.host = "elsewhere";
  other.able = false;
  EXPECT_EQ(refused(other), "rank 1: ; ranks 0 and 1 do not share a machine");
  wanted = switchyard::DeviceLane::kPeer;
  EXPECT_EQ(choose().rows_go, RowsGo::kByPeerMemory);
  EXPECT_EQ(refused(other), "ranks 0 and 1 do not share a machine");
  other = Able('b');
  other.trusts = false;
  EXPECT_EQ(refused(other), "rank 1: its lane broke twice although no rank was lost");
  offers.resize(34, Able('x'));
  EXPECT_EQ(choose().why, "34 ranks, at most 33 share memory");
  offers.resize(3);
  wanted = switchyard::DeviceLane::kDirect;
  offers[1] = Able('b');
  offers[0].id = {};
  EXPECT_EQ(choose().rows_go, RowsGo::kStaged) << "nobody has named a communicator";
}

TEST(PeerOfferTest, AllOpenAllWindowsOrNobodyDoes) {
  std::vector<std::string> bytes(3);
  const PeerOffer ready{.why = "", .slot_bytes = 512, .window = {'w'}};
  bytes[0] = bytes[2] = EncodePeerOffer(ready);
  PeerAnswers answers = OrDie(DecodePeerOffers(bytes));
  EXPECT_EQ(answers.why, "");
  EXPECT_EQ(answers.windows,
            (std::vector<std::optional<PeerHandle>>{ready.window, std::nullopt, ready.window}));
  bytes[2] = EncodePeerOffer({.why = "no\n", .slot_bytes = 512});
  EXPECT_EQ(OrDie(DecodePeerOffers(bytes)).why, "rank 2: no\\n");
  bytes[2] = EncodePeerOffer({.why = "", .slot_bytes = 256});
  EXPECT_EQ(OrDie(DecodePeerOffers(bytes)).why, "rank 2 has slots of 256 bytes, others of 512");
  bytes[2] += "x";
  EXPECT_TRUE(absl::IsInvalidArgument(DecodePeerOffers(bytes).status()));
}

TEST(ChooseLaneTest, AbsentRanksHaveNoNumberAndOneAloneNeedsNobody) {
  const std::string a = EncodeLaneOffer(Able('a')), b = EncodeLaneOffer(Able('b'));
  const auto choose = [](const std::vector<std::string>& offers) {
    return OrDie(ChooseLane(offers, switchyard::DeviceLane::kDirect));
  };
  const LaneChoice two = choose({"", a, "", b});
  EXPECT_EQ(two.rows_go, RowsGo::kByLibrary);
  EXPECT_EQ(two.number, std::vector<int>({-1, 0, -1, 1}));
  EXPECT_EQ(two.ranks, 2);
  EXPECT_EQ(choose({"", EncodeLaneOffer({})}).rows_go, RowsGo::kByLibrary);
}

TEST(ChooseLaneTest, OffersThatAreNoneAreRefused) {
  std::string offer = EncodeLaneOffer(Able('a'));
  const auto refused = [](const std::vector<std::string>& offers) {
    return absl::IsInvalidArgument(ChooseLane(offers, switchyard::DeviceLane::kAuto).status());
  };
  EXPECT_TRUE(refused({}));
  EXPECT_TRUE(refused({offer + "x"}));
  offer[0] = 3;
  EXPECT_TRUE(refused({offer}));
}

TEST(LaneHistoryTest, ALaneThatBreaksTwiceAmongTheSameIsNotTrusted) {
  const uint64_t same[] = {5, 6, 7}, other[] = {5, 9, 7};
  LaneHistory history;
  history.Begin(same);
  history.Broke();
  history.Begin(other);  // a rank was lost: that may have been the reason
  history.Broke();
  history.Begin(other);
  EXPECT_TRUE(history.trusts());
  history.Begin(other);  // the epoch ended otherwise
  history.Broke();
  history.Begin(other);
  EXPECT_TRUE(history.trusts());
  history.Broke();
  history.Begin(other);
  EXPECT_FALSE(history.trusts());
  history.Begin(same);
  EXPECT_FALSE(history.trusts()) << "for good";
}

constexpr int kWorld = 3;
const EpDispatcher::Options kOptions = {.top_k = 2, .hidden = 8, .max_tokens = 4};

// Which ranks do not answer any more, for who asks.
using Gone = std::array<std::atomic<bool>, kWorld>;

// An epoch of ranks that keep their lanes from one to the next.
void RunEpoch(std::vector<DirectLane>& lanes, uint64_t epoch, switchyard::DeviceLane wanted,
              const Gone& gone,
              const std::function<void(DirectLane&, EpDispatcher&, int rank)>& body) {
  EpDispatcher::Options options = kOptions;
  options.device_lane = wanted;
  const auto placement =
      std::make_shared<const Placement>(OrDie(Placement::InOrder(1, 1, 6, kWorld)));
  const EpGroupOptions group_options = {
      .incarnation = 3,
      .last_epoch = epoch - 1,
      .lanes = {"shm"},
      .ring_bytes = EpDispatcher::RingBytes(options, kEpRingBytesMin),
      .alive = [&](int peer, uint64_t) { return !gone[peer]; },
      .alive_after = absl::Milliseconds(50)};
  RunRanks(kWorld, group_options, [&](EpGroup& group, int rank) {
    const auto dispatcher = OrDie(EpDispatcher::Create(&group, placement, options));
    body(lanes[rank], *dispatcher, rank);
    lanes[rank].End();
  });
}

// Pieces of peer memory: more than one for the largest blocks below.
constexpr size_t kSlotBytes = 256;

// Ranks r and s send each other (r + s + round) % 3 times 10 rows, that say whose they are, and r
// one more to `liar_to`.
absl::Status MoveBlocks(DirectLane& lane, int rank, int round, int liar_to = -1) {
  const size_t row_bytes = 16;
  BlockFirsts from = {0}, to = {0};
  std::vector<std::byte> sent, wanted;
  for (int r = 0; r < kWorld; ++r) {
    const int rows = (rank + r + round) % 3 * 10;
    const int lied = rows + (r == liar_to);
    from.push_back(from.back() + lied);
    to.push_back(to.back() + rows);
    sent.insert(sent.end(), lied * row_bytes, std::byte(10 * rank + r));
    wanted.insert(wanted.end(), rows * row_bytes, std::byte(10 * r + rank));
  }
  std::vector<std::byte> came(wanted.size());
  const OwnedStream stream = OrDie(MakeStream());
  absl::Status moved = lane.Exchange(sent.data(), from, came.data(), to, row_bytes, stream);
  if (moved.ok()) moved = lane.Await(Event());
  EXPECT_TRUE(!moved.ok() || came == wanted) << "rank " << rank;
  return moved;
}

class DirectLanesTest : public ::testing::TestWithParam<switchyard::DeviceLane> {};
INSTANTIATE_TEST_SUITE_P(Lanes, DirectLanesTest,
                         ::testing::Values(switchyard::DeviceLane::kDirect,
                                           switchyard::DeviceLane::kPeer));

TEST_P(DirectLanesTest, BlocksComeToTheirPlaces) {
  std::vector<DirectLane> lanes(kWorld);
  for (uint64_t epoch = 1; epoch <= 3; ++epoch) {
    RunEpoch(lanes, epoch, GetParam(), Gone{},
             [&](DirectLane& lane, EpDispatcher& dispatcher, int rank) {
               for (int round = 0; round < 8; ++round) {
                 const absl::Status begun = lane.Begin(dispatcher, 0, kSlotBytes);
                 ASSERT_TRUE(begun.ok()) << begun;
                 ASSERT_TRUE(lane.direct());
                 const absl::Status moved = MoveBlocks(lane, rank, round);
                 ASSERT_TRUE(moved.ok()) << moved;
               }
               EXPECT_EQ(dispatcher.rows_travel(),
                         GetParam() == switchyard::DeviceLane::kDirect
                             ? "from device to device"
                             : "from device to device, into each other's memory");
             });
  }
}

TEST(DirectLaneTest, ThroughTheHostIfAsked) {
  std::vector<DirectLane> lanes(kWorld);
  RunEpoch(lanes, 1, switchyard::DeviceLane::kStaged, Gone{},
           [](DirectLane& lane, EpDispatcher& dispatcher, int) {
             EXPECT_TRUE(lane.Begin(dispatcher, 0).ok());
             EXPECT_FALSE(lane.direct());
           });
}

TEST(DirectLaneTest, WhoeverWaitsForALostRankGoesOnWithoutIt) {
  std::vector<DirectLane> lanes(kWorld);
  for (uint64_t epoch = 1; epoch <= 3; ++epoch) {
    Gone gone = {};
    RunEpoch(lanes, epoch, switchyard::DeviceLane::kAuto, gone,
             [&](DirectLane& lane, EpDispatcher& dispatcher, int rank) {
               ASSERT_TRUE(lane.Begin(dispatcher, 0).ok());
               ASSERT_TRUE(lane.direct()) << "whoever is lost, the lane is not to blame";
               if (rank == 2) {
                 gone[2] = true;
               } else if (rank == 0) {
                 EXPECT_TRUE(absl::IsUnavailable(MoveBlocks(lane, rank, 0)));
                 EXPECT_TRUE(absl::IsUnavailable(dispatcher.group().status()));
               }
             });
  }
}

TEST(DirectLaneTest, ALaneThatFailsTwiceIsLeftByAll) {
  std::vector<DirectLane> lanes(kWorld);
  for (uint64_t epoch = 1; epoch <= 3; ++epoch) {
    Gone gone = {};
    RunEpoch(lanes, epoch, switchyard::DeviceLane::kAuto, gone,
             [&](DirectLane& lane, EpDispatcher& dispatcher, int rank) {
               const absl::Status begun = lane.Begin(dispatcher, 0);
               ASSERT_TRUE(begun.ok()) << begun;
               ASSERT_EQ(lane.direct(), epoch < 3);
               if (epoch == 3) {
                 EXPECT_EQ(dispatcher.rows_travel(),
                           "through the host: rank 1: its lane broke twice although no rank was "
                           "lost");
               } else if (rank < 2) {  // rank 0 sends what rank 1 has not planned
                 const absl::Status moved = MoveBlocks(lane, rank, 0, rank == 0 ? 1 : -1);
                 EXPECT_TRUE(absl::IsUnavailable(moved)) << moved;
                 gone[1] = true;  // as if it had left to meet again
               }
             });
  }
}

}  // namespace
}  // namespace switchyard::cuda
