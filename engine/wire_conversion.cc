#include "engine/wire_conversion.h"

#include "cluster/convert.h"
#include "common/status_macros.h"

namespace switchyard {
namespace pb = cluster::v1;

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
