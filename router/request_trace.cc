#include "router/request_trace.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"

namespace switchyard {

RequestTrace::RequestTrace(SpanSink* sink, const std::optional<TraceContext>& parent,
                           absl::Time now)
    : sink_(parent && !parent->sampled ? nullptr : sink), start_(now) {
  if (sink_ == nullptr) return;
  request_ = sink_->Begin(parent.value_or(TraceContext()));
  if (parent) parent_ = parent->span;
}

void RequestTrace::Child(const TraceContext& parent, std::string name, absl::Time start,
                         absl::Time end,
                         std::vector<std::pair<std::string, std::string>> attributes) {
  sink_->Record({sink_->Begin(parent), parent.span, std::move(name), start, std::max(start, end),
                 std::move(attributes), ""});
}

void RequestTrace::StartAttempt(int number, const std::string& prefill, const std::string& decode,
                                absl::Time now) {
  if (sink_ == nullptr) return;
  if (!std::exchange(dispatched_, true)) Child(request_, "queue", start_, now, {});
  attempt_ = Attempt{.context = sink_->Begin(request_),
                     .number = number,
                     .prefill = prefill,
                     .decode = decode,
                     .start = now,
                     .first_token = {},
                     .handed_off = {},
                     .kv_lane = {}};
}

void RequestTrace::Token(absl::Time now) {
  if (attempt_ && !attempt_->first_token) attempt_->first_token = now;
}

void RequestTrace::HandedOff(uint64_t bytes, const std::string& lane, absl::Time now) {
  if (!attempt_) return;
  attempt_->handed_off = now;
  attempt_->kv_bytes = bytes;
  attempt_->kv_lane = lane;
}

void RequestTrace::EndAttempt(const absl::Status& status, absl::Time now) {
  if (!attempt_) return;
  const Attempt a = *std::exchange(attempt_, std::nullopt);
  const std::string& first = a.prefill.empty() ? a.decode : a.prefill;
  Child(a.context, "prefill", a.start, a.first_token.value_or(now), {{"worker", first}});
  if (a.first_token && a.handed_off) {
    Child(a.context, "transfer", *a.first_token, *a.handed_off,
          {{"bytes", absl::StrCat(a.kv_bytes)}, {"lane", a.kv_lane}});
  }
  if (a.first_token) {
    Child(a.context, "decode", a.handed_off.value_or(*a.first_token), now, {{"worker", a.decode}});
  }
  sink_->Record({a.context,
                 request_.span,
                 absl::StrCat("attempt ", a.number),
                 a.start,
                 now,
                 {{"prefill", a.prefill}, {"decode", a.decode}},
                 status.ok() ? "" : status.ToString()});
}

void RequestTrace::End(std::vector<std::pair<std::string, std::string>> attributes,
                       const absl::Status& status, absl::Time now) {
  if (sink_ == nullptr) return;
  EndAttempt(status, now);
  sink_->Record({request_, parent_, "request", start_, now, std::move(attributes),
                 status.ok() ? "" : status.ToString()});
  sink_ = nullptr;
}

}  // namespace switchyard
