// router/attempt.h: the life of one request over its attempts, as a pure state machine: what
// workers say goes in, tokens in order, aborts and the end come out. Not thread-safe; no I/O, no
// clock.
//
//   kWaiting ──Start──► kRunning ──token stream complete, refused for good, or Stop──► kEnded
//       ▲                   │ worker lost, or an error that another worker may not have
//       └──────backoff──────┘
//
// An attempt runs on a decode worker D alone, or on D with a prefill worker P. With P the attempt's
// first token comes from P and the later ones from D; the two streams may overtake each other, so
// D's tokens wait for P's. Attempt k+1 replays prompt + generated(): the tokens that are accepted
// are never taken back, and because a token depends on its history alone, the continuation is the
// one that the lost worker would have sent.
#pragma once

#include <cstdint>
#include <deque>
#include <optional>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "cluster/worker_id.h"
#include "common/ids.h"
#include "kernels/sample.h"

namespace switchyard {

// Where one attempt runs. Without prefill, decode computes the prompt itself.
struct Route {
  WorkerId decode;
  std::optional<WorkerId> prefill;
  friend bool operator==(const Route&, const Route&) = default;
};

struct AttemptLimits {
  int attempts_max = 5;  // in a row that ended in a fault without a new token
  // After so many of them decode computes the prompt itself. Where the network comes back piece by
  // piece, that works as soon as the router reaches one decode worker.
  int hand_off_faults_max = 2;
  int refusals_max = 32;  // kResourceExhausted: nothing is broken, the worker was full
  absl::Duration backoff_min = absl::Milliseconds(50);
  absl::Duration backoff_max = absl::Seconds(2);
};

// One AttemptEvent of cluster.proto.
struct WorkerEvent {
  enum class Finish { kNone, kStop, kLength, kError };
  int attempt = 0;
  int64_t index = 0;
  std::optional<SampledToken> token;
  Finish finish = Finish::kNone;
  absl::Status error;
  absl::Duration retry_after;  // the worker's advice
  std::vector<SampledToken> prompt_logprobs;
  int cached_tokens = 0;
  bool handed_off = false;
  uint64_t kv_bytes_moved = 0;
  std::string kv_lane;
};

class RequestAttempts {
 public:
  enum class Phase { kWaiting, kRunning, kEnded };
  struct End {
    enum class Reason { kStop, kLength, kAborted, kError } reason;
    absl::Status error;  // if kError
  };
  struct Abort {
    WorkerId worker;
    int attempt;
  };
  // What the owner must do, in this order.
  struct Effects {
    std::vector<Abort> aborts;
    std::vector<SampledToken> tokens;  // accepted, in order
    bool last_token_stops = false;     // the last of them is an end of sequence or a stop token
    std::vector<SampledToken> prompt_logprobs;
    std::vector<WorkerId> faults;  // who may be to blame for the attempt's failure
    int cached_tokens = 0;         // with the first token: of the prompt
    std::optional<End> end;
  };

  // `rng` (for jitter) must outlive it. max_tokens >= 1.
  RequestAttempts(int max_tokens, const AttemptLimits& limits, std::mt19937_64* rng);

  Phase phase() const { return phase_; }
  int attempt() const { return attempt_; }  // of kRunning; how many there were
  const Route& route() const { return route_; }
  const std::vector<TokenId>& generated() const { return generated_; }
  // Workers that failed this request: no prefill worker of them again, a decode worker only if
  // there is no other.
  const std::set<WorkerId>& avoid() const { return avoid_; }
  // Whether the next attempt may have a prefill worker.
  bool may_hand_off() const { return faults_ < limits_.hand_off_faults_max; }
  uint64_t kv_bytes_moved() const { return kv_bytes_moved_; }
  const std::string& kv_lane() const { return kv_lane_; }
  // When Start may be called; InfiniteFuture unless kWaiting.
  absl::Time wake() const { return wake_; }

  // kWaiting only. Returns the number of the attempt that the owner now submits to the workers.
  int Start(const Route& route);
  // Events of other attempts and other workers, and repeats, have no effect.
  Effects OnEvent(absl::Time now, WorkerId from, WorkerEvent event);
  Effects OnWorkerLost(absl::Time now, WorkerId worker, const absl::Status& why);
  // Ends the request for a reason of the router's own: stop string, abort, deadline.
  Effects Stop(End end);

 private:
  void Accept(WorkerEvent event, Effects* effects);
  void TakeAccount(const WorkerEvent& event);
  void OnPrefillEvent(absl::Time now, WorkerEvent event, Effects* effects);
  void OnDecodeEvent(absl::Time now, WorkerEvent event, Effects* effects);
  void Finish(End end, Effects* effects);
  void FinishByWorker(End end, Effects* effects);
  void Fail(absl::Time now, std::initializer_list<WorkerId> culprits, const absl::Status& why,
            Effects* effects, absl::Duration retry_after = absl::ZeroDuration());
  void AbortAll(Effects* effects);
  absl::Duration Backoff(int n);

  const int max_tokens_;
  const AttemptLimits limits_;
  std::mt19937_64* const rng_;

  Phase phase_ = Phase::kWaiting;
  int attempt_ = 0, faults_ = 0, refusals_ = 0;
  Route route_;
  std::vector<TokenId> generated_;
  std::set<WorkerId> avoid_;
  absl::Time wake_ = absl::InfinitePast();
  uint64_t kv_bytes_moved_ = 0;
  std::string kv_lane_;

  // Of the attempt that runs:
  bool first_taken_ = false;      // remote: P's token has come
  bool prefill_done_ = false;     // P has handed off, or is gone and not needed any more
  int64_t decode_next_ = 0;       // index that D must send next
  int64_t decode_first_ = 0;      // index of D's first token
  std::deque<WorkerEvent> held_;  // D's, until P's token; at most max_tokens + 1
};

}  // namespace switchyard
