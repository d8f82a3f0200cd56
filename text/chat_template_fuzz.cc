// Fuzz entry: a chat template from anywhere, rendered for a fixed conversation.
#include <cstddef>
#include <cstdint>

#include "text/chat_template.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const auto chat = switchyard::ChatTemplate::Parse({reinterpret_cast<const char*>(data), size});
  if (!chat.ok()) return 0;
  const nlohmann::json context = {{"messages", {{{"role", "user"}, {"content", "h\u00e9llo"}}}},
                                  {"bos_token", "<s>"}};
  (void)(*chat)->Render(context);
  return 0;
}
