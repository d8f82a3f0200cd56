// A fuzzer's entry to every parser of HTTP bodies: whatever the bytes are, the answer is a request
// or an error that is itself a well-formed answer.
#include <cstddef>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <string_view>

#include "common/check.h"
#include "router/http/openai_request.h"
#include "router/http/openai_response.h"

namespace {

using switchyard::ApiContext;
using switchyard::ApiRequest;

void CheckError(const absl::Status& status) {
  const switchyard::HttpResponse response = switchyard::ErrorResponse(status);
  SY_CHECK(response.status == 400 || response.status == 404);
  SY_CHECK(nlohmann::json::parse(response.body)["error"]["message"].is_string());
}

void CheckRequest(const absl::StatusOr<ApiRequest>& request, const ApiContext& context) {
  if (!request.ok()) return CheckError(request.status());
  SY_CHECK(!request->choices.empty());
  for (const switchyard::ClientRequest& choice : request->choices) {
    SY_CHECK(!choice.prompt_ids.empty() && choice.max_tokens >= 1);
    SY_CHECK(choice.sampling.temperature >= 0 && choice.sampling.top_k >= 0);
    SY_CHECK(choice.sampling.top_p > 0 && choice.sampling.top_p <= 1);
    SY_CHECK(choice.sampling.logprobs <= context.limits->logprobs_max);
    for (const switchyard::TokenId id : choice.prompt_ids) {
      SY_CHECK(id >= 0 && id < context.model->vocab_size);
    }
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view body(reinterpret_cast<const char*>(data), size);
  switchyard::ModelDescription model;
  model.id = "m";
  model.vocab_size = 100;
  model.max_model_len = 64;
  const switchyard::RouterLimits limits;
  const ApiContext context = {.model = &model,
                              .limits = &limits,
                              .tokenizer = nullptr,
                              .render_chat = nullptr,
                              .admit = nullptr};
  CheckRequest(switchyard::ParseCompletion(body, context), context);
  CheckRequest(switchyard::ParseChatCompletion(body, context), context);
  if (const auto ids = switchyard::ParseTokenize(body, context); !ids.ok()) {
    CheckError(ids.status());
  }
  if (const auto text = switchyard::ParseDetokenize(body, context); !text.ok()) {
    CheckError(text.status());
  }
  return 0;
}
