// text/chat_template.h: a checkpoint's chat template: messages -> prompt text. An interpreter for
// the part of Jinja that chat templates use, configured as transformers does (trim_blocks,
// lstrip_blocks, loop controls, raise_exception, tojson without escapes).
#pragma once

#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"

namespace switchyard {

// Immutable and thread-safe.
class ChatTemplate {
 public:
  ~ChatTemplate();

  // kInvalidArgument names the line: syntax, or what is not supported. At most 1 MiB.
  static absl::StatusOr<std::unique_ptr<ChatTemplate>> Parse(std::string_view source);

  // `context`: an object with the template's variables (messages, add_generation_prompt, tools,
  // bos_token, …). nlohmann::json sorts keys, ordered_json keeps the client's order, which shows
  // where a template prints an object. Errors: kInvalidArgument with the line, also for what the
  // template itself raises; kResourceExhausted past 1,000,000 steps or 16 MiB.
  // `now`: what strftime_now tells, in local time.
  absl::StatusOr<std::string> Render(const nlohmann::json& context,
                                     absl::Time now = absl::Now()) const;
  absl::StatusOr<std::string> Render(const nlohmann::ordered_json& context,
                                     absl::Time now = absl::Now()) const;

 private:
  struct Program;
  explicit ChatTemplate(std::unique_ptr<const Program> program);
  template <typename J>
  absl::StatusOr<std::string> RenderJson(const J& context, absl::Time now) const;

  std::unique_ptr<const Program> program_;
};

// The template of `model_dir`: chat_template.jinja, else chat_template in tokenizer_config.json (a
// string, or the entry called "default" of a list). *special_tokens becomes an object with
// bos_token, eos_token, unk_token and pad_token, as far as tokenizer_config.json has them: merge it
// into the context. kNotFound if there is no template.
absl::StatusOr<std::unique_ptr<ChatTemplate>> LoadChatTemplate(const std::string& model_dir,
                                                               nlohmann::json* special_tokens);

}  // namespace switchyard
