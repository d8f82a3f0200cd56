#include "cluster/rendezvous.h"

#include <algorithm>
#include <chrono>

#include "absl/strings/str_cat.h"
#include "cluster/grpc_server.h"
#include "common/status_macros.h"

namespace switchyard {
namespace {

constexpr absl::Duration kTick = absl::Milliseconds(20);
// A rank that lives answers at once, if only that it has no answer yet.
constexpr absl::Duration kAgainAfter = absl::Milliseconds(250), kAskMax = absl::Milliseconds(500);
constexpr absl::Duration kLeadMax =
    absl::Milliseconds(1500);  // then ranks before this one are tried
constexpr absl::Duration kKnockMax = absl::Milliseconds(200);
constexpr size_t kHelloBytesMax = 16 << 10;

std::unique_ptr<ep::v1::Rendezvous::Stub> StubOf(const std::string& address,
                                                 const TlsOptions& tls) {
  return ep::v1::Rendezvous::NewStub(DialChannel(address, tls));
}

void SetDeadline(grpc::ClientContext* context, absl::Duration timeout) {
  context->set_deadline(std::chrono::system_clock::now() + absl::ToChronoMilliseconds(timeout));
}

}  // namespace

Rendezvous::Visit Rendezvous::Arrive(int rank, Hellos hellos, bool was_member) {
  MutexLock lock(mu_);
  if (round_ == nullptr || round_->closed) {
    round_ = std::make_shared<Round>();
    round_->from.resize(world());
    round_->ticket.resize(world());
  }
  std::optional<Hellos>& mine = round_->from[rank];
  if (!mine) ++round_->present;
  mine = std::move(hellos);
  round_->was_group = round_->was_group || was_member;
  round_->ticket[rank] = next_ticket_++;
  // Whoever leads closes the round: it is among those who came.
  round_->closed = round_->present == world();
  changed_.NotifyAll();
  return {rank, round_, round_->ticket[rank]};
}

absl::StatusOr<std::optional<Rendezvous::Hellos>> Rendezvous::Look(const Visit& visit) {
  MutexLock lock(mu_);
  const Round& round = *visit.round;
  if (round.ticket[visit.rank] != visit.ticket) {
    return absl::AbortedError(absl::StrCat("rank ", visit.rank, " came again"));
  }
  if (!round.closed) changed_.WaitFor(mu_, kTick);
  if (!round.closed) return std::optional<Hellos>();
  Hellos answer(world());
  for (size_t r = 0; r < world(); ++r) {
    if (round.from[r]) answer[r] = (*round.from[r])[visit.rank];
  }
  return std::optional<Hellos>(std::move(answer));
}

void Rendezvous::Leave(const Visit& visit) {
  MutexLock lock(mu_);
  Round& round = *visit.round;
  if (round.ticket[visit.rank] != visit.ticket || round.closed) return;
  round.from[visit.rank].reset();
  round.ticket[visit.rank] = 0;
  --round.present;
}

bool Rendezvous::stopped() const {
  MutexLock lock(mu_);
  return stopped_;
}

bool Rendezvous::met() const {
  MutexLock lock(mu_);
  return met_;
}

absl::Status Rendezvous::Check(int rank, const std::string& hello) const {
  if (hello.size() > kHelloBytesMax) {
    return absl::InvalidArgumentError(absl::StrCat("a hello of rank ", rank, " of ", hello.size(),
                                                   " bytes, at most ", kHelloBytesMax));
  }
  return options_.check ? options_.check(rank, hello) : absl::OkStatus();
}

absl::Status Rendezvous::Refused(int by, const grpc::Status& answer) const {
  const bool refused = answer.error_code() == grpc::StatusCode::INVALID_ARGUMENT ||
                       answer.error_code() == grpc::StatusCode::FAILED_PRECONDITION;
  if (!refused || met()) return absl::OkStatus();
  return absl::Status(
      FromGrpc(answer).code(),
      absl::StrCat("rank ", by, " refuses rank ", options_.rank, ": ", answer.error_message()));
}

void Rendezvous::Stop() {
  MutexLock lock(mu_);
  stopped_ = true;
  changed_.NotifyAll();
}

Rendezvous::Knocks Rendezvous::KnocksOf(int rank) const {
  MutexLock lock(mu_);
  return knocks_[rank];
}

grpc::Status Rendezvous::Knock(grpc::ServerContext*, const ep::v1::KnockRequest* request,
                               ep::v1::KnockResponse*) {
  const int rank = request->rank();
  if (rank < 0 || rank >= static_cast<int>(world()) || rank == options_.rank) {
    return {grpc::StatusCode::INVALID_ARGUMENT,
            absl::StrCat("rank ", rank, " knocked at rank ", options_.rank, " of ", world())};
  }
  const absl::Status same = Check(rank, request->hello());
  MutexLock lock(mu_);
  if (!same.ok() && met_) return ToGrpc(same);
  Knocks& knocks = knocks_[rank];
  knocks.incarnation = request->incarnation();
  ++knocks.count;
  return grpc::Status::OK;
}

grpc::Status Rendezvous::Ping(grpc::ServerContext*, const ep::v1::PingRequest*,
                              ep::v1::PingResponse* response) {
  response->set_incarnation(options_.incarnation);
  return grpc::Status::OK;
}

bool Rendezvous::Alive(int rank, uint64_t incarnation) const {
  grpc::ClientContext context;
  SetDeadline(&context, kAskMax);
  ep::v1::PingResponse response;
  return StubOf(options_.addresses[rank], options_.tls)->Ping(&context, {}, &response).ok() &&
         response.incarnation() == incarnation;
}

grpc::Status Rendezvous::Meet(grpc::ServerContext* context, const ep::v1::MeetRequest* request,
                              ep::v1::MeetResponse* response) {
  const int rank = request->rank();
  if (request->world() != static_cast<int>(world()) || rank <= options_.rank ||
      rank >= static_cast<int>(world()) || static_cast<size_t>(request->hellos_size()) != world()) {
    return {grpc::StatusCode::INVALID_ARGUMENT,
            absl::StrCat("rank ", rank, " of ", request->world(), " with ", request->hellos_size(),
                         " hellos met rank ", options_.rank, " of ", world())};
  }
  for (int r = 0; r < request->hellos_size(); ++r) {
    const std::string& hello = request->hellos(r);
    if (r == rank && hello.size() <= kHelloBytesMax) continue;  // nobody looks at its own
    const absl::Status same = Check(rank, hello);
    if (!same.ok()) return ToGrpc(same);
  }
  const Visit visit =
      Arrive(rank, {request->hellos().begin(), request->hellos().end()}, request->was_member());
  const absl::Time again = clock_.Now() + kAgainAfter;
  for (;;) {
    auto answer = Look(visit);
    if (!answer.ok()) return ToGrpc(answer.status());
    if (*answer) {
      for (std::string& hello : **answer) response->add_hellos(std::move(hello));
      return grpc::Status::OK;
    }
    if (!context->IsCancelled() && !stopped() && clock_.Now() < again) continue;
    Leave(visit);
    return stopped() ? grpc::Status(grpc::StatusCode::UNAVAILABLE, "this rank ends")
                     : grpc::Status::OK;
  }
}

absl::StatusOr<std::optional<Rendezvous::Hellos>> Rendezvous::Lead(const Hellos& hellos,
                                                                   bool was_member,
                                                                   absl::Time end) {
  const absl::Time begin = clock_.Now();
  bool knocked = !was_member;
  const Visit visit = Arrive(options_.rank, hellos, was_member);
  for (;;) {
    Turn();
    ASSIGN_OR_RETURN(std::optional<Hellos> answer, Look(visit));
    if (answer) return answer;
    if (!knocked && clock_.Now() >= begin + options_.grace / 2) {
      knocked = true;
      for (const int r : Missing(*visit.round)) RETURN_IF_ERROR(Knock(r, hellos[r]));
    }
    if (stopped() || clock_.Now() >= end) {
      Leave(visit);
      return std::optional<Hellos>();
    }
    MutexLock lock(mu_);
    Round& round = *visit.round;
    if (round.was_group && 2 * round.present >= world() && clock_.Now() >= begin + options_.grace) {
      round.closed = true;
      changed_.NotifyAll();
    }
  }
}

absl::StatusOr<std::optional<Rendezvous::Hellos>> Rendezvous::Ask(int leader, const Hellos& hellos,
                                                                  bool was_member,
                                                                  absl::Duration timeout) const {
  ep::v1::MeetRequest request;
  request.set_rank(options_.rank);
  request.set_world(static_cast<int32_t>(world()));
  request.set_was_member(was_member);
  for (const std::string& hello : hellos) request.add_hellos(hello);
  grpc::ClientContext context;
  SetDeadline(&context, std::min(timeout, kAskMax));
  ep::v1::MeetResponse response;
  const grpc::Status status =
      StubOf(options_.addresses[leader], options_.tls)->Meet(&context, request, &response);
  RETURN_IF_ERROR(Refused(leader, status));
  const auto size = static_cast<size_t>(response.hellos_size());
  if (!status.ok() || (size != 0 && size != world())) return std::optional<Hellos>();
  for (int r = 0; r < response.hellos_size(); ++r) {
    const std::string& hello = response.hellos(r);
    const absl::Status same = hello.empty() ? absl::OkStatus() : Check(r, hello);
    if (same.ok()) continue;
    if (!met()) return same;
    return std::optional<Hellos>();
  }
  return std::optional<Hellos>(Hellos(response.hellos().begin(), response.hellos().end()));
}

std::vector<int> Rendezvous::Missing(const Round& round) const {
  MutexLock lock(mu_);
  std::vector<int> missing;
  for (size_t r = 0; r < world(); ++r) {
    if (!round.from[r]) missing.push_back(static_cast<int>(r));
  }
  return missing;
}

absl::Status Rendezvous::Knock(int at, const std::string& hello) const {
  Turn();
  ep::v1::KnockRequest request;
  request.set_rank(options_.rank);
  request.set_incarnation(options_.incarnation);
  request.set_hello(hello);
  ep::v1::KnockResponse response;
  grpc::ClientContext context;
  SetDeadline(&context, kKnockMax);
  // Who is not there need not know.
  return Refused(at,
                 StubOf(options_.addresses[at], options_.tls)->Knock(&context, request, &response));
}

absl::StatusOr<Rendezvous::Hellos> Rendezvous::Meet(const Hellos& hellos, bool was_member,
                                                    absl::Duration timeout) {
  const absl::Time deadline = clock_.Now() + timeout;
  const auto all_met = [this](Hellos answer) {
    MutexLock lock(mu_);
    met_ = true;
    return answer;
  };
  {
    MutexLock lock(mu_);
    met_ = met_ || was_member;
  }
  // The others may be at work, and know nothing of a rank that comes back. Those who have just lost
  // one all come by themselves.
  for (bool knock = !was_member; !stopped(); knock = true) {
    if (clock_.Now() >= deadline) {
      return absl::DeadlineExceededError(absl::StrCat(
          "the ", world(), " ranks did not meet within ", absl::FormatDuration(timeout)));
    }
    for (int r = 0; knock && r < static_cast<int>(world()) && !stopped(); ++r) {
      if (r != options_.rank) RETURN_IF_ERROR(Knock(r, hellos[r]));
    }
    bool led = false;  // by one that asks us to come again
    for (int leader = 0; leader < options_.rank && !led && !stopped(); ++leader) {
      Turn();
      ASSIGN_OR_RETURN(std::optional<Hellos> answer,
                       Ask(leader, hellos, was_member, deadline - clock_.Now()));
      if (answer && !answer->empty()) return all_met(*std::move(answer));
      led = answer.has_value();
    }
    if (led) continue;
    ASSIGN_OR_RETURN(std::optional<Hellos> answer,
                     Lead(hellos, was_member, std::min(deadline, clock_.Now() + kLeadMax)));
    if (answer) return all_met(*std::move(answer));
  }
  return absl::CancelledError("stopped");
}

}  // namespace switchyard
