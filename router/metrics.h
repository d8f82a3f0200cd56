// router/metrics.h: what the router's /metrics shows: vLLM's names under switchyard_, all series
// from the start.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "router/router.h"

namespace switchyard {

// A request's times, each since its arrival; infinite: it did not get there.
struct RequestTimes {
  absl::Duration dispatched = absl::InfiniteDuration();  // its first attempt began
  absl::Duration first_token = absl::InfiniteDuration();
  absl::Duration last_token = absl::InfiniteDuration();
  absl::Duration end;
};

// Why a request was not taken at all.
enum class Refusal {
  kFull,      // as many requests as there may be
  kLate,      // its first token would come too late
  kDraining,  // the router ends
  kNotReady,  // no decode rank has come yet
};

// Thread-safe.
class RouterMetrics {
 public:
  explicit RouterMetrics(const std::string& model_name);
  ~RouterMetrics();

  void SetRequests(int running, int waiting);
  void SetWorkers(int prefill_alive, int decode_alive);
  void SetKvUsage(double fraction);  // of the decode workers' blocks
  void SetKvBlocks(const std::vector<WorkerStatus>& workers);
  void FirstToken(int prompt_tokens, absl::Duration ttft);
  // `count` tokens that came together, `since` after the ones before.
  void LaterTokens(int count, absl::Duration since);
  void GeneratedTokens(int count);
  void Ended(const ClientUpdate& end, const RequestTimes& times, int max_tokens);
  void Refused(Refusal why) const;
  void Retry();
  void Preemptions(uint64_t count);
  void PrefixCache(uint64_t queries, uint64_t hits);  // tokens
  std::string Text(uint64_t spans_lost = 0) const;

 private:
  struct Series;
  std::unique_ptr<Series> series_;
};

}  // namespace switchyard
