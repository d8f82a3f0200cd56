// router/worker_pool.h: the workers of a router: their streams, which of them are alive, and what
// the router has given them to do. No I/O: it is told what the streams hear, and speaks through
// WorkerLinks. Owned by the core's thread.
#pragma once

#include <functional>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "cluster/membership.h"
#include "cluster/worker_id.h"
#include "common/clock.h"
#include "common/telemetry/log.h"
#include "router/breaker.h"
#include "router/policy.h"
#include "router/router.h"

namespace switchyard {

// The streams to the workers, by slot: a number for each address, never used again.
class WorkerLinks {
 public:
  virtual ~WorkerLinks() = default;
  // Dials the address from now on, again and again, until Forget.
  virtual void Dial(size_t slot, const std::string& address) = 0;
  virtual void Forget(size_t slot) = 0;
  // Queues one message; never blocks. False if that stream is over, or ends because the worker does
  // not read: its OnLost follows.
  virtual bool Send(size_t slot, StreamId stream, cluster::v1::ToWorker message) = 0;
  // Ends that stream, if it is still the current one. It is dialled anew.
  virtual void Cancel(size_t slot, StreamId stream) = 0;
};

// What workers count up.
struct WorkerCounts {
  uint64_t preemptions = 0, prefix_queries = 0, prefix_hits = 0;
};

// Called on the core's thread.
struct WorkerPoolEvents {
  std::function<void(WorkerId, const cluster::v1::StepEvents&)> events;
  std::function<void(WorkerId, const absl::Status&)> lost;
  std::function<void()> changed;                     // a worker came, or reported its load
  std::function<void(const WorkerCounts&)> counted;  // so many more
};

class WorkerPool {
 public:
  // All must outlive the pool.
  WorkerPool(const MembershipOptions& membership, WorkerPoolEvents events, WorkerLinks* links,
             const Clock* clock, Logger* log);

  // All addresses of a role, as discovery knows them now. New ones are dialled. One that is missing
  // is forgotten once its stream has ended: a name server that forgets a living worker costs no
  // request.
  void SetAddresses(cluster::v1::Role role, const std::vector<std::string>& addresses);
  int Addresses(cluster::v1::Role role) const;

  // What a slot's stream hears, in its order: registered, then events and heartbeats, then lost.
  void OnRegistered(size_t slot, StreamId stream, const cluster::v1::Registration& registration);
  void OnEvents(size_t slot, StreamId stream, const cluster::v1::StepEvents& events);
  void OnHeartbeat(size_t slot, StreamId stream, const cluster::v1::Heartbeat& heartbeat);
  void OnLost(size_t slot, StreamId stream, const absl::Status& why);

  // False if the worker is gone or does not read: `lost` follows, or has come.
  bool Send(WorkerId worker, cluster::v1::ToWorker message);
  // Ends the registrations whose time is up, and reports them lost.
  void Tick();

  const Member* Find(WorkerId worker) const { return membership_.Find(worker); }
  const Membership& membership() const { return membership_; }
  // Workers of that role that take requests.
  int Ready(cluster::v1::Role role) const;
  double KvUsage() const;  // of the decode workers
  std::vector<WorkerStatus> Status() const;

  // What the attempts there tell: something came from it; it may be to blame for a failure.
  void Succeeded(WorkerId worker);
  void Failed(WorkerId worker);

  // What one attempt of `request` takes, from Assign until Release.
  std::optional<Route> Choose(Disaggregate mode, const RouteRequest& request) const;
  void Assign(uint64_t request, const Route& route, int64_t tokens, int priority);
  void FirstToken(uint64_t request, const Route& route);   // its blocks show in the next heartbeat
  void Served(uint64_t request, WorkerId decode);          // a token came from there
  void PrefillDone(uint64_t request, const Route& route);  // P has handed off
  // `tokens`: prompt and generated ones, whose blocks are free now.
  void Release(uint64_t request, const Route& route, int64_t tokens);

 private:
  struct Slot {
    std::string address;
    cluster::v1::Role role;
    StreamId stream;
    std::optional<WorkerId> id;
    bool listed = true;  // by discovery
    std::string last_refusal;
    Breaker breaker;
  };
  struct Promise {
    int64_t blocks;
    bool settled;  // the next heartbeat counts them
  };
  // What the router knows of a worker beyond its heartbeat.
  struct Load {
    size_t slot = 0;
    int block_tokens = 1;
    struct Attempt {
      int priority;
      int64_t tokens, blocks;  // when it was sent there; it has grown since
    };
    std::map<uint64_t, Attempt> running;  // by request
    std::set<uint64_t> unserved;          // requests without a token from there
    int64_t queued_tokens = 0;
    std::map<uint64_t, int64_t> queued;    // by request
    std::map<uint64_t, Promise> promised;  // by request
    int64_t freed_blocks = 0;              // since the last heartbeat
  };

  void ForgetUnlisted();
  Slot* SlotOf(size_t slot, StreamId stream);  // null: not the current stream of a known slot
  Load* LoadOf(WorkerId worker);
  bool Trusted(const Member& member) const;
  std::vector<PrefillView> PrefillViews() const;
  std::vector<DecodeView> DecodeViews(int priority) const;  // as a request of it sees them

  const WorkerPoolEvents events_;
  WorkerLinks* const links_;
  const Clock* const clock_;
  Logger* const log_;
  Membership membership_;
  std::map<WorkerId, Load> loads_;
  size_t next_slot_ = 0;
  std::map<size_t, Slot> slots_;
};

}  // namespace switchyard
