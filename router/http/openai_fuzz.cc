// A fuzzer's entry to every parser of HTTP bodies: whatever the bytes are, the answer is a request
// or an error that is itself a well-formed answer.
#include <cstddef>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <string_view>

#include "common/check.h"
#include "common/fuzz_tally.h"
#include "router/fuzz_tokenizer.h"
#include "router/http/openai_request.h"
#include "router/http/openai_response.h"
#include "text/chat_template.h"

namespace {

constexpr char kTemplate[] =
    "{{ bos_token }}{% for m in messages %}{{ m.role }}:{% if m.content is string %}{{ m.content }}"
    "{% else %}{% for p in m.content or [] %}{{ p.text }}{% endfor %}{% endif %}{% for c in "
    "m.tool_calls or [] %}{{ c.function.name }}({{ c.function.arguments | tojson }}){% endfor %}"
    "{% endfor %}{% for t in tools or [] %}{{ t | tojson }}{% endfor %}";

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
  static const switchyard::ModelDescription model = switchyard::FuzzModel();
  static const auto tokenizer = switchyard::FuzzTokenizer();
  static const auto chat = *switchyard::ChatTemplate::Parse(kTemplate);
  const std::string_view body(reinterpret_cast<const char*>(data), size);
  const switchyard::RouterLimits limits;
  const ApiContext context = {
      .model = &model,
      .limits = &limits,
      .tokenizer = tokenizer.get(),
      .render_chat =
          [](const nlohmann::ordered_json& variables) { return chat->Render(variables); },
      .admit = nullptr};
  const auto completion = switchyard::ParseCompletion(body, context);
  const auto answer = switchyard::ParseChatCompletion(body, context);
  CheckRequest(completion, context);
  CheckRequest(answer, context);
  const auto ids = switchyard::ParseTokenize(body, context);
  if (!ids.ok()) CheckError(ids.status());
  const auto text = switchyard::ParseDetokenize(body, context);
  if (!text.ok()) CheckError(text.status());
  switchyard::FuzzTally::Get().Count(completion.ok() || answer.ok() || ids.ok() || text.ok(), body);
  return 0;
}
