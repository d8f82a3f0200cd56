// router/http/openai_response.h: the router's updates to the OpenAI API's answers, whole or as a
// stream of server-sent events.
#pragma once

#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "common/net/http_server.h"
#include "router/http/openai_request.h"

namespace switchyard {

// The HTTP answer to an error: status, Retry-After, and the field that it is about.
HttpResponse ErrorResponse(const absl::Status& status);
// Adds X-Request-Id. An id that is no header's value (a client may choose any) is left out.
HttpResponse WithRequestId(const std::string& id, HttpResponse response);

// `value` as the double whose shortest decimal form is the float's own: what a client parses and
// casts to float has the same bits, and no false digits are shown.
double ShortestDouble(float value);

// The answer to one ApiRequest as it comes together. A stream and a whole answer are made by the
// same code: a whole one is a stream of a single chunk per choice. Not thread-safe.
class ApiAnswer {
 public:
  // `tokenizer` may be null and must outlive the answer.
  ApiAnswer(ApiRequest request, std::string id, std::string model, int64_t created_unix_seconds,
            const Tokenizer* tokenizer);

  const ApiRequest& request() const { return request_; }
  // Takes an update of one choice. For a stream the events to send now; else empty.
  std::string Take(size_t choice, ClientUpdate update);
  // Every choice has ended.
  bool done() const { return open_ == 0; }
  // The first choice's error, if one had one.
  const absl::Status& error() const { return error_; }
  // Of a whole answer that is done without error.
  std::string Body();
  // Of a stream that is done: usage if asked for, and [DONE].
  std::string Tail() const;

 private:
  using Json = nlohmann::ordered_json;
  struct Choice {
    bool begun = false, ended = false;
    ClientUpdate whole;  // of an answer that is not a stream
    ClientUpdate end;    // what came with the end
    uint64_t seed = 0;
    size_t completion_tokens = 0;
    // Follows the text, to know where in it a token begins.
    std::optional<DetokenizerStream> position;
    size_t characters = 0;  // of the text so far
  };

  Json Frame(bool chunk) const;
  Json ChoiceJson(size_t index, const ClientUpdate& update);
  Json CompletionLogprobs(size_t index, bool first, const ClientUpdate& update);
  Json ChatLogprobs(const ClientUpdate& update) const;
  Json PromptLogprobs(const ClientUpdate& update) const;
  std::string EchoText(size_t index) const;
  void AddPrompt(size_t index, const std::vector<SampledToken>& logprobs, Json* out);
  void AddToken(Choice* choice, const SampledToken& token, bool known, Json* out) const;
  std::string TokenText(TokenId id) const;
  Json Usage() const;
  Json Cost(const Choice& choice) const;

  ApiRequest request_;
  const std::string id_, model_;
  const int64_t created_unix_seconds_;
  const Tokenizer* const tokenizer_;
  std::vector<Choice> choices_;
  size_t open_;
  absl::Status error_;
};

}  // namespace switchyard
