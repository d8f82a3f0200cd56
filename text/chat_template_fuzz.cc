// Fuzz entry: a chat template from anywhere, rendered for a conversation with everything that
// templates look at: a system message, tools and their calls, reasoning, parts of content.
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "common/fuzz_tally.h"
#include "text/chat_template.h"

namespace {

constexpr char kContext[] = R"({
  "messages": [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "h\u00e9llo <b>"},
    {"role": "assistant", "content": null, "reasoning_content": "hm",
     "tool_calls": [{"type": "function", "id": "c1",
                     "function": {"name": "f", "arguments": {"x": 1, "y": [1.5, true, null]}}}]},
    {"role": "tool", "content": "4", "tool_call_id": "c1"},
    {"role": "assistant", "content": "<think>a</think> Four."},
    {"role": "user", "content": [{"type": "text", "text": "And now?"}]}],
  "tools": [{"type": "function", "function": {"name": "f", "description": "d",
    "parameters": {"type": "object", "properties": {"x": {"type": "integer"}}}}}],
  "documents": null, "add_generation_prompt": true, "enable_thinking": false,
  "bos_token": "<s>", "eos_token": "</s>"})";

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const auto context = nlohmann::ordered_json::parse(kContext);
  const std::string_view source(reinterpret_cast<const char*>(data), size);
  const auto chat = switchyard::ChatTemplate::Parse(source);
  switchyard::FuzzTally::Get().Count(chat.ok(), source);
  if (chat.ok()) (void)(*chat)->Render(context, absl::UnixEpoch());
  return 0;
}
