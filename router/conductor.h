// router/conductor.h: everything that a router decides about its requests: who computes which
// attempt, when it is tried again, what the client is told and when it ends. Not thread-safe: one
// thread owns it. No thread, socket or wall clock inside: workers are reached through WorkerLinks
// and heard through workers(), time is the injected clock's.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <random>
#include <set>
#include <string>
#include <tuple>
#include <unordered_map>
#include <vector>

#include "common/clock.h"
#include "common/net/tls.h"
#include "common/telemetry/log.h"
#include "router/attempt.h"
#include "router/metrics.h"
#include "router/prefix_map.h"
#include "router/router.h"
#include "router/worker_pool.h"

namespace switchyard {

struct CoreOptions {
  ModelDescription
      model;  // numerics_id and, unless it is fixed, max_model_len come from the workers
  bool max_model_len_fixed = false;
  const Tokenizer* tokenizer = nullptr;  // must outlive the core
  // As discovery.h: host:port or dns:name:port. For the owner: it tells workers() what they are.
  std::vector<std::string> prefill_addresses, decode_addresses;
  Disaggregate disaggregate = Disaggregate::kAuto;
  RouterLimits limits;
  AttemptLimits attempts;
  // How long a request waits while no decode worker is alive.
  absl::Duration outage_wait = absl::Seconds(60);
  absl::Duration lease = absl::Seconds(3);  // of a silent worker
  // Tokens of an answer's update; less with its first token and its end.
  int stream_interval = 1;
  uint64_t seed = 0;           // of ids, absent sampling seeds and jitter
  TlsOptions worker_tls = {};  // of the streams to workers
  SpanSink* spans = nullptr;   // must outlive the core; null: nothing is traced
};

class Conductor {
 public:
  using Sink = RouterCore::Sink;
  struct Outside {
    WorkerLinks* links = nullptr;
    const Clock* clock = nullptr;
    Logger* log = nullptr;
    RouterMetrics* metrics = nullptr;
    SpanSink* spans = nullptr;  // may be null
    std::function<void(const std::string& id)> first_token = [](const std::string&) {};
    std::function<void(const std::string& id)> ended;  // the request is over, its id free again
  };

  // `options` and what `outside` points to must outlive it. `router_id`: unique over routers.
  Conductor(const CoreOptions* options, std::string router_id, Outside outside);
  ~Conductor();
  Conductor(const Conductor&) = delete;

  // A checked request under a new number; its sink is called until it ends.
  void Begin(uint64_t number, std::string id, ClientRequest client, Sink sink);
  // Ends it with kAbort; unknown numbers are ignored. Not to be called by a sink: the request may
  // be in the middle of a step.
  void Abort(uint64_t number);
  void GiveUpAll();  // ends all with kUnavailable: clients may try another router
  // Sends the tokens that have come, those of one answer as one update.
  void SendUpdates();
  // Does what is due: the same, leases, deadlines, requests that wait for a worker. After every
  // event, or several if they come faster than they are dealt with, and at next_timer() at the
  // latest.
  void Turn();
  absl::Time next_timer() const {
    return timers_.empty() ? absl::InfiniteFuture() : timers_.begin()->first;
  }

  // What the links hear goes in here.
  WorkerPool& workers() { return workers_; }
  const WorkerPool& workers() const { return workers_; }
  // Whether a worker came, went or reported since the last call.
  bool TakeWorkersChanged() { return std::exchange(workers_changed_, false); }
  std::vector<RequestStatus> List() const;
  int requests() const { return static_cast<int>(requests_.size()); }
  int waiting() const { return static_cast<int>(waiting_.size()); }

 private:
  struct Request;

  const ModelDescription& model() const { return options_.model; }
  WorkerPoolEvents MakePoolEvents();
  void OnWorkerEvents(WorkerId worker, const cluster::v1::StepEvents& events);
  void OnWorkerLost(WorkerId worker, const absl::Status& why);
  void OnTimers();
  void OnTimer(Request& r, absl::Time now);
  void Dispatch();
  std::vector<uint64_t> NextInLine(absl::Time now) const;
  std::map<WorkerId, int> PrefixesOf(Request& r);  // tokens of it that workers have
  PrefixMap::Chain ChainOf(const Request& r) const;
  void StartAttempt(Request& r, const Route& route);
  cluster::v1::Submit SubmitFor(const Request& r, const Route& route, bool to_prefill) const;
  // Does what the effects say; `r` may be gone afterwards.
  void Apply(Request& r, RequestAttempts::Effects effects);
  void TakeTokens(Request& r, RequestAttempts::Effects* effects, ClientUpdate* update);
  void FillEnd(Request& r, const RequestAttempts::End& end, ClientUpdate* update);
  void StopRequest(Request& r, const RequestAttempts::End& end);
  void Settle(Request& r);  // after a step of its attempts: load, waiting list, timer
  void Erase(Request& r);

  const CoreOptions& options_;
  const std::string router_id_;
  const Outside outside_;
  const Clock* const clock_;
  std::mt19937_64 jitter_;
  WorkerPool workers_;
  PrefixMap prefixes_;
  bool workers_changed_ = true;
  std::map<uint64_t, std::unique_ptr<Request>> requests_;
  std::unordered_map<std::string, Request*> by_wire_id_;
  // By priority; who has begun already and lost its workers; deadline (who has little time goes
  // before who has much, and waiting makes it less); arrival. But see NextInLine.
  using Place = std::tuple<int, bool, absl::Time, uint64_t>;
  static Place PlaceOf(const Request& r);
  void EnterLine(const Request& r);
  void LeaveLine(const Request& r);
  std::set<Place> waiting_;
  std::set<std::pair<int, uint64_t>> arrivals_;       // those of waiting_ that have not begun
  std::set<std::pair<absl::Time, uint64_t>> timers_;  // one per request
  std::vector<uint64_t> unsent_;  // requests with an update for the end of the turn
};

}  // namespace switchyard
