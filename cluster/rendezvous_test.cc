// Ranks as threads of this process, each with a real gRPC server.
#include "cluster/rendezvous.h"

#include <gtest/gtest.h>

#include <thread>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "cluster/grpc_server.h"

namespace switchyard {
namespace {

// A port that was free a moment ago.
std::string FreeAddress() {
  Rendezvous none({.rank = 0, .addresses = {""}});
  return HostPort("127.0.0.1", (*GrpcServer::Listen({}, {&none}))->port());
}

std::vector<std::string> Addresses(int world) {
  std::vector<std::string> addresses(world);
  for (std::string& address : addresses) address = FreeAddress();
  return addresses;
}

// Waits for a slow machine, but does not go on without a rank.
constexpr absl::Duration kPatience = absl::Seconds(30);

// One rank: its service and server. Incarnations are 100 + rank.
struct Rank {
  Rank(int rank, const std::vector<std::string>& addresses,
       absl::Duration grace = RendezvousOptions().grace)
      : meeting({.rank = rank,
                 .addresses = addresses,
                 .incarnation = 100 + static_cast<uint64_t>(rank),
                 .grace = grace}) {
    GrpcServerOptions options;
    options.port = std::stoi(addresses[rank].substr(addresses[rank].rfind(':') + 1));
    auto listening = GrpcServer::Listen(options, {&meeting});
    EXPECT_TRUE(listening.ok()) << listening.status();
    server = *std::move(listening);
  }
  ~Rank() { meeting.Stop(); }
  Rendezvous meeting;
  std::unique_ptr<GrpcServer> server;
};

std::vector<std::string> From(int rank, int world, const std::string& what) {
  std::vector<std::string> hellos(world);
  for (int p = 0; p < world; ++p) hellos[p] = absl::StrCat(what, " ", rank, " to ", p);
  return hellos;
}

TEST(RendezvousTest, AllGetWhatTheOthersBroughtForThemRoundAfterRound) {
  constexpr int kWorld = 4;
  const auto addresses = Addresses(kWorld);
  std::vector<std::unique_ptr<Rank>> ranks(kWorld);
  std::vector<std::thread> threads;
  for (int r = 0; r < kWorld; ++r) {
    threads.emplace_back([&, r] {
      absl::SleepFor(absl::Milliseconds(300 * ((r + 1) % kWorld)));  // rank 0 is not the first
      ranks[r] = std::make_unique<Rank>(r, addresses, kPatience);
      for (const char* round : {"first", "second", "third"}) {
        const auto met =
            ranks[r]->meeting.Meet(From(r, kWorld, round), round[0] != 'f', absl::Seconds(30));
        ASSERT_TRUE(met.ok()) << met.status();
        for (int p = 0; p < kWorld; ++p) {
          EXPECT_EQ((*met)[p], absl::StrCat(round, " ", p, " to ", r));
        }
      }
    });
  }
  for (std::thread& t : threads) t.join();
}

TEST(RendezvousTest, ANewGroupWaitsForAllOfItsRanks) {
  const auto addresses = Addresses(2);
  Rank zero(0, addresses);
  const auto late = zero.meeting.Meet(From(0, 2, "x"), false, absl::Seconds(1));
  EXPECT_TRUE(absl::IsDeadlineExceeded(late.status())) << late.status();
}

TEST(RendezvousTest, ThoseWhoAreLeftGoOnAfterAWhile) {
  const auto addresses = Addresses(3);  // nobody listens at the first
  Rank one(1, addresses), two(2, addresses);
  absl::StatusOr<std::vector<std::string>> met[3];
  std::thread a([&] { met[1] = one.meeting.Meet(From(1, 3, "x"), true, absl::Seconds(30)); });
  met[2] = two.meeting.Meet(From(2, 3, "x"), true, absl::Seconds(30));
  a.join();
  ASSERT_TRUE(met[1].ok() && met[2].ok()) << met[1].status() << met[2].status();
  EXPECT_EQ(*met[1], (std::vector<std::string>{"", "x 1 to 1", "x 2 to 1"}));
  EXPECT_EQ(*met[2], (std::vector<std::string>{"", "x 1 to 2", "x 2 to 2"}));
}

TEST(RendezvousTest, WhoIsLeftBehindHearsOfIt) {
  const auto addresses = Addresses(2);
  Rank zero(0, addresses), one(1, addresses);  // one is at work in another epoch
  // A knock has little time: on a busy machine it may be too late.
  for (int i = 0; i < 10 && one.meeting.KnocksOf(0).count == 0; ++i) {
    const auto alone = zero.meeting.Meet(From(0, 2, "x"), true, absl::Seconds(30));
    ASSERT_TRUE(alone.ok()) << alone.status();
    EXPECT_EQ((*alone)[1], "");
  }
  EXPECT_EQ(one.meeting.KnocksOf(0).incarnation, 100u);
}

TEST(RendezvousTest, LessThanHalfDoNotGoOn) {
  const auto addresses = Addresses(3);
  Rank one(1, addresses);
  const auto met = one.meeting.Meet(From(1, 3, "x"), true, absl::Seconds(2));
  EXPECT_TRUE(absl::IsDeadlineExceeded(met.status())) << met.status();
}

TEST(RendezvousTest, ARankThatComesBackIsHeardByThoseAtWork) {
  const auto addresses = Addresses(2);
  Rank one(1, addresses, kPatience);  // at work: it does not meet anyone
  EXPECT_EQ(one.meeting.KnocksOf(0).count, 0u);
  Rank zero(0, addresses);
  absl::StatusOr<std::vector<std::string>> met;
  std::thread a([&] { met = zero.meeting.Meet(From(0, 2, "back"), false, absl::Seconds(30)); });
  for (int i = 0; i < 3000 && one.meeting.KnocksOf(0).count == 0; ++i) {
    absl::SleepFor(absl::Milliseconds(10));
  }
  EXPECT_EQ(one.meeting.KnocksOf(0).incarnation, 100u);
  const auto mine = one.meeting.Meet(From(1, 2, "here"), true, absl::Seconds(30));
  a.join();
  ASSERT_TRUE(met.ok() && mine.ok()) << met.status() << mine.status();
  EXPECT_EQ((*met)[1], "here 1 to 0");
  EXPECT_EQ((*mine)[0], "back 0 to 1");
}

TEST(RendezvousTest, ARankLivesAsOneProcess) {
  const auto addresses = Addresses(3);
  Rank zero(0, addresses), one(1, addresses);
  bool alive = false;  // it has 500 ms for the answer
  for (int i = 0; i < 20 && !alive; ++i) alive = zero.meeting.Alive(1, 101);
  EXPECT_TRUE(alive);
  EXPECT_FALSE(zero.meeting.Alive(1, 77)) << "another process";
  EXPECT_FALSE(zero.meeting.Alive(2, 102)) << "nobody listens";
}

TEST(RendezvousTest, AWaitCanBeStopped) {
  const auto addresses = Addresses(2);
  Rank zero(0, addresses);
  std::thread stop([&] {
    absl::SleepFor(absl::Milliseconds(200));
    zero.meeting.Stop();
  });
  const auto stopped = zero.meeting.Meet(From(0, 2, "x"), false, absl::Seconds(30));
  EXPECT_TRUE(absl::IsCancelled(stopped.status())) << stopped.status();
  stop.join();
}

TEST(RendezvousTest, AnotherWorldIsRefused) {
  const auto three = Addresses(3);
  const std::vector<std::string> two(three.begin(), three.begin() + 2);
  Rank zero(0, two), one(1, three);
  const auto met = one.meeting.Meet(From(1, 3, "x"), false, absl::Seconds(30));
  EXPECT_TRUE(absl::IsInvalidArgument(met.status())) << met.status();
}

// Ranks that go together with hellos of the same first letter.
struct ChoosyRank {
  ChoosyRank(int rank, const std::vector<std::string>& addresses, char mine)
      : meeting({.rank = rank, .addresses = addresses, .check = [mine](int, const std::string& h) {
                   return h.starts_with(mine) ? absl::OkStatus()
                                              : absl::FailedPreconditionError("not " + h);
                 }}) {
    GrpcServerOptions options;
    options.port = std::stoi(addresses[rank].substr(addresses[rank].rfind(':') + 1));
    server = GrpcServer::Listen(options, {&meeting}).value();
  }
  ~ChoosyRank() { meeting.Stop(); }
  Rendezvous meeting;
  std::unique_ptr<GrpcServer> server;
};

TEST(RendezvousTest, WhoDiffersIsRefusedByThoseWhoHaveMetAndTheyGoOn) {
  constexpr int kWorld = 3;
  for (const int odd : {2, 0}) {  // also the one that all meet at
    const auto addresses = Addresses(kWorld);
    std::vector<std::unique_ptr<ChoosyRank>> ranks(kWorld);
    for (int r = 0; r < kWorld; ++r) {
      ranks[r] = std::make_unique<ChoosyRank>(r, addresses, r == odd ? 'b' : 'a');
    }
    std::vector<absl::StatusOr<std::vector<std::string>>> met(kWorld);
    std::vector<std::thread> threads;
    for (int r = 0; r < kWorld; ++r) {
      if (r == odd) continue;
      threads.emplace_back([&, r] {
        met[r] = ranks[r]->meeting.Meet(From(r, kWorld, "a"), true, absl::Seconds(60));
      });
    }
    for (std::thread& t : threads) t.join();
    for (int r = 0; r < kWorld; ++r) {
      if (r == odd) continue;
      ASSERT_TRUE(met[r].ok()) << met[r].status();
      EXPECT_EQ((*met[r])[odd], "");
    }
    const auto other = ranks[odd]->meeting.Meet(From(odd, kWorld, "b"), false, absl::Seconds(60));
    EXPECT_TRUE(absl::IsFailedPrecondition(other.status())) << other.status();
    EXPECT_NE(other.status().message().find("not b"), other.status().message().npos);
    for (int r = 0; r < kWorld; ++r) {
      if (r == odd) continue;
      EXPECT_EQ(ranks[r]->meeting.KnocksOf(odd).count, 0u);
    }
  }
}

TEST(RendezvousTest, AmongThoseWhoNeverMetTheLeaderIsRight) {
  const auto addresses = Addresses(2);
  ChoosyRank zero(0, addresses, 'a'), one(1, addresses, 'b');
  absl::StatusOr<std::vector<std::string>> first;
  std::thread leads([&] { first = zero.meeting.Meet(From(0, 2, "a"), false, absl::Seconds(60)); });
  const auto second = one.meeting.Meet(From(1, 2, "b"), false, absl::Seconds(60));
  EXPECT_TRUE(absl::IsFailedPrecondition(second.status())) << second.status();
  zero.meeting.Stop();
  leads.join();
  EXPECT_TRUE(absl::IsCancelled(first.status())) << first.status();
}

TEST(RendezvousTest, GarbageEndsNobody) {
  const auto addresses = Addresses(2);
  ChoosyRank zero(0, addresses, 'a'), one(1, addresses, 'a');
  const auto stub = ep::v1::Rendezvous::NewStub(
      grpc::CreateChannel(addresses[0], grpc::InsecureChannelCredentials()));
  absl::StatusOr<std::vector<std::string>> first;
  std::thread leads([&] { first = zero.meeting.Meet(From(0, 2, "a"), true, absl::Seconds(60)); });
  leads.join();  // alone, as one of a group that was
  ASSERT_TRUE(first.ok()) << first.status();
  leads = std::thread([&] { first = zero.meeting.Meet(From(0, 2, "a"), true, absl::Seconds(60)); });
  const std::string huge(20'000, 'a');
  for (const std::string& hello : {std::string(), std::string("\xff\0\x01", 3), huge}) {
    for (const int rank : {1, -1, 0, 2}) {
      grpc::ClientContext knock, meet;
      ep::v1::KnockRequest knocks;
      knocks.set_rank(rank);
      knocks.set_hello(hello);
      ep::v1::KnockResponse heard;
      EXPECT_FALSE(stub->Knock(&knock, knocks, &heard).ok());
      ep::v1::MeetRequest meets;
      meets.set_rank(rank);
      meets.set_world(2);
      meets.add_hellos(hello);
      meets.add_hellos("");
      ep::v1::MeetResponse met;
      EXPECT_FALSE(stub->Meet(&meet, meets, &met).ok());
    }
  }
  EXPECT_EQ(zero.meeting.KnocksOf(1).count, 0u);
  leads.join();
  ASSERT_TRUE(first.ok()) << first.status();
  EXPECT_EQ((*first)[1], "");
}

}  // namespace
}  // namespace switchyard
