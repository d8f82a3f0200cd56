#include "router/core.h"

#include <algorithm>
#include <array>
#include <future>
#include <map>
#include <utility>

#include "absl/strings/str_cat.h"
#include "cluster/convert.h"
#include "cluster/worker_client.h"
#include "common/status_macros.h"
#include "router/validate.h"

namespace switchyard {
namespace {

namespace pb = cluster::v1;
constexpr size_t kMailboxMax = 1 << 14;
// Most answers end before max_tokens.
constexpr int kAnswerCostMax = 256;
constexpr absl::Duration kTick = absl::Milliseconds(50);  // leases are checked at least so often

constexpr absl::Duration kLookupEvery = absl::Seconds(1);  // of names
constexpr auto kStopPoll = std::chrono::milliseconds(20);
// What a refused client is told.
constexpr absl::Duration kRetryAfterMin = absl::Seconds(1), kRetryAfterMax = absl::Seconds(60);

// An address under both roles is refused like one that is listed twice.
absl::Status CheckDistinct(const CoreOptions& options) {
  std::vector<std::string> all = options.prefill_addresses;
  all.insert(all.end(), options.decode_addresses.begin(), options.decode_addresses.end());
  return Discovery::Create(all).status();
}

}  // namespace

// The streams, each with a thread that dials and reads. What they hear becomes work of the core's.
// Used by the core's thread only, but for Bury.
class Core::Links final : public WorkerLinks {
 public:
  explicit Links(Core* core) : core_(*core) {}
  void Dial(size_t slot, const std::string& address) override {
    clients_[slot] = std::make_unique<WorkerClient>(
        address, core_.router_id_, CallbacksFor(slot, address), core_.options_.worker_tls);
  }
  // The client's end waits for its thread, which may wait for the core's.
  void Forget(size_t slot) override {
    MutexLock lock(mu_);
    forgotten_.push_back(std::move(clients_.extract(slot).mapped()));
  }
  // On any other thread than the core's.
  void Bury() {
    std::vector<std::unique_ptr<WorkerClient>> buried;
    MutexLock lock(mu_);
    buried.swap(forgotten_);
  }
  bool Send(size_t slot, StreamId stream, pb::ToWorker message) override {
    return clients_.at(slot)->Send(stream, std::move(message));
  }
  void Cancel(size_t slot, StreamId stream) override { clients_.at(slot)->Cancel(stream); }

 private:
  WorkerClientCallbacks CallbacksFor(size_t slot, const std::string& address) {
    const auto post = [this](auto work) {
      core_.Post([this, work = std::move(work)] { work(core_.conductor_->workers()); });
    };
    return {
        .registered =
            [=](StreamId stream, const pb::Registration& r) {
              post([=](WorkerPool& workers) { workers.OnRegistered(slot, stream, r); });
            },
        .events =
            [=](StreamId stream, std::shared_ptr<const pb::StepEvents> events) {
              post([=](WorkerPool& workers) { workers.OnEvents(slot, stream, *events); });
            },
        .heartbeat =
            [=](StreamId stream, const pb::Heartbeat& h) {
              post([=](WorkerPool& workers) { workers.OnHeartbeat(slot, stream, h); });
            },
        .lost =
            [=](StreamId stream, const absl::Status& why) {
              post([=](WorkerPool& workers) { workers.OnLost(slot, stream, why); });
            },
        .away =
            [this, address](const absl::Status& why) {
              core_.log_->Info("worker is away", {{"address", address}, {"why", why.message()}});
            },
    };
  }

  Core& core_;
  std::map<size_t, std::unique_ptr<WorkerClient>> clients_;
  Mutex mu_;
  std::vector<std::unique_ptr<WorkerClient>> forgotten_ ABSL_GUARDED_BY(mu_);
};

absl::StatusOr<std::unique_ptr<Core>> Core::Create(CoreOptions options, const Clock* clock,
                                                   Logger* log) {
  if (options.decode_addresses.empty()) {
    return absl::InvalidArgumentError("decode: at least 1 worker address wanted, got 0");
  }
  RETURN_IF_ERROR(CheckDistinct(options));
  ASSIGN_OR_RETURN(Discovery prefill, Discovery::Create(options.prefill_addresses));
  ASSIGN_OR_RETURN(Discovery decode, Discovery::Create(options.decode_addresses));
  return std::unique_ptr<Core>(
      new Core(std::move(options), std::move(prefill), std::move(decode), clock, log));
}

Core::Core(CoreOptions options, Discovery prefill, Discovery decode, const Clock* clock,
           Logger* log)
    : options_(std::move(options)),
      names_(std::make_shared<Names>(Names{std::move(prefill), std::move(decode)})),
      clock_(clock),
      log_(log),
      router_id_(absl::StrCat(absl::Hex(std::mt19937_64(options_.seed)(), absl::kZeroPad16))),
      metrics_(options_.model.id),
      configured_model_(std::make_unique<ModelDescription>(options_.model)),
      model_(configured_model_.get()),
      mailbox_(kMailboxMax) {
  {
    MutexLock lock(mu_);
    shared_.rng.seed(options_.seed ^ 2);
    shared_.status.not_ready_because = "no decode worker has registered yet";
  }
  links_ = std::make_unique<Links>(this);
  conductor_ = std::make_unique<Conductor>(
      &options_, router_id_,
      Conductor::Outside{.links = links_.get(),
                         .clock = clock_,
                         .log = log_,
                         .metrics = &metrics_,
                         .spans = options_.spans,
                         .first_token = [this](const std::string& id) { OnFirstToken(id); },
                         .ended =
                             [this](const std::string& id) {
                               MutexLock lock(mu_);
                               Forget(id);
                             }});
  Discover();
  thread_ = std::thread([this] { Run(); });
  if (names_->change()) {
    discovery_ = std::thread([this] {
      while (!stopping_.WaitForNotificationWithTimeout(kLookupEvery)) {
        Discover();
        links_->Bury();
      }
    });
  }
}

// A name server that does not answer must not hold up the router's end: the thread that asks it is
// left to itself then.
void Core::Discover() {
  using Lists = std::array<std::vector<std::string>, 2>;
  std::promise<Lists> promise;
  std::future<Lists> lists = promise.get_future();
  auto ask = [names = names_, promise = std::move(promise)]() mutable {
    promise.set_value({names->prefill.Resolve(), names->decode.Resolve()});
  };
  if (names_->change()) {
    std::thread(std::move(ask)).detach();
  } else {
    ask();
  }
  while (lists.wait_for(kStopPoll) != std::future_status::ready) {
    if (stop_) return;
  }
  Post([this, lists = lists.get()] {
    conductor_->workers().SetAddresses(pb::ROLE_PREFILL, lists[0]);
    conductor_->workers().SetAddresses(pb::ROLE_DECODE, lists[1]);
  });
}

Core::~Core() {
  stop_ = true;
  stopping_.Notify();
  mailbox_.Close();
  thread_.join();
  if (discovery_.joinable()) discovery_.join();
  links_.reset();  // joins its threads
}

void Core::Post(std::function<void()> work) {
  while (!stop_ && !mailbox_.Post(work)) std::this_thread::sleep_for(std::chrono::milliseconds(1));
}

absl::Status Core::Admit(int priority, absl::Duration deadline) const {
  if (shared_.draining) {
    metrics_.Refused(Refusal::kDraining);
    return absl::UnavailableError("the router is draining");
  }
  // A cluster that was up waits for workers to come back; one that never was has no time to give.
  if (!shared_.was_ready) {
    metrics_.Refused(Refusal::kNotReady);
    return absl::UnavailableError(shared_.status.not_ready_because);
  }
  const auto refuse = [this](Refusal reason, const std::string& why, absl::Duration after) {
    metrics_.Refused(reason);
    absl::Status status = absl::ResourceExhaustedError(absl::StrCat(why, "; retry later"));
    SetRetryAfter(std::clamp(after, kRetryAfterMin, kRetryAfterMax), &status);
    return status;
  };
  const absl::Duration wait = shared_.backlog.Wait(priority);
  if (shared_.ids.size() >= static_cast<size_t>(options_.limits.requests_max)) {
    return refuse(Refusal::kFull,
                  absl::StrCat("requests: ", shared_.ids.size(), " running and waiting, limit ",
                               options_.limits.requests_max),
                  wait);
  }
  // Half of a deadline is left for the answer.
  const absl::Duration limit = deadline < absl::InfiniteDuration()
                                   ? std::min(deadline, options_.limits.deadline) / 2
                                   : options_.limits.queue_wait;
  if (wait <= limit) return absl::OkStatus();
  return refuse(Refusal::kLate,
                absl::StrCat("the first token would come after ",
                             absl::FormatDuration(absl::Trunc(wait, absl::Milliseconds(100))),
                             ", limit ", absl::FormatDuration(limit)),
                wait - limit);
}

void Core::Forget(const std::string& id) {
  const auto it = shared_.ids.find(id);
  if (it == shared_.ids.end()) return;
  if (it->second.waits) shared_.backlog.Drop(it->second.priority, it->second.cost);
  shared_.ids.erase(it);
}

void Core::OnFirstToken(const std::string& id) {
  MutexLock lock(mu_);
  const auto it = shared_.ids.find(id);
  if (it == shared_.ids.end() || !std::exchange(it->second.waits, false)) return;
  shared_.backlog.Served(it->second.priority, it->second.cost, clock_->Now());
}

absl::StatusOr<std::string> Core::Submit(ClientRequest request, Sink sink) {
  RETURN_IF_ERROR(
      ValidateRequest(model(), options_.limits, options_.tokenizer != nullptr, &request));
  std::string id = request.request_id;
  const int64_t cost = static_cast<int64_t>(request.prompt_ids.size()) +
                       std::min(request.max_tokens, kAnswerCostMax);
  // Until it is posted: who finds the id and aborts it must come after it.
  MutexLock lock(mu_);
  RETURN_IF_ERROR(Admit(request.priority, request.deadline));
  const uint64_t number = shared_.next_number++;
  if (id.empty()) id = absl::StrCat(router_id_, "-", number);
  if (!shared_.ids.emplace(id, Entry{number, request.priority, cost}).second) {
    return absl::AlreadyExistsError(absl::StrCat("request_id ", id, " is in use"));
  }
  shared_.backlog.Add(request.priority, cost, clock_->Now());
  if (!request.seed_given) request.sampling.seed = shared_.rng();
  // Shared, because the mailbox copies what it may have to refuse.
  auto shared =
      std::make_shared<std::pair<ClientRequest, Sink>>(std::move(request), std::move(sink));
  const bool posted = mailbox_.Post([this, number, id, shared] {
    conductor_->Begin(number, id, std::move(shared->first), std::move(shared->second));
  });
  if (posted) return id;
  Forget(id);
  metrics_.Refused(Refusal::kFull);
  absl::Status full = absl::ResourceExhaustedError(absl::StrCat(
      "mailbox: ", kMailboxMax, " messages wait for the router, the limit; retry later"));
  SetRetryAfter(kRetryAfterMin, &full);
  return full;
}

bool Core::Abort(const std::string& request_id) {
  uint64_t number;
  {
    MutexLock lock(mu_);
    auto it = shared_.ids.find(request_id);
    if (it == shared_.ids.end()) return false;
    number = it->second.number;
  }
  if (std::this_thread::get_id() == thread_.get_id()) {
    aborts_.push_back(number);  // by a sink: the request may be in the middle of a step
  } else {
    Post([this, number] { conductor_->Abort(number); });
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

void Core::ListRequests(std::function<void(std::vector<RequestStatus>)> done) {
  Post([this, done = std::move(done)] { done(conductor_->List()); });
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

void Core::GiveUpAll() {
  Post([this] { conductor_->GiveUpAll(); });
}

void Core::WatchReady(std::function<void(bool)> watch) {
  MutexLock lock(mu_);
  shared_.watch = std::move(watch);
  if (shared_.watch) shared_.watch(shared_.status.ready);
}

void Core::Run() {
  while (!stop_) {
    const absl::Duration timeout =
        std::clamp(conductor_->next_timer() - clock_->Now(), absl::ZeroDuration(), kTick);
    for (const std::function<void()>& work : mailbox_.Take(timeout)) work();
    conductor_->SendUpdates();
    for (uint64_t number : std::exchange(aborts_, {})) conductor_->Abort(number);
    Pin();
    conductor_->Turn();
    PublishStatus();
  }
  for (const std::function<void()>& work : mailbox_.Take(absl::ZeroDuration())) work();
  conductor_->GiveUpAll();
}

// What the first worker pinned is the model's description from then on.
void Core::Pin() {
  const std::optional<pb::Registration>& pinned = conductor_->workers().membership().pinned();
  if (pinned_model_ != nullptr || !pinned) return;
  auto model = std::make_unique<ModelDescription>(*configured_model_);
  model->numerics_id = pinned->numerics_id();
  if (!options_.max_model_len_fixed) model->max_model_len = pinned->max_model_len();
  pinned_model_ = std::move(model);
  model_ = pinned_model_.get();
}

void Core::PublishStatus() {
  const int waiting = conductor_->waiting();
  const int running = conductor_->requests() - waiting;
  metrics_.SetRequests(running, waiting);
  MutexLock lock(mu_);
  shared_.status.running = running;
  shared_.status.waiting = waiting;
  if (!conductor_->TakeWorkersChanged()) return;
  const WorkerPool& workers = conductor_->workers();
  metrics_.SetWorkers(workers.membership().Alive(pb::ROLE_PREFILL),
                      workers.membership().Alive(pb::ROLE_DECODE));
  metrics_.SetKvUsage(workers.KvUsage());
  shared_.status.workers = workers.Status();
  metrics_.SetKvBlocks(shared_.status.workers);
  std::string why;
  if (shared_.draining) {
    why = "draining";
  } else if (workers.Ready(pb::ROLE_DECODE) == 0) {
    why = absl::StrCat("none of ", workers.Addresses(pb::ROLE_DECODE),
                       " decode workers is registered and takes requests");
  } else if (options_.disaggregate == Disaggregate::kAlways &&
             workers.Ready(pb::ROLE_PREFILL) == 0) {
    why = absl::StrCat("none of ", workers.Addresses(pb::ROLE_PREFILL),
                       " prefill workers is registered and takes requests");
  }
  SetReady(std::move(why));
}

}  // namespace switchyard
