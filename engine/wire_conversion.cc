#include "engine/wire_conversion.h"

#include <cmath>

#include "absl/strings/str_cat.h"
#include "cluster/convert.h"
#include "common/status_macros.h"

namespace switchyard {
namespace {

namespace pb = cluster::v1;

absl::Status Bad(absl::string_view field, absl::string_view value, absl::string_view wanted) {
  return absl::InvalidArgumentError(absl::StrCat(field, " is ", value, "; ", wanted));
}

absl::StatusOr<SampledToken> TokenFromProto(absl::string_view field, const pb::ScoredToken& t) {
  if (t.token() < 0) return Bad(absl::StrCat(field, ".token"), absl::StrCat(t.token()), ">= 0");
  if (t.rank() < 1) return Bad(absl::StrCat(field, ".rank"), absl::StrCat(t.rank()), ">= 1");
  if (!std::isfinite(t.logprob())) {
    return Bad(absl::StrCat(field, ".logprob"), absl::StrCat(t.logprob()), "it must be finite");
  }
  if (t.top_tokens_size() != t.top_logprobs_size() || t.top_tokens_size() > kLogprobsMax) {
    return absl::InvalidArgumentError(
        absl::StrCat(field, " has ", t.top_tokens_size(), " top_tokens and ", t.top_logprobs_size(),
                     " top_logprobs; both must be equally many, at most ", kLogprobsMax));
  }
  for (float logprob : t.top_logprobs()) {
    if (std::isfinite(logprob)) continue;
    return Bad(absl::StrCat(field, ".top_logprobs"), absl::StrCat(logprob), "it must be finite");
  }
  return FromProto(t);
}

}  // namespace

absl::StatusOr<EngineRequest> RequestFromProto(const pb::Submit& submit) {
  EngineRequest r;
  r.key = FromProto(submit.id());
  r.prompt_ids.assign(submit.prompt_ids().begin(), submit.prompt_ids().end());
  r.generated_ids.assign(submit.generated_ids().begin(), submit.generated_ids().end());
  r.sampling = FromProto(submit.sampling());
  r.max_tokens = submit.max_tokens();
  r.stop_token_ids.assign(submit.stop_token_ids().begin(), submit.stop_token_ids().end());
  r.ignore_eos = submit.ignore_eos();
  r.min_tokens = submit.min_tokens();
  r.cache_salt = submit.cache_salt();
  r.priority = submit.priority();
  r.prompt_logprobs = submit.prompt_logprobs();
  RETURN_IF_ERROR(CheckRequest(r));
  return r;
}

void ToProto(const EngineRequest& r, pb::Submit* submit) {
  ToProto(r.key, submit->mutable_id());
  submit->mutable_prompt_ids()->Assign(r.prompt_ids.begin(), r.prompt_ids.end());
  submit->mutable_generated_ids()->Assign(r.generated_ids.begin(), r.generated_ids.end());
  ToProto(r.sampling, submit->mutable_sampling());
  submit->set_max_tokens(r.max_tokens);
  submit->mutable_stop_token_ids()->Assign(r.stop_token_ids.begin(), r.stop_token_ids.end());
  submit->set_ignore_eos(r.ignore_eos);
  submit->set_min_tokens(r.min_tokens);
  submit->set_cache_salt(r.cache_salt);
  submit->set_priority(r.priority);
  submit->set_prompt_logprobs(r.prompt_logprobs);
}

pb::AttemptEvent ToEvent(const EngineOutput& output) {
  pb::AttemptEvent event;
  switch (output.finish) {
    case FinishReason::kNone:
      break;
    case FinishReason::kStop:
      event.set_finish(pb::FINISH_STOP);
      break;
    case FinishReason::kLength:
      event.set_finish(pb::FINISH_LENGTH);
      break;
    case FinishReason::kAborted:
      event = ErrorEvent(output.key, absl::CancelledError("the attempt was aborted"));
      break;
    case FinishReason::kError:
      event = ErrorEvent(output.key, output.error);
      break;
  }
  ToProto(output.key, event.mutable_id());
  event.set_index(output.index);
  event.set_cached_tokens(output.cached_tokens);
  if (output.token) ToProto(*output.token, event.mutable_token());
  for (const SampledToken& t : output.prompt_logprobs) ToProto(t, event.add_prompt_logprobs());
  return event;
}

absl::StatusOr<EngineOutput> OutputFromEvent(const pb::AttemptEvent& event) {
  EngineOutput out;
  out.key = FromProto(event.id());
  out.index = event.index();
  if (out.index < 0) return Bad("index", absl::StrCat(out.index), "tokens count from 0");
  out.cached_tokens = event.cached_tokens();
  if (out.cached_tokens < 0) return Bad("cached_tokens", absl::StrCat(out.cached_tokens), ">= 0");
  if (event.has_token()) {
    ASSIGN_OR_RETURN(out.token, TokenFromProto("token", event.token()));
  }
  for (const pb::ScoredToken& t : event.prompt_logprobs()) {
    ASSIGN_OR_RETURN(SampledToken scored, TokenFromProto("prompt_logprobs", t));
    out.prompt_logprobs.push_back(std::move(scored));
  }
  switch (event.finish()) {
    case pb::FINISH_NONE:
      if (!out.token) return Bad("finish", "none", "an event without a token must be an end");
      break;
    case pb::FINISH_STOP:
      out.finish = FinishReason::kStop;
      break;
    case pb::FINISH_LENGTH:
      out.finish = FinishReason::kLength;
      break;
    case pb::FINISH_ERROR:
      out.finish = FinishReason::kError;
      out.error = ErrorOf(event);
      break;
    default:
      return Bad("finish", absl::StrCat(event.finish()), "it is none of the known ones");
  }
  return out;
}

void ToProto(const EngineStats& stats, cluster::v1::Heartbeat* heartbeat) {
  heartbeat->set_running(stats.running);
  heartbeat->set_waiting(stats.waiting);
  heartbeat->set_kv_blocks_free(stats.blocks.available());
  heartbeat->set_kv_blocks_cached(stats.blocks.cached);
  heartbeat->set_kv_blocks_owned(stats.blocks.owned);
  heartbeat->set_kv_blocks_leased(stats.blocks.leased);
  heartbeat->set_kv_blocks_quarantined(stats.blocks.quarantined);
  heartbeat->set_preemptions(stats.preemptions);
  heartbeat->set_prefix_queries(stats.prefix_queries);
  heartbeat->set_prefix_hits(stats.prefix_hits);
}

}  // namespace switchyard
