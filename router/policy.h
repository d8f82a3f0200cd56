// router/policy.h: where a request runs. Pure functions of what the router knows; ties go to the
// lowest id, so that the same knowledge gives the same choice.
#pragma once

#include <map>
#include <optional>
#include <set>
#include <vector>

#include "cluster/worker_id.h"
#include "router/attempt.h"
#include "router/router.h"

namespace switchyard {

// Cost rule of Disaggregate::kAuto. A prompt of n tokens delays the decode batch that it is mixed
// into by about n token times (those that decode has in its cache aside), once; a hand-off costs a
// reservation, a commit and their round trips, whatever n is. Below this length the delay is the
// cheaper one.
inline constexpr int kHandOffPaysFromTokens = 64;

// A worker as the router sees it: its last heartbeat, and what was sent to it since.
struct PrefillView {
  WorkerId id;
  bool draining = false;
  bool trusted = true;        // its breaker allows an attempt
  int64_t queued_tokens = 0;  // of prompts sent to it whose hand-off has not ended
};
struct DecodeView {
  WorkerId id;
  bool draining = false;
  bool trusted = true;
  bool takes_handoffs = true;  // has a Handoff service
  int running = 0;             // attempts that the router has there
  int unserved = 0;  // of these, such as have no token from there yet and are no less urgent
  int64_t unserved_tokens = 0;  // theirs
  int64_t kv_blocks_total = 0;
  int64_t kv_blocks_available = 0;  // of the last heartbeat
  int64_t kv_blocks_promised = 0;   // to attempts that have no token from there yet
  int64_t kv_blocks_yielding = 0;   // at least, of less urgent attempts: the worker preempts them
  int block_tokens = 16;
};

struct RouteRequest {
  int64_t tokens = 0;  // prompt and generated
  int priority = 0;    // smaller goes first
  bool may_hand_off = true;
  // Not taken for prefill: decode can do that too. For decode only if there is no other. Never
  // null.
  const std::set<WorkerId>* avoid = nullptr;
  // Of the tokens, those whose KV a worker probably has (prefix_map.h). Null: nobody any.
  const std::map<WorkerId, int>* prefix_tokens = nullptr;
  int64_t PrefixOn(WorkerId worker) const;
};

// The prefill worker that has computed the prompt first, if one token takes all of them the same
// time: the one with the fewest queued tokens, less those that it need not compute.
std::optional<WorkerId> ChoosePrefill(const std::vector<PrefillView>& views,
                                      const RouteRequest& request);

// A worker that has the whole prompt is as good as one whose KV blocks are by this share less used:
// prompts that begin alike meet, but do not crowd one worker while others are idle.
inline constexpr double kPrefixPull = 0.25;

// So many attempts of a decode worker may be without a token from it, in its queue or in a prefill
// worker's; more wait in the router, where who comes later with a higher priority can still go
// before them. Less urgent ones do not count: they give way.
inline constexpr int kUnservedMax = 64;
// Nor more prompt tokens, for the decode worker and each prefill worker, but at least one request.
inline constexpr int64_t kUnservedTokensMax = 4096;

// The decode worker with the most KV headroom per its size, after the pull of a prefix that it
// has; then the one with fewer attempts. One that has no room for the tokens and the next block,
// even if less urgent attempts give way, is not taken, unless it runs nothing. A request that fits
// into no worker goes to the largest at once: it says so, with numbers, and nobody behind waits.
const DecodeView* ChooseDecode(const std::vector<DecodeView>& views, const RouteRequest& request,
                               size_t prefill_workers = 0);

// Nothing: no worker can take it now.
std::optional<Route> ChooseRoute(Disaggregate mode, const RouteRequest& request,
                                 const std::vector<PrefillView>& prefill,
                                 const std::vector<DecodeView>& decode);

// Blocks of a sequence of that many tokens and its next one.
int64_t BlocksFor(int64_t tokens, int block_tokens);

}  // namespace switchyard
