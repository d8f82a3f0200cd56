#include "router/core.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "router/core_request.h"
#include "router/validate.h"

namespace switchyard {
namespace {

namespace pb = cluster::v1;
using End = RequestAttempts::End;
constexpr size_t kMailboxMax = 1 << 14;
constexpr absl::Duration kTick = absl::Milliseconds(50);  // leases are checked at least so often

absl::Status CheckAddresses(const CoreOptions& options) {
  if (options.decode_addresses.empty()) {
    return absl::InvalidArgumentError("decode: at least 1 worker address wanted, got 0");
  }
  std::set<std::string> seen;
  for (const auto* list : {&options.prefill_addresses, &options.decode_addresses}) {
    for (const std::string& address : *list) {
      if (!seen.insert(address).second) {
        return absl::InvalidArgumentError(
            absl::StrCat("worker address ", address, " is listed twice"));
      }
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::unique_ptr<Core>> Core::Create(CoreOptions options, const Clock* clock,
                                                   Logger* log) {
  RETURN_IF_ERROR(CheckAddresses(options));
  return std::unique_ptr<Core>(new Core(std::move(options), clock, log));
}

Core::Core(CoreOptions options, const Clock* clock, Logger* log)
    : options_(std::move(options)),
      clock_(clock),
      log_(log),
      router_id_(absl::StrCat(absl::Hex(std::mt19937_64(options_.seed)(), absl::kZeroPad16))),
      metrics_(options_.model.id),
      configured_model_(std::make_unique<ModelDescription>(options_.model)),
      model_(configured_model_.get()),
      mailbox_(kMailboxMax),
      jitter_(options_.seed ^ 1) {
  {
    MutexLock lock(mu_);
    shared_.rng.seed(options_.seed ^ 2);
    shared_.status.not_ready_because = "no decode worker has registered yet";
  }
  WorkerPoolOptions pool{
      .prefill_addresses = options_.prefill_addresses,
      .decode_addresses = options_.decode_addresses,
      .router_id = router_id_,
      .membership = {
          .lease = options_.lease,
          .vocab_size = options_.model.vocab_size,
          .max_model_len = options_.max_model_len_fixed ? options_.model.max_model_len : 0}};
  WorkerPoolEvents events{
      .events = [this](WorkerId w, pb::StepEvents e) { OnWorkerEvents(w, std::move(e)); },
      .lost = [this](WorkerId w, const absl::Status& why) { OnWorkerLost(w, why); },
      .changed =
          [this] {
            Pin();
            status_dirty_ = true;
          },
      .preemptions = [this](uint64_t n) { metrics_.Preemptions(n); }};
  pool_ = std::make_unique<WorkerPool>(std::move(pool), std::move(events), clock_, log_,
                                       [this](std::function<void()> work) { Post(work); });
  thread_ = std::thread([this] { Run(); });
}

Core::~Core() {
  stop_ = true;
  mailbox_.Close();
  thread_.join();
  pool_.reset();
}

void Core::Post(std::function<void()> work) {
  while (!stop_ && !mailbox_.Post(work)) std::this_thread::sleep_for(std::chrono::milliseconds(1));
}

absl::StatusOr<std::string> Core::Submit(ClientRequest request, Sink sink) {
  RETURN_IF_ERROR(
      ValidateRequest(model(), options_.limits, options_.tokenizer != nullptr, &request));
  uint64_t number;
  std::string id = request.request_id;
  {
    MutexLock lock(mu_);
    if (shared_.draining) return absl::UnavailableError("the router is draining");
    // A cluster that was up waits for workers to come back; one that never was has no time to give.
    if (!shared_.was_ready) return absl::UnavailableError(shared_.status.not_ready_because);
    if (shared_.ids.size() >= static_cast<size_t>(options_.limits.requests_max)) {
      return absl::ResourceExhaustedError(
          absl::StrCat("requests: ", shared_.ids.size(), " running and waiting, limit ",
                       options_.limits.requests_max, "; retry later"));
    }
    number = shared_.next_number++;
    if (id.empty()) id = absl::StrCat(router_id_, "-", number);
    if (!shared_.ids.emplace(id, number).second) {
      return absl::AlreadyExistsError(absl::StrCat("request_id ", id, " is in use"));
    }
    if (!request.seed_given) request.sampling.seed = shared_.rng();
  }
  // Shared, because the mailbox copies what it may have to refuse.
  auto shared =
      std::make_shared<std::pair<ClientRequest, Sink>>(std::move(request), std::move(sink));
  const bool posted = mailbox_.Post([this, number, id, shared] {
    Begin(number, id, std::move(shared->first), std::move(shared->second));
  });
  if (posted) return id;
  MutexLock lock(mu_);
  shared_.ids.erase(id);
  return absl::ResourceExhaustedError("the router's mailbox is full; retry later");
}

bool Core::Abort(const std::string& request_id) {
  uint64_t number;
  {
    MutexLock lock(mu_);
    auto it = shared_.ids.find(request_id);
    if (it == shared_.ids.end()) return false;
    number = it->second;
  }
  if (std::this_thread::get_id() == thread_.get_id()) {
    aborts_.push_back(number);  // by a sink: the request may be in the middle of a step
  } else {
    Post([this, number] { AbortRequest(number); });
  }
  return true;
}

RouterStatus Core::status() const {
  MutexLock lock(mu_);
  RouterStatus status = shared_.status;
  // Also those that the core's thread has not seen yet: a drain must not end before them.
  status.waiting = std::max(status.waiting, static_cast<int>(shared_.ids.size()) - status.running);
  return status;
}

void Core::StartDrain() {
  MutexLock lock(mu_);
  shared_.draining = true;
  SetReady("draining");
}

// Readiness, or why not; tells who watches.
void Core::SetReady(std::string why_not) {
  const bool changed = shared_.status.ready != why_not.empty();
  shared_.status.ready = why_not.empty();
  shared_.status.not_ready_because = std::move(why_not);
  shared_.was_ready |= shared_.status.ready;
  if (changed && shared_.watch) shared_.watch(shared_.status.ready);
}

void Core::AbortAll() {
  Post([this] { AbortRequests(); });
}

void Core::WatchReady(std::function<void(bool)> watch) {
  MutexLock lock(mu_);
  shared_.watch = std::move(watch);
  if (shared_.watch) shared_.watch(shared_.status.ready);
}

void Core::Run() {
  while (!stop_) {
    const absl::Time now = clock_->Now();
    const absl::Time next = timers_.empty() ? absl::InfiniteFuture() : timers_.begin()->first;
    const absl::Duration timeout = std::clamp(next - now, absl::ZeroDuration(), kTick);
    for (const std::function<void()>& work : mailbox_.Take(timeout)) work();
    for (uint64_t number : std::exchange(aborts_, {})) AbortRequest(number);
    pool_->Tick();
    OnTimers();
    Dispatch();
    PublishStatus();
  }
  for (const std::function<void()>& work : mailbox_.Take(absl::ZeroDuration())) work();
  AbortRequests();
}

void Core::StopRequest(Request& r, const End& end) { Apply(r, r.attempts.Stop(end)); }

void Core::AbortRequest(uint64_t number) {
  auto it = requests_.find(number);
  if (it != requests_.end()) StopRequest(*it->second, {End::Reason::kAborted, absl::OkStatus()});
}

void Core::AbortRequests() {
  while (!requests_.empty()) AbortRequest(requests_.begin()->first);
}

void Core::Begin(uint64_t number, std::string id, ClientRequest client, Sink sink) {
  auto request = std::make_unique<Request>(number, std::move(id),
                                           absl::StrCat(router_id_, "-", number), std::move(client),
                                           std::move(sink), options_, clock_->Now(), &jitter_);
  Request& r = *request;
  by_wire_id_[r.wire_id] = number;
  requests_[number] = std::move(request);
  Settle(r);
}

void Core::OnTimers() {
  const absl::Time now = clock_->Now();
  while (!timers_.empty() && timers_.begin()->first <= now) {
    Request& r = *requests_.at(timers_.begin()->second);
    timers_.erase(timers_.begin());
    r.timer = absl::InfiniteFuture();
    OnTimer(r, now);
  }
}

void Core::OnTimer(Request& r, absl::Time now) {
  if (now >= r.deadline) {
    return StopRequest(
        r, {End::Reason::kError, absl::DeadlineExceededError(
                                     absl::StrCat("the request ran longer than its deadline of ",
                                                  absl::FormatDuration(r.deadline - r.arrival)))});
  }
  if (r.attempts.phase() == RequestAttempts::Phase::kRunning) return Settle(r);
  if (now >= r.waiting_since + options_.outage_wait) {
    if (pool_->DecodeReady() == 0) {
      return StopRequest(
          r, {End::Reason::kError,
              absl::UnavailableError(absl::StrCat("no decode worker was there for ",
                                                  absl::FormatDuration(options_.outage_wait)))});
    }
    r.waiting_since = now;
  }
  Settle(r);
}

// Requests go in order of priority and arrival; one that finds no room holds back those behind it,
// so that a large one is not passed forever.
void Core::Dispatch() {
  const absl::Time now = clock_->Now();
  for (auto it = waiting_.begin(); it != waiting_.end();) {
    Request& r = *requests_.at(it->second);
    if (r.attempts.wake() > now) {
      ++it;
      continue;
    }
    const std::optional<Route> route =
        pool_->Choose(options_.disaggregate, {.tokens = r.tokens(), .avoid = &r.attempts.avoid()});
    if (!route) return;
    ++it;
    StartAttempt(r, *route);
  }
}

// What the first worker pinned is the model's description from then on.
void Core::Pin() {
  const std::optional<pb::Registration>& pinned = pool_->membership().pinned();
  if (pinned_model_ != nullptr || !pinned) return;
  auto model = std::make_unique<ModelDescription>(*configured_model_);
  model->numerics_id = pinned->numerics_id();
  if (!options_.max_model_len_fixed) model->max_model_len = pinned->max_model_len();
  pinned_model_ = std::move(model);
  model_ = pinned_model_.get();
}

void Core::PublishStatus() {
  const int waiting = static_cast<int>(waiting_.size());
  const int running = static_cast<int>(requests_.size()) - waiting;
  metrics_.SetRequests(running, waiting);
  MutexLock lock(mu_);
  shared_.status.running = running;
  shared_.status.waiting = waiting;
  if (!std::exchange(status_dirty_, false)) return;
  const int prefill = pool_->PrefillAlive(), decode = pool_->DecodeReady();
  metrics_.SetWorkers(prefill, pool_->membership().Alive(pb::ROLE_DECODE));
  metrics_.SetKvUsage(pool_->KvUsage());
  shared_.status.workers = pool_->Status();
  metrics_.SetKvBlocks(shared_.status.workers);
  std::string why;
  if (shared_.draining) {
    why = "draining";
  } else if (decode == 0) {
    why = absl::StrCat("none of ", options_.decode_addresses.size(),
                       " decode workers is registered and takes requests");
  } else if (options_.disaggregate == Disaggregate::kAlways && prefill == 0) {
    why = absl::StrCat("none of ", options_.prefill_addresses.size(),
                       " prefill workers is registered");
  }
  SetReady(std::move(why));
}

}  // namespace switchyard
