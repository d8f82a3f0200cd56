#include "router/worker_event.h"

#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "cluster/convert.h"
#include "common/status_macros.h"

namespace switchyard {
namespace {

namespace pb = cluster::v1;

template <typename... Parts>
absl::Status Bad(const Parts&... parts) {
  return absl::DataLossError(absl::StrCat("an event of a worker: ", parts...));
}

absl::Status CheckToken(const char* field, TokenId token, int vocab_size) {
  if (token >= 0 && (vocab_size == 0 || token < vocab_size)) return absl::OkStatus();
  return Bad(field, " is ", token, ", must be in [0, ", vocab_size, ")");
}

// Not a number above 0, and not NaN; what no token can have is -infinity.
absl::Status CheckLogprob(const char* field, float logprob) {
  constexpr float kRounding = 1e-3f;
  return logprob <= kRounding ? absl::OkStatus()
                              : Bad(field, " is ", logprob, ", must be at most 0");
}

absl::StatusOr<SampledToken> TokenFromProto(const pb::ScoredToken& t, int vocab_size,
                                            int logprobs_max) {
  RETURN_IF_ERROR(CheckToken("token", t.token(), vocab_size));
  RETURN_IF_ERROR(CheckLogprob("logprob", t.logprob()));
  if (t.rank() < 0) return Bad("rank is ", t.rank(), ", must be at least 0");
  if (t.top_tokens_size() != t.top_logprobs_size() || t.top_tokens_size() > logprobs_max) {
    return Bad(t.top_tokens_size(), " top_tokens and ", t.top_logprobs_size(),
               " top_logprobs, must be equally many, at most ", logprobs_max);
  }
  for (const TokenId token : t.top_tokens()) {
    RETURN_IF_ERROR(CheckToken("top_tokens", token, vocab_size));
  }
  for (const float logprob : t.top_logprobs())
    RETURN_IF_ERROR(CheckLogprob("top_logprobs", logprob));
  return FromProto(t);
}

absl::Status Fill(const pb::AttemptEvent& e, int vocab_size, int logprobs_max, WorkerEvent* out) {
  if (e.index() < 0) return Bad("index is ", e.index(), ", must be at least 0");
  if (e.cached_tokens() < 0) return Bad("cached_tokens is ", e.cached_tokens(), ", must be >= 0");
  out->index = e.index();
  out->cached_tokens = e.cached_tokens();
  if (e.has_token()) {
    ASSIGN_OR_RETURN(out->token, TokenFromProto(e.token(), vocab_size, logprobs_max));
  }
  for (const pb::ScoredToken& t : e.prompt_logprobs()) {
    ASSIGN_OR_RETURN(SampledToken scored, TokenFromProto(t, vocab_size, logprobs_max));
    out->prompt_logprobs.push_back(std::move(scored));
  }
  switch (e.finish()) {
    case pb::FINISH_NONE:
      break;
    case pb::FINISH_STOP:
      out->finish = WorkerEvent::Finish::kStop;
      break;
    case pb::FINISH_LENGTH:
      out->finish = WorkerEvent::Finish::kLength;
      break;
    case pb::FINISH_ERROR:
      return ErrorOf(e);
    default:
      return Bad("finish is ", static_cast<int>(e.finish()), ", which is none of the known ones");
  }
  out->handed_off = e.handed_off();
  out->kv_bytes_moved = e.kv_bytes_moved();
  out->kv_lane = e.kv_lane();
  return absl::OkStatus();
}

}  // namespace

WorkerEvent EventFromProto(const pb::AttemptEvent& event, int vocab_size, int logprobs_max) {
  WorkerEvent out;
  out.attempt = event.id().attempt();
  if (absl::Status status = Fill(event, vocab_size, logprobs_max, &out); !status.ok()) {
    out.token.reset();
    out.prompt_logprobs.clear();
    out.finish = WorkerEvent::Finish::kError;
    out.retry_after = RetryAfter(status);
    out.error = std::move(status);
  }
  return out;
}

}  // namespace switchyard
