#include "router/http/openai_response.h"

#include <algorithm>
#include <charconv>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "cluster/convert.h"
#include "common/check.h"
#include "router/http/openai_fields.h"

namespace switchyard {
namespace {

using Json = nlohmann::ordered_json;

constexpr char kEventsEnd[] = "data: [DONE]\n\n";

// Text from token bytes may hold a part of a character: it becomes U+FFFD.
std::string Dump(const Json& json) {
  return json.dump(-1, ' ', false, Json::error_handler_t::replace);
}

std::string Event(const Json& json) { return absl::StrCat("data: ", Dump(json), "\n\n"); }

size_t Characters(std::string_view utf8) {
  size_t count = 0;
  for (const char c : utf8) count += (static_cast<unsigned char>(c) & 0xc0) != 0x80;
  return count;
}

// The stop string or stop token; null for an end of sequence and other ends.
Json StopReason(const ClientUpdate& update) {
  if (!update.stop_match.empty()) return update.stop_match;
  return update.stop_token.has_value() ? Json(*update.stop_token) : Json();
}

std::vector<TokenLogprob> WithChosen(const SampledToken& token, int best) {
  std::vector<TokenLogprob> out;
  bool listed = false;
  for (const TokenLogprob& top : token.top) {
    if (out.size() >= static_cast<size_t>(std::max(best, 0))) break;
    out.push_back(top);
    listed = listed || top.token == token.token;
  }
  // The chosen token is always there, so a list may have one more than was asked for.
  if (!listed) out.push_back({token.token, token.logprob});
  return out;
}

// Where the echo of a prompt begins: a leading special token is as a rule the tokenizer's own.
size_t EchoBegin(const std::vector<TokenId>& ids, const Tokenizer& tokenizer) {
  return !ids.empty() && tokenizer.IsSpecial(ids[0]) ? 1 : 0;
}

double Logprob(float value) {
  // JSON knows no infinity; the field's word for "never" is this number.
  return std::isfinite(value) ? ShortestDouble(value) : -9999.0;
}

}  // namespace

double ShortestDouble(float value) {
  char digits[64];
  const auto end = std::to_chars(digits, digits + sizeof(digits), value).ptr;
  double out = 0;
  std::from_chars(digits, end, out);
  return out;
}

HttpResponse ErrorResponse(const absl::Status& status) {
  int http = 500;
  const char* type = "server_error";
  std::string_view code;
  switch (status.code()) {
    case absl::StatusCode::kInvalidArgument:
      http = 400, type = "invalid_request_error";
      break;
    case absl::StatusCode::kNotFound:
      http = 404, type = "not_found_error";
      if (FieldOf(status) == "model") code = "model_not_found";
      break;
    case absl::StatusCode::kAlreadyExists:
      http = 409, type = "conflict_error";
      break;
    case absl::StatusCode::kResourceExhausted:
      http = 429, type = "rate_limit_error";
      break;
    case absl::StatusCode::kUnavailable:
      http = 503, type = "service_unavailable_error";
      break;
    case absl::StatusCode::kDeadlineExceeded:
      http = 504, type = "timeout_error";
      break;
    default:
      break;
  }
  HttpResponse response =
      HttpError(http, std::string(status.message()), type, FieldOf(status), code);
  if (http == 429) {  // whole seconds
    const int64_t after = absl::ToInt64Seconds(absl::Ceil(RetryAfter(status), absl::Seconds(1)));
    response.headers.emplace_back("Retry-After", absl::StrCat(std::max<int64_t>(1, after)));
  }
  return response;
}

HttpResponse WithRequestId(const std::string& id, HttpResponse response) {
  const bool plain =
      std::all_of(id.begin(), id.end(), [](char c) { return c > ' ' && c < '\x7f'; });
  if (plain) response.headers.emplace_back("X-Request-Id", id);
  return response;
}

ApiAnswer::ApiAnswer(ApiRequest request, std::string id, std::string model,
                     int64_t created_unix_seconds, const Tokenizer* tokenizer)
    : request_(std::move(request)),
      id_(std::move(id)),
      model_(std::move(model)),
      created_unix_seconds_(created_unix_seconds),
      tokenizer_(tokenizer),
      choices_(request_.choices.size()),
      open_(choices_.size()) {
  for (size_t i = 0; i < choices_.size() && tokenizer_ != nullptr; ++i) {
    choices_[i].position.emplace(tokenizer_, request_.choices[i].skip_special_tokens);
  }
}

std::string ApiAnswer::Take(size_t index, ClientUpdate update) {
  SY_CHECK(index < choices_.size());
  Choice& choice = choices_[index];
  if (choice.ended) return "";
  if (update.first) choice.seed = update.seed;
  if (request_.score_only) {
    update.text.clear();
    update.tokens.clear();
    update.completion_tokens = 0;
    if (update.finish == ClientUpdate::Finish::kStop) update.finish = ClientUpdate::Finish::kLength;
    update.stop_match.clear();
    update.stop_token.reset();
  }
  choice.completion_tokens += update.tokens.size();
  const bool ends = update.finish != ClientUpdate::Finish::kNone;
  if (ends) {
    choice.ended = true;
    --open_;
    choice.end = update;
    choice.completion_tokens = static_cast<size_t>(update.completion_tokens);
  }
  if (update.finish == ClientUpdate::Finish::kError) {
    if (error_.ok()) error_ = update.error;
    if (error_.ok()) error_ = absl::InternalError("the request failed without a reason");
    if (!request_.stream) return "";
    return absl::StrCat("data: ", ErrorResponse(error_).body, "\n\n");
  }
  if (!request_.stream) {
    ClientUpdate& whole = choice.whole;
    whole.text += update.text;
    whole.tokens.insert(whole.tokens.end(), update.tokens.begin(), update.tokens.end());
    if (!update.prompt_logprobs.empty()) whole.prompt_logprobs = std::move(update.prompt_logprobs);
    whole.finish = update.finish;
    whole.stop_match = std::move(update.stop_match);
    whole.stop_token = update.stop_token;
    return "";
  }
  if (choice.begun && !ends && update.text.empty() && update.tokens.empty()) return "";
  Json chunk = Frame(/*chunk=*/true);
  chunk["choices"] = Json::array({ChoiceJson(index, update)});
  if (request_.continuous_usage) chunk["usage"] = Usage();
  if (ends) chunk["switchyard"] = Cost(choice);
  return Event(chunk);
}

std::string ApiAnswer::Body() {
  SY_CHECK(done() && error_.ok());
  Json body = Frame(/*chunk=*/false);
  Json choices = Json::array();
  for (size_t i = 0; i < choices_.size(); ++i) {
    Json choice = ChoiceJson(i, choices_[i].whole);
    if (choices_.size() > 1) choice["switchyard"] = Cost(choices_[i]);
    choices.push_back(std::move(choice));
  }
  body["choices"] = std::move(choices);
  body["usage"] = Usage();
  body["switchyard"] = Cost(choices_[0]);
  return Dump(body);
}

std::string ApiAnswer::Tail() const {
  if (!request_.include_usage || !error_.ok()) return kEventsEnd;
  Json chunk = Frame(/*chunk=*/true);
  chunk["choices"] = Json::array();
  chunk["usage"] = Usage();
  return absl::StrCat(Event(chunk), kEventsEnd);
}

Json ApiAnswer::Frame(bool chunk) const {
  const char* object = !request_.chat ? "text_completion"
                       : chunk        ? "chat.completion.chunk"
                                      : "chat.completion";
  return {{"id", id_}, {"object", object}, {"created", created_unix_seconds_}, {"model", model_}};
}

Json ApiAnswer::ChoiceJson(size_t index, const ClientUpdate& update) {
  Choice& choice = choices_[index];
  const bool first = !std::exchange(choice.begun, true);
  Json out = {{"index", index}};
  if (request_.chat) {
    Json message = Json::object();
    if (first) message["role"] = "assistant";
    if (first || !update.text.empty()) message["content"] = update.text;
    out[request_.stream ? "delta" : "message"] = std::move(message);
    out["logprobs"] = request_.logprobs >= 0 ? ChatLogprobs(update) : Json();
  } else {
    out["text"] = first && request_.echo ? EchoText(index) + update.text : update.text;
    out["logprobs"] = request_.logprobs >= 0 ? CompletionLogprobs(index, first, update) : Json();
  }
  const char* const reason = FinishName(update.finish);
  out["finish_reason"] = reason != nullptr ? Json(reason) : Json();
  out["stop_reason"] = StopReason(update);
  if (first && request_.prompt_logprobs >= 0) out["prompt_logprobs"] = PromptLogprobs(update);
  if (request_.return_token_ids) {
    if (first) out["prompt_token_ids"] = request_.choices[index].prompt_ids.ids();
    Json ids = Json::array();
    for (const SampledToken& token : update.tokens) ids.push_back(token.token);
    out["token_ids"] = std::move(ids);
  }
  return out;
}

std::string ApiAnswer::TokenText(TokenId id) const {
  if (tokenizer_ != nullptr && !request_.tokens_as_ids) {
    const std::string_view bytes = tokenizer_->TokenBytes(id);
    if (!bytes.empty()) return std::string(bytes);
  }
  return absl::StrCat("token_id:", id);
}

// The prompt's text as text_offset counts it, which is not always the one that the client sent:
// special tokens' names may be skipped, and a normalizer may change characters.
std::string ApiAnswer::EchoText(size_t index) const {
  if (tokenizer_ == nullptr) return "";
  const ClientRequest& request = request_.choices[index];
  const std::vector<TokenId>& ids = request.prompt_ids;
  DetokenizerStream stream(tokenizer_, request.skip_special_tokens);
  std::string text;
  for (size_t i = EchoBegin(ids, *tokenizer_); i < ids.size(); ++i) text += stream.Push(ids[i]);
  return text + stream.Finish();
}

// One more entry of tokens, token_logprobs, top_logprobs and text_offset.
void ApiAnswer::AddToken(Choice* choice, const SampledToken& token, bool known, Json* out) const {
  (*out)["tokens"].push_back(TokenText(token.token));
  (*out)["text_offset"].push_back(choice->characters);
  if (choice->position.has_value()) {
    choice->characters += Characters(choice->position->Push(token.token));
  }
  if (!known) {
    (*out)["token_logprobs"].push_back(nullptr);
    (*out)["top_logprobs"].push_back(nullptr);
    return;
  }
  (*out)["token_logprobs"].push_back(Logprob(token.logprob));
  Json top = Json::object();
  for (const TokenLogprob& one : WithChosen(token, request_.logprobs)) {
    // Two tokens may have one text: the better one stays.
    top.emplace(TokenText(one.token), Logprob(one.logprob));
  }
  (*out)["top_logprobs"].push_back(std::move(top));
}

void ApiAnswer::AddPrompt(size_t index, const std::vector<SampledToken>& logprobs, Json* out) {
  Choice* choice = &choices_[index];
  const ClientRequest& request = request_.choices[index];
  const std::vector<TokenId>& ids = request.prompt_ids;
  for (size_t i = 0; i < ids.size(); ++i) {
    const bool known = i > 0 && i - 1 < logprobs.size();
    SampledToken token = known ? logprobs[i - 1] : SampledToken();
    token.token = ids[i];
    AddToken(choice, token, known, out);
    if (tokenizer_ == nullptr || i + 1 != EchoBegin(ids, *tokenizer_)) continue;
    choice->characters = 0;
    choice->position.emplace(tokenizer_, request.skip_special_tokens);
  }
  if (tokenizer_ == nullptr) return;
  // The generated text begins anew, as the core's does.
  choice->characters += Characters(choice->position->Finish());
  choice->position.emplace(tokenizer_, request.skip_special_tokens);
}

Json ApiAnswer::CompletionLogprobs(size_t index, bool first, const ClientUpdate& update) {
  Json out = {{"tokens", Json::array()},
              {"token_logprobs", Json::array()},
              {"top_logprobs", Json::array()},
              {"text_offset", Json::array()}};
  Choice* choice = &choices_[index];
  if (first && request_.echo) AddPrompt(index, update.prompt_logprobs, &out);
  for (const SampledToken& token : update.tokens) AddToken(choice, token, true, &out);
  return out;
}

Json ApiAnswer::ChatLogprobs(const ClientUpdate& update) const {
  const auto entry = [this](TokenId id, float logprob) {
    const std::string text = TokenText(id);
    return Json{{"token", text},
                {"logprob", Logprob(logprob)},
                {"bytes", std::vector<uint8_t>(text.begin(), text.end())}};
  };
  Json content = Json::array();
  for (const SampledToken& token : update.tokens) {
    Json one = entry(token.token, token.logprob);
    one["top_logprobs"] = Json::array();
    for (size_t i = 0; i < token.top.size() && i < static_cast<size_t>(request_.logprobs); ++i) {
      one["top_logprobs"].push_back(entry(token.top[i].token, token.top[i].logprob));
    }
    content.push_back(std::move(one));
  }
  return {{"content", std::move(content)}};
}

// [null, {"<id>": {logprob, rank, decoded_token}, …}, …]: one per prompt token.
Json ApiAnswer::PromptLogprobs(const ClientUpdate& update) const {
  Json out = Json::array({nullptr});
  for (const SampledToken& token : update.prompt_logprobs) {
    Json one = Json::object();
    int rank = 0;
    for (const TokenLogprob& listed : WithChosen(token, request_.prompt_logprobs)) {
      ++rank;
      one[absl::StrCat(listed.token)] = {{"logprob", Logprob(listed.logprob)},
                                         {"rank", listed.token == token.token ? token.rank : rank},
                                         {"decoded_token", TokenText(listed.token)}};
    }
    out.push_back(std::move(one));
  }
  return out;
}

Json ApiAnswer::Usage() const {
  int64_t prompt = 0, completion = 0, cached = 0;
  for (size_t i = 0; i < choices_.size(); ++i) {
    completion += static_cast<int64_t>(choices_[i].completion_tokens);
    // A prompt counts once, however many samples it has.
    if (request_.choices[i].sampling.sample > 0) continue;
    prompt += static_cast<int64_t>(request_.choices[i].prompt_ids.size());
    cached += choices_[i].end.cached_tokens;
  }
  return {{"prompt_tokens", prompt},
          {"completion_tokens", completion},
          {"total_tokens", prompt + completion},
          {"prompt_tokens_details", {{"cached_tokens", cached}}}};
}

Json ApiAnswer::Cost(const Choice& choice) const {
  const auto ms = [](absl::Duration d) {
    return static_cast<double>(absl::ToInt64Microseconds(d)) / 1000;
  };
  const ClientUpdate& end = choice.end;
  return {{"ttft_ms", ms(end.ttft)},
          {"e2e_ms", ms(end.e2e)},
          {"kv_bytes_moved", end.kv_bytes_moved},
          {"kv_lane", end.kv_lane},
          {"attempts", end.attempts},
          {"prefill_worker", end.prefill_worker},
          {"decode_worker", end.decode_worker},
          {"seed", choice.seed}};
}

}  // namespace switchyard
