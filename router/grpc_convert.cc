#include "router/grpc_convert.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "common/random_word.h"
#include "common/status_macros.h"
#include "router/samples.h"
#include "router/validate.h"

namespace switchyard {
namespace {

void SetLogprob(TokenId token, float logprob, const Tokenizer* tokenizer, v1::Logprob* out) {
  out->set_token(token);
  out->set_logprob(logprob);
  // Part of a character becomes U+FFFD: the field is UTF-8.
  if (tokenizer == nullptr) {
    out->set_text(absl::StrCat("token_id:", token));
  } else if (auto text = tokenizer->Decode({&token, 1}, /*skip_special_tokens=*/false); text.ok()) {
    out->set_text(*std::move(text));
  }
}

void SetLogprobs(const SampledToken& token, const Tokenizer* tokenizer, v1::TokenLogprobs* out) {
  SetLogprob(token.token, token.logprob, tokenizer, out->mutable_chosen());
  out->set_rank(token.rank);
  for (const TokenLogprob& t : token.top) {
    SetLogprob(t.token, t.logprob, tokenizer, out->add_top());
  }
}

v1::FinishReason ReasonFor(ClientUpdate::Finish finish) {
  switch (finish) {
    case ClientUpdate::Finish::kStop:
      return v1::FINISH_REASON_STOP;
    case ClientUpdate::Finish::kLength:
      return v1::FINISH_REASON_LENGTH;
    case ClientUpdate::Finish::kAbort:
      return v1::FINISH_REASON_ABORT;
    case ClientUpdate::Finish::kNone:
    case ClientUpdate::Finish::kError:
      break;
  }
  return v1::FINISH_REASON_UNSPECIFIED;
}

void SetEnd(const ClientUpdate& update, v1::GenerateResponse* out) {
  out->set_finish_reason(ReasonFor(update.finish));
  out->mutable_usage()->set_prompt_tokens(update.prompt_tokens);
  out->mutable_usage()->set_cached_tokens(update.cached_tokens);
  out->mutable_usage()->set_completion_tokens(update.completion_tokens);
  v1::RequestMetrics* m = out->mutable_metrics();
  m->set_ttft_seconds(absl::ToDoubleSeconds(update.ttft));
  m->set_e2e_seconds(absl::ToDoubleSeconds(update.e2e));
  m->set_kv_bytes_moved(update.kv_bytes_moved);
  m->set_kv_lane(update.kv_lane);
  m->set_attempts(update.attempts);
  m->set_prefill_worker(update.prefill_worker);
  m->set_decode_worker(update.decode_worker);
}

absl::StatusOr<std::vector<TokenId>> ReadPrompt(const v1::GenerateRequest& request,
                                                const ModelDescription& model,
                                                const Tokenizer* tokenizer) {
  switch (request.prompt_case()) {
    case v1::GenerateRequest::kTokens:
      return std::vector<TokenId>(request.tokens().ids().begin(), request.tokens().ids().end());
    case v1::GenerateRequest::kText:
      return EncodePrompt("text", request.text(),
                          request.has_add_special_tokens() ? request.add_special_tokens() : true,
                          request.truncate_prompt_tokens() != 0, model, tokenizer);
    case v1::GenerateRequest::PROMPT_NOT_SET:
      break;
  }
  return BadField("prompt", ": text or tokens must be set");
}

absl::Status Truncate(int32_t keep, const ModelDescription& model, std::vector<TokenId>* ids) {
  const int most = model.max_model_len - 1;
  if (keep < -1 || keep > most) {
    return BadField("truncate_prompt_tokens",
                    absl::StrCat(" is ", keep, ", must be from -1 to ", most));
  }
  if (keep == -1) keep = most;
  if (keep > 0 && ids->size() > static_cast<size_t>(keep)) {
    ids->erase(ids->begin(), ids->end() - keep);
  }
  return absl::OkStatus();
}

void SetSampling(const v1::Sampling& s, ClientRequest* out) {
  SamplingParams& sampling = out->sampling;
  if (s.has_temperature()) sampling.temperature = s.temperature();
  if (s.has_top_k()) sampling.top_k = s.top_k();
  if (s.has_top_p()) sampling.top_p = s.top_p();
  sampling.min_p = s.min_p();
  sampling.presence_penalty = s.presence_penalty();
  sampling.frequency_penalty = s.frequency_penalty();
  if (s.has_repetition_penalty()) sampling.repetition_penalty = s.repetition_penalty();
  sampling.logit_bias.assign(s.logit_bias().begin(), s.logit_bias().end());
  sampling.seed = s.seed();
  out->seed_given = s.has_seed();
}

}  // namespace

absl::StatusOr<std::vector<ClientRequest>> FromProto(const v1::GenerateRequest& request,
                                                     const ModelDescription& model,
                                                     const RouterLimits& limits,
                                                     const Tokenizer* tokenizer) {
  const int n = request.has_n() ? request.n() : 1;
  if (n < 1 || n > kSamplesMax) {
    return BadField("n", absl::StrCat(" is ", n, ", must be from 1 to ", kSamplesMax));
  }
  // The core's −1 is "none"; the client says that by leaving the field out.
  for (auto [field, set, value] :
       {std::tuple("logprobs", request.has_logprobs(), request.logprobs()),
        std::tuple("prompt_logprobs", request.has_prompt_logprobs(), request.prompt_logprobs())}) {
    if (set && value < 0) {
      return BadField(field, absl::StrCat(" is ", value, ", must be at least 0"));
    }
  }
  ASSIGN_OR_RETURN(std::vector<TokenId> ids, ReadPrompt(request, model, tokenizer));
  RETURN_IF_ERROR(Truncate(request.truncate_prompt_tokens(), model, &ids));
  ClientRequest out;
  out.prompt_ids = std::move(ids);
  out.request_id = request.request_id();
  if (request.has_max_tokens()) out.max_tokens = request.max_tokens();
  SetSampling(request.sampling(), &out);
  out.sampling.logprobs = request.has_logprobs() ? request.logprobs() : -1;
  out.prompt_logprobs = request.has_prompt_logprobs() ? request.prompt_logprobs() : -1;
  out.stop.assign(request.stop().begin(), request.stop().end());
  out.stop_token_ids.assign(request.stop_token_ids().begin(), request.stop_token_ids().end());
  out.ignore_eos = request.ignore_eos();
  if (request.has_skip_special_tokens()) out.skip_special_tokens = request.skip_special_tokens();
  out.priority = request.priority();
  out.min_tokens = request.min_tokens();
  out.include_stop = request.include_stop_str_in_output();
  out.cache_salt = request.cache_salt();
  // Before there are n of it.
  RETURN_IF_ERROR(ValidateRequest(model, limits, tokenizer != nullptr, &out));
  std::vector<ClientRequest> answers;
  AppendSamples(out, n, &answers);
  RETURN_IF_ERROR(CheckListed(model, answers, /*streamed=*/true));
  ShareSeeds(RandomWord, &answers);
  return answers;
}

v1::GenerateResponse ToProto(const ClientUpdate& update, const std::string& request_id,
                             bool with_logprobs, const Tokenizer* tokenizer) {
  v1::GenerateResponse out;
  out.set_request_id(request_id);
  out.set_text(update.text);
  for (const SampledToken& t : update.tokens) {
    out.add_token_ids(t.token);
    if (with_logprobs) SetLogprobs(t, tokenizer, out.add_logprobs());
  }
  for (const SampledToken& t : update.prompt_logprobs) {
    SetLogprobs(t, tokenizer, out.add_prompt_logprobs());
  }
  if (update.first) out.set_seed(update.seed);
  out.set_stop_match(update.stop_match);
  if (update.stop_token.has_value()) out.set_stop_token(*update.stop_token);
  if (update.finish != ClientUpdate::Finish::kNone) SetEnd(update, &out);
  return out;
}

v1::ModelInfo ToProto(const ModelDescription& model, bool has_tokenizer) {
  v1::ModelInfo out;
  out.set_id(model.id);
  out.set_architecture(model.architecture);
  out.set_vocab_size(model.vocab_size);
  out.set_max_model_len(model.max_model_len);
  out.set_numerics_id(model.numerics_id);
  for (TokenId id : model.eos_token_ids) out.add_eos_token_ids(id);
  out.set_has_tokenizer(has_tokenizer);
  return out;
}

v1::Load ToProto(const RouterStatus& status) {
  v1::Load out;
  out.set_requests_running(status.running);
  out.set_requests_waiting(status.waiting);
  for (const WorkerStatus& w : status.workers) {
    v1::WorkerLoad* l = out.add_workers();
    l->set_address(w.address);
    l->set_role(w.role);
    l->set_alive(w.alive);
    l->set_running(w.running);
    l->set_waiting(w.waiting);
    l->set_kv_blocks_free(w.kv_blocks_free);
    l->set_kv_blocks_total(w.kv_blocks_total);
    l->set_kv_blocks_leased(w.kv_blocks_leased);
    l->set_kv_blocks_quarantined(w.kv_blocks_quarantined);
    l->set_steps(w.steps);
  }
  return out;
}

}  // namespace switchyard
