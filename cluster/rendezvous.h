// cluster/rendezvous.h: how the ranks of a group find each other, at their start and after a loss.
// All go to the first rank that answers; it answers everyone at once, so that all who get an answer
// know of the same ranks. What they tell each other is opaque here (moe/ep_wire.h).
//
// A new group waits for all its ranks. One that has lost ranks (somebody was a member before) waits
// for them a while and goes on with those who came, if that is half of all at least. Before it does
// it knocks at the missing ones: they may live and have gone on without it.
//
// A rank that differs is refused, by those who know: who has met the others once is right, whatever
// another says. It refuses that one's knock and its hellos, and takes no refusal for its own end.
// Among ranks that have never met, the one that leads is right.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "common/clock.h"
#include "common/mutex.h"
#include "common/net/tls.h"
#include "proto/ep.grpc.pb.h"

namespace switchyard {

struct RendezvousOptions {
  int rank = 0;
  std::vector<std::string> addresses = {};  // [N] host:port of the server of each rank
  uint64_t incarnation = 0;                 // of this process
  // How long a group that was one waits for its missing ranks.
  absl::Duration grace = absl::Milliseconds(500);
  TlsOptions tls = {};
  // Whether this rank can be in one group with who sent this hello as rank `rank`; the error names
  // what differs. Called on any thread. Empty: with all.
  std::function<absl::Status(int rank, const std::string& hello)> check = nullptr;
  // Called at each turn of a Meet, every second or so: who waits is not stuck. May be empty.
  std::function<void()> on_wait = nullptr;
};

// A gRPC service: pass it to GrpcServer::Listen, and destroy the GrpcServer first. Thread-safe.
class Rendezvous final : public ep::v1::Rendezvous::Service {
 public:
  using Hellos = std::vector<std::string>;

  explicit Rendezvous(const RendezvousOptions& options)
      : options_(options), knocks_(options.addresses.size()) {}

  // hellos [N]: from this rank to each. What the others brought for this rank [N]; empty: its own,
  // and of ranks that did not come. One call at a time. kDeadlineExceeded after `timeout`;
  // kCancelled by Stop; kInvalidArgument or kFailedPrecondition if another rank refuses this one,
  // which has not met any yet, and says why.
  absl::StatusOr<Hellos> Meet(const Hellos& hellos, bool was_member, absl::Duration timeout);
  // Ends a Meet that waits, and all later ones.
  void Stop();
  // Who wants to meet: the process that last knocked as a rank, and how often anyone did who was
  // not refused.
  struct Knocks {
    uint64_t incarnation = 0;
    uint64_t count = 0;
  };
  Knocks KnocksOf(int rank) const;
  // Asks a rank whether it lives, as the process `incarnation`. Blocks up to 500 ms.
  bool Alive(int rank, uint64_t incarnation) const;

 private:
  // One gathering, at the rank that leads it.
  struct Round {
    std::vector<std::optional<Hellos>> from;  // [N]
    std::vector<uint64_t> ticket;             // [N] of who brought it last
    size_t present = 0;
    bool was_group = false;  // somebody was a member before
    bool closed = false;     // answers are out: nobody joins any more
  };
  // One that waits for a round to close.
  struct Visit {
    int rank;
    std::shared_ptr<Round> round;
    uint64_t ticket;
  };

  grpc::Status Meet(grpc::ServerContext* context, const ep::v1::MeetRequest* request,
                    ep::v1::MeetResponse* response) override;
  grpc::Status Knock(grpc::ServerContext* context, const ep::v1::KnockRequest* request,
                     ep::v1::KnockResponse* response) override;
  grpc::Status Ping(grpc::ServerContext* context, const ep::v1::PingRequest* request,
                    ep::v1::PingResponse* response) override;
  size_t world() const { return options_.addresses.size(); }
  Visit Arrive(int rank, Hellos hellos, bool was_member);
  // What the visit waits for, or nothing after a tick. kAborted: the rank came again.
  absl::StatusOr<std::optional<Hellos>> Look(const Visit& visit);
  void Leave(const Visit& visit);
  // Leads a round until it closes or `end`: then what has come is sent away. Nothing: too few came.
  absl::StatusOr<std::optional<Hellos>> Lead(const Hellos& hellos, bool was_member, absl::Time end);
  // One try at the rank `leader`. Nothing: it does not answer. An empty list: come again.
  absl::StatusOr<std::optional<Hellos>> Ask(int leader, const Hellos& hellos, bool was_member,
                                            absl::Duration timeout) const;
  // Errors: of Refused.
  absl::Status Knock(int at, const std::string& hello) const;
  // Whether this rank can go on after what rank `by` has answered: not if it is the one that
  // differs.
  absl::Status Refused(int by, const grpc::Status& answer) const;
  absl::Status Check(int rank, const std::string& hello) const;
  // The ranks that have not come to a round.
  std::vector<int> Missing(const Round& round) const;
  void Turn() const {
    if (options_.on_wait) options_.on_wait();
  }
  bool stopped() const;
  bool met() const;

  const RendezvousOptions options_;
  const MonotonicClock clock_;
  mutable Mutex mu_;
  CondVar changed_;
  bool stopped_ ABSL_GUARDED_BY(mu_) = false;
  bool met_ ABSL_GUARDED_BY(mu_) = false;  // the others, once
  uint64_t next_ticket_ ABSL_GUARDED_BY(mu_) = 1;
  std::vector<Knocks> knocks_ ABSL_GUARDED_BY(mu_);  // [N]
  std::shared_ptr<Round> round_ ABSL_GUARDED_BY(mu_);
};

}  // namespace switchyard
