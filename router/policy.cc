#include "router/policy.h"

#include <algorithm>
#include <tuple>

namespace switchyard {

int64_t BlocksFor(int64_t tokens, int block_tokens) {
  return (tokens + 1 + block_tokens - 1) / block_tokens;
}

int64_t RouteRequest::PrefixOn(WorkerId worker) const {
  if (prefix_tokens == nullptr) return 0;
  const auto it = prefix_tokens->find(worker);
  return it == prefix_tokens->end() ? 0 : std::min<int64_t>(it->second, tokens);
}

std::optional<WorkerId> ChoosePrefill(const std::vector<PrefillView>& views,
                                      const RouteRequest& request) {
  std::optional<std::tuple<int64_t, WorkerId>> best;
  for (const PrefillView& v : views) {
    if (v.draining || !v.trusted || request.avoid->contains(v.id)) continue;
    const std::tuple cost(v.queued_tokens - request.PrefixOn(v.id), v.id);
    if (!best || cost < *best) best = cost;
  }
  if (!best) return std::nullopt;
  return std::get<WorkerId>(*best);
}

const DecodeView* ChooseDecode(const std::vector<DecodeView>& views, const RouteRequest& request,
                               size_t prefill_workers) {
  const int64_t tokens_max = kUnservedTokensMax * (1 + static_cast<int64_t>(prefill_workers));
  int64_t largest = 0;
  for (const DecodeView& v : views) largest = std::max(largest, v.kv_blocks_total);
  const DecodeView* best = nullptr;
  std::tuple<bool, double, int, WorkerId> best_cost;
  for (const DecodeView& v : views) {
    if (v.draining || !v.trusted || v.unserved >= kUnservedMax) continue;
    if (v.unserved > 0 && v.unserved_tokens + request.tokens > tokens_max) continue;
    const int64_t free = v.kv_blocks_available - v.kv_blocks_promised;
    const int64_t reach = free + v.kv_blocks_yielding;
    const int64_t wanted = BlocksFor(request.tokens, v.block_tokens);
    if (wanted > v.kv_blocks_total ? v.kv_blocks_total < largest
                                   : reach < wanted && v.running > 0) {
      continue;
    }
    const double used = 1.0 - static_cast<double>(free) / std::max<int64_t>(1, v.kv_blocks_total);
    const double prefix = static_cast<double>(request.PrefixOn(v.id)) /
                          static_cast<double>(std::max<int64_t>(1, request.tokens));
    const std::tuple cost(request.avoid->contains(v.id), used - kPrefixPull * prefix, v.running,
                          v.id);
    if (best == nullptr || cost < best_cost) {
      best = &v;
      best_cost = cost;
    }
  }
  return best;
}

std::optional<Route> ChooseRoute(Disaggregate mode, const RouteRequest& request,
                                 const std::vector<PrefillView>& prefill,
                                 const std::vector<DecodeView>& decode) {
  const auto takes = [](const PrefillView& v) { return !v.draining && v.trusted; };
  const DecodeView* d =
      ChooseDecode(decode, request, std::count_if(prefill.begin(), prefill.end(), takes));
  if (d == nullptr) return std::nullopt;
  Route route{.decode = d->id, .prefill = std::nullopt};
  const bool hand_off = request.may_hand_off && d->takes_handoffs &&
                        (mode == Disaggregate::kAlways ||
                         (mode == Disaggregate::kAuto &&
                          request.tokens - request.PrefixOn(d->id) >= kHandOffPaysFromTokens));
  if (hand_off) route.prefill = ChoosePrefill(prefill, request);
  return route;
}

}  // namespace switchyard
