#include "router/conductor.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "router/conductor_request.h"

namespace switchyard {
namespace {

namespace pb = cluster::v1;
using End = RequestAttempts::End;
constexpr size_t kPrefixBlocksMax = 1 << 17;
constexpr size_t kLineMax = 64;  // that are looked at together
constexpr absl::Duration kLongWait = absl::Seconds(1);

MembershipOptions MembershipFor(const CoreOptions& options) {
  return {.lease = options.lease,
          .vocab_size = options.model.vocab_size,
          .max_model_len = options.max_model_len_fixed ? options.model.max_model_len : 0};
}

}  // namespace

Conductor::Conductor(const CoreOptions* options, std::string router_id, Outside outside)
    : options_(*options),
      router_id_(std::move(router_id)),
      outside_(std::move(outside)),
      clock_(outside_.clock),
      jitter_(options_.seed ^ 1),
      workers_(MembershipFor(options_), MakePoolEvents(), outside_.links, clock_, outside_.log),
      prefixes_(kPrefixBlocksMax) {}

Conductor::~Conductor() = default;

WorkerPoolEvents Conductor::MakePoolEvents() {
  return {.events = [this](WorkerId w, const pb::StepEvents& e) { OnWorkerEvents(w, e); },
          .lost = [this](WorkerId w, const absl::Status& why) { OnWorkerLost(w, why); },
          .changed = [this] { workers_changed_ = true; },
          .counted =
              [this](const WorkerCounts& more) {
                outside_.metrics->Preemptions(more.preemptions);
                outside_.metrics->PrefixCache(more.prefix_queries, more.prefix_hits);
              }};
}

void Conductor::Turn() {
  SendUpdates();
  workers_.Tick();
  OnTimers();
  Dispatch();
}

void Conductor::StopRequest(Request& r, const End& end) { Apply(r, r.attempts.Stop(end)); }

void Conductor::Abort(uint64_t number) {
  auto it = requests_.find(number);
  if (it != requests_.end()) StopRequest(*it->second, {End::Reason::kAborted, absl::OkStatus()});
}

void Conductor::GiveUpAll() {
  const End end = {End::Reason::kError,
                   absl::UnavailableError("the router ends before the answer; try another one")};
  while (!requests_.empty()) StopRequest(*requests_.begin()->second, end);
}

void Conductor::Begin(uint64_t number, std::string id, ClientRequest client, Sink sink) {
  auto request = std::make_unique<Request>(
      number, std::move(id), absl::StrCat(router_id_, "-", number), std::move(client),
      std::move(sink), options_, clock_->Now(), &jitter_, outside_.spans);
  Request& r = *request;
  by_wire_id_[r.wire_id] = &r;
  requests_[number] = std::move(request);
  Settle(r);
}

std::vector<RequestStatus> Conductor::List() const {
  std::vector<RequestStatus> list;
  const absl::Time now = clock_->Now();
  for (const auto& [number, r] : requests_) {
    const bool running = r->attempts.phase() == RequestAttempts::Phase::kRunning;
    list.push_back({.id = r->id,
                    .trace_id = r->trace.trace_id(),
                    .running = running,
                    .age = now - r->arrival,
                    .attempt = r->attempts.attempt(),
                    .prompt_tokens = static_cast<int>(r->client.prompt_ids.size()),
                    .tokens = r->completion_tokens,
                    .max_tokens = r->client.max_tokens,
                    .priority = r->client.priority,
                    .prefill_worker = running ? r->prefill_worker : "",
                    .decode_worker = running ? r->decode_worker : ""});
  }
  return list;
}

void Conductor::OnTimers() {
  const absl::Time now = clock_->Now();
  while (!timers_.empty() && timers_.begin()->first <= now) {
    Request& r = *requests_.at(timers_.begin()->second);
    timers_.erase(timers_.begin());
    r.timer = absl::InfiniteFuture();
    OnTimer(r, now);
  }
}

void Conductor::OnTimer(Request& r, absl::Time now) {
  if (now >= r.deadline) {
    return StopRequest(
        r, {End::Reason::kError, absl::DeadlineExceededError(
                                     absl::StrCat("the request ran longer than its deadline of ",
                                                  absl::FormatDuration(r.deadline - r.arrival)))});
  }
  if (r.attempts.phase() == RequestAttempts::Phase::kRunning) return Settle(r);
  if (now >= r.waiting_since + options_.outage_wait) {
    if (workers_.Ready(pb::ROLE_DECODE) == 0) {
      return StopRequest(
          r, {End::Reason::kError,
              absl::UnavailableError(absl::StrCat("no decode worker was there for ",
                                                  absl::FormatDuration(options_.outage_wait)))});
    }
    r.waiting_since = now;
  }
  Settle(r);
}

Conductor::Place Conductor::PlaceOf(const Request& r) {
  return {r.client.priority, r.attempts.attempt() == 0, r.deadline, r.number};
}

void Conductor::EnterLine(const Request& r) {
  waiting_.insert(PlaceOf(r));
  if (r.attempts.attempt() == 0) arrivals_.insert({r.client.priority, r.number});
}

void Conductor::LeaveLine(const Request& r) {
  waiting_.erase(PlaceOf(r));
  arrivals_.erase({r.client.priority, r.number});
}

// Of one priority those first whose answers have begun, then the others: in order, or, where the
// queue has become longer than anybody likes to wait, the newest first. In order all would come too
// late then, one after the other; from the end those are served in time that can be, and the rest
// when the load goes down.
std::vector<uint64_t> Conductor::NextInLine(absl::Time now) const {
  std::vector<uint64_t> line;
  const auto add = [&](uint64_t number) {
    if (requests_.at(number)->attempts.wake() <= now) line.push_back(number);
  };
  for (auto begin = waiting_.begin(); begin != waiting_.end() && line.size() < kLineMax;) {
    const auto [priority, fresh, deadline, number] = *begin;
    const auto end = waiting_.upper_bound({priority, fresh, absl::InfiniteFuture(), UINT64_MAX});
    const auto oldest = fresh ? arrivals_.lower_bound({priority, 0}) : arrivals_.end();
    if (fresh && now - requests_.at(oldest->second)->arrival > kLongWait) {
      auto it = arrivals_.upper_bound({priority, UINT64_MAX});
      while (it != oldest && line.size() < kLineMax) add((--it)->second);
    } else {
      for (auto it = begin; it != end && line.size() < kLineMax; ++it) add(std::get<3>(*it));
    }
    begin = end;
  }
  return line;
}

// One that finds no room holds back those behind it, so that a large one is not passed forever.
void Conductor::Dispatch() {
  std::vector<uint64_t> line;
  do {
    line = NextInLine(clock_->Now());
    for (const uint64_t number : line) {
      Request& r = *requests_.at(number);
      const std::map<WorkerId, int> prefix = PrefixesOf(r);
      const std::optional<Route> route =
          workers_.Choose(options_.disaggregate, {.tokens = r.tokens(),
                                                  .priority = r.client.priority,
                                                  .may_hand_off = r.attempts.may_hand_off(),
                                                  .avoid = &r.attempts.avoid(),
                                                  .prefix_tokens = &prefix});
      if (!route) return;
      StartAttempt(r, *route);
    }
  } while (line.size() == kLineMax);
}

}  // namespace switchyard
