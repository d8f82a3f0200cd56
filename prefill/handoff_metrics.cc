#include "prefill/handoff_metrics.h"

namespace switchyard {
namespace {

constexpr const char* kOther = "other";

const char* ReasonOf(const absl::Status& why) {
  switch (why.code()) {
    case absl::StatusCode::kCancelled:
    case absl::StatusCode::kAborted:
      return "aborted";
    case absl::StatusCode::kDataLoss:
      return "data_loss";
    case absl::StatusCode::kDeadlineExceeded:
      return "deadline";
    case absl::StatusCode::kResourceExhausted:
      return "no_blocks";
    case absl::StatusCode::kUnavailable:
      return "peer_lost";
    default:
      return kOther;
  }
}

}  // namespace

HandoffMetrics::HandoffMetrics(MetricRegistry& registry)
    : reserve_(registry.Histogram("handoff_reserve_seconds",
                                  "Asking a decode rank for blocks to its answer",
                                  buckets::Handoff())) {
  for (const std::string lane : {"shm", "tcp", kOther}) {
    const MetricLabels label = {{"lane", lane}};
    lanes_[lane] = {
        &registry.Counter("handoff_bytes_total", "KV bytes of committed hand-offs", label),
        &registry.Counter("handoffs_total", "Hand-offs that a decode rank has committed", label),
        &registry.Histogram("handoff_seconds", "Reservation asked for to commit",
                            buckets::Handoff(), label)};
  }
  for (const std::string reason :
       {"aborted", "data_loss", "deadline", "no_blocks", "peer_lost", kOther}) {
    failures_[reason] = &registry.Counter(
        "handoff_failures_total", "Hand-offs that ended without commit", {{"reason", reason}});
  }
}

void HandoffMetrics::Committed(const std::string& lane, uint64_t bytes, absl::Duration took) {
  const auto found = lanes_.find(lane);
  const Lane& l = found == lanes_.end() ? lanes_.at(kOther) : found->second;
  l.bytes->Increment(static_cast<double>(bytes));
  l.handoffs->Increment();
  l.seconds->Observe(absl::ToDoubleSeconds(took));
}

void HandoffMetrics::Failed(const absl::Status& why) { failures_.at(ReasonOf(why))->Increment(); }

}  // namespace switchyard
