// The part of a rank that changes placements: when ranks meet, and while they serve.
#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "common/status_macros.h"
#include "engine/ep_rank.h"

namespace switchyard {
namespace {
constexpr int64_t kLoadMax = int64_t{1} << 53;  // exact as a double
// For the experts that a rank loads, and it lives all the while.
constexpr absl::Duration kPlaceMax = absl::Minutes(30);
}  // namespace

// Ranks may differ: one that comes back begins with the first placement, and of those that lost a
// rank while all switched, some have. The highest version counts; where halves of a group went on
// without each other, that of the lowest rank.
//
// Experts may have to be loaded, by each rank as fast as it can: all wait for all, or the first
// step would take those who load for lost.
absl::Status EpRank::Place(EpGroup& group, const std::vector<bool>& present) {
  ASSIGN_OR_RETURN(const std::vector<std::string> all, group.Gather(EncodePlacement(*whole_)));
  std::shared_ptr<const Placement> best;
  for (const std::string& one : all) {
    if (one.empty()) continue;
    ASSIGN_OR_RETURN(Placement theirs, DecodePlacement(one, *whole_));
    if (best != nullptr && best->version() >= theirs.version()) continue;
    best = std::make_shared<const Placement>(std::move(theirs));
  }
  const uint64_t digest = TableDigest(*best);
  if (rebalancer_.busy()) {  // others may have switched before they lost somebody
    const bool adopted = pending_ && TableDigest(*pending_->plan.placement) == digest;
    if (adopted) {
      CountSwitch();
    } else {
      ++rebalance_.aborted;
    }
  }
  // Equal ones stay the same object: then nothing moves.
  if (best->version() != whole_->version() || digest != TableDigest(*whole_)) whole_ = best;
  std::shared_ptr<const Placement> placement = whole_;
  if (std::find(present.begin(), present.end(), false) != present.end()) {
    ASSIGN_OR_RETURN(Placement rest, whole_->Without(whole_->version() + group.epoch(), present));
    placement = std::make_shared<const Placement>(std::move(rest));
  }
  SpareExperts spare;
  if (pending_) spare = std::move(pending_->experts);
  if (placement != placement_) RETURN_IF_ERROR(model_.Rehost(placement, &spare));
  placement_ = std::move(placement);
  EndRound(std::move(spare));
  return group.Barrier(kPlaceMax);
}

void EpRank::EndRound(SpareExperts unused) {
  fetcher_.Cancel();
  if (pending_) fetcher_.Free(std::move(pending_->experts));
  fetcher_.Free(std::move(unused));
  pending_.reset();
  rebalancer_.End();
}

void EpRank::TakeFetched() {
  if (!fetcher_.done()) return;
  auto fetched = fetcher_.Take();
  if (!fetched.ok()) {
    if (log_ != nullptr) {
      log_->Warning("experts are not rebalanced", {{"why", fetched.status().ToString()}});
    }
    return rebalancer_.GiveUp();
  }
  rebalance_.before = fetched->plan.before.balancedness();
  rebalance_.after = fetched->plan.after.balancedness();
  if (fetched->plan.placement == nullptr) {
    ++rebalance_.kept;
    return rebalancer_.End();
  }
  rebalance_.fetched_experts += fetched->experts.size();
  rebalance_.fetched_bytes += fetched->bytes;
  rebalance_.fetch_seconds += absl::ToDoubleSeconds(fetched->took);
  rebalancer_.Ready(TableDigest(*fetched->plan.placement));
  pending_ = *std::move(fetched);
}

absl::Status EpRank::Rebalance(std::span<const StepHeader> headers) {
  switch (rebalancer_.OnHeaders(headers)) {
    case Rebalancer::Act::kNone:
      return absl::OkStatus();
    case Rebalancer::Act::kGather:
      return GatherLoads();
    case Rebalancer::Act::kSwitch:
      return Switch();
    case Rebalancer::Act::kDrop:
      ++rebalance_.aborted;
      if (log_ != nullptr) log_->Warning("a rank could not rebalance: all keep their experts");
      EndRound({});
      return absl::OkStatus();
  }
  return absl::OkStatus();
}

absl::Status EpRank::GatherLoads() {
  std::vector<int64_t> loads = rebalancer_.Begin(clock_.Now());
  std::string mine(loads.size() * sizeof loads[0], '\0');
  std::memcpy(mine.data(), loads.data(), mine.size());
  ASSIGN_OR_RETURN(const std::vector<std::string> all, group_->Gather(mine));
  std::fill(loads.begin(), loads.end(), 0);
  for (const std::string& part : all) {
    if (part.empty()) continue;
    for (size_t i = 0; i < loads.size(); ++i) {
      int64_t load = 0;
      std::memcpy(&load, part.data() + i * sizeof load, sizeof load);
      const bool can_be = load >= 0 && load <= kLoadMax / options_.world() && loads[i] >= 0;
      loads[i] = can_be ? loads[i] + load : -1;  // the balancer refuses it
    }
  }
  fetcher_.Start(whole_, [current = whole_, loads = std::move(loads), limits = options_.rebalance] {
    return PlanRebalance(
        *current,
        {loads.data(),
         {static_cast<size_t>(current->layers()), static_cast<size_t>(current->experts())}},
        limits);
  });
  return absl::OkStatus();
}

void EpRank::CountSwitch() {
  ++rebalance_.done;
  if (log_ == nullptr) return;
  const RebalancePlan& plan = pending_->plan;
  log_->Info("experts are rebalanced", {{"placement", plan.placement->version()},
                                        {"fetched", pending_->experts.size()},
                                        {"bytes", pending_->bytes},
                                        {"seconds", absl::ToDoubleSeconds(pending_->took)},
                                        {"balancedness_before", plan.before.balancedness()},
                                        {"balancedness", plan.after.balancedness()}});
}

absl::Status EpRank::Switch() {
  SY_CHECK(pending_);  // this rank has said that it is ready
  CountSwitch();
  const std::shared_ptr<const Placement> next = pending_->plan.placement;
  RETURN_IF_ERROR(model_.Rehost(next, &pending_->experts));
  whole_ = placement_ = next;
  dispatcher_->UsePlacement(next);
  model_.UseDispatcher(dispatcher_.get());
  EndRound({});  // frees what the old placement had
  return absl::OkStatus();
}

}  // namespace switchyard
