#include "engine/attempt_report.h"

#include "absl/strings/str_cat.h"
#include "common/ids.h"

namespace switchyard {
namespace {
constexpr size_t kNameBytesMax = kRequestIdBytesMax + 8;  // with the index of its answer
}  // namespace

AttemptReport::AttemptReport(WorkerEnv* env, const char* rank, const cluster::v1::Submit& submit)
    : env_(env),
      rank_(rank),
      request_(submit.client_request().empty() ? submit.id().request() : submit.client_request(), 0,
               kNameBytesMax),
      attempt_(submit.id().attempt()),
      start_(env->clock().Now()) {
  const auto parent = ParseTraceparent(submit.traceparent());
  if (env_->spans() != nullptr && parent && parent->sampled) {
    parent_ = parent->span;
    span_ = env_->spans()->Begin(*parent);
  }
  if (env_->log() == nullptr || !env_->log()->enabled(LogLevel::kDebug)) return;
  env_->log()->Debug("attempt", {{"request", request_},
                                 {"attempt", attempt_},
                                 {"as", submit.id().request()},
                                 {"prompt_tokens", submit.prompt_ids_size()}});
}

void AttemptReport::Stage(const char* name, absl::Time start, Attributes attributes) {
  if (!span_.valid()) return;
  env_->spans()->Record({env_->spans()->Begin(span_), span_.span, name, start, env_->clock().Now(),
                         std::move(attributes), ""});
}

void AttemptReport::End(const absl::Status& status) {
  if (env_ == nullptr) return;
  WorkerEnv& env = *std::exchange(env_, nullptr);
  const absl::Time now = env.clock().Now();
  if (span_.valid()) {
    env.spans()->Record({span_,
                         parent_,
                         rank_,
                         start_,
                         now,
                         {{"request", request_}, {"attempt", absl::StrCat(attempt_)}},
                         status.ok() ? "" : status.ToString()});
    span_ = {};
  }
  const LogLevel level =
      status.ok() || absl::IsCancelled(status) ? LogLevel::kDebug : LogLevel::kWarning;
  if (env.log() == nullptr || !env.log()->enabled(level)) return;
  const char* const how = status.ok() ? "attempt ended" : "attempt failed";
  env.log()->Log(level, absl::IsCancelled(status) ? "attempt cancelled" : how,
                 {{"request", request_},
                  {"attempt", attempt_},
                  {"seconds", absl::ToDoubleSeconds(now - start_)},
                  {"status", status.ToString()}});
}

}  // namespace switchyard
