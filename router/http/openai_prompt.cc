// Prompts: text, token ids, or messages put through the chat template.
#include <algorithm>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "router/http/openai_fields.h"
#include "router/http/openai_parse.h"
#include "router/validate.h"

namespace switchyard {
using Json = nlohmann::ordered_json;

absl::StatusOr<std::vector<TokenId>> ReadIds(std::string_view field, const Json& list,
                                             const ApiContext& context) {
  std::vector<TokenId> ids;
  ids.reserve(list.size());
  for (const Json& value : list) {
    if (!value.is_number_unsigned() ||
        value.get<uint64_t>() >= static_cast<uint64_t>(context.model->vocab_size)) {
      return FieldError(
          field, absl::StrCat(Shown(value), " at index ", ids.size(),
                              " is not a token id from 0 to ", context.model->vocab_size - 1));
    }
    ids.push_back(static_cast<TokenId>(value.get<uint64_t>()));
  }
  return ids;
}

namespace {

absl::StatusOr<std::vector<TokenId>> Encode(std::string_view field, std::string_view text,
                                            bool add_special_tokens, const Json& body,
                                            const ApiContext& context) {
  const auto cut = body.find("truncate_prompt_tokens");
  const bool truncated = cut != body.end() && !cut->is_null() && *cut != 0;
  return EncodePrompt(field, text, add_special_tokens, truncated, *context.model,
                      context.tokenizer);
}

// Keeps the last truncate_prompt_tokens ids; −1: what the context holds beside one new token.
absl::Status Fit(std::string_view field, const Json& body, const ApiContext& context,
                 std::vector<TokenId>* ids) {
  const int64_t most = context.model->max_model_len - 1;
  FieldReader fields(body);
  const int64_t asked = fields.Int("truncate_prompt_tokens", 0, -1, most);
  RETURN_IF_ERROR(fields.status());
  const size_t keep = static_cast<size_t>(asked == -1 ? most : asked);
  if (keep > 0 && ids->size() > keep) ids->erase(ids->begin(), ids->end() - keep);
  if (ids->empty()) return FieldError(field, "has no tokens");
  // The core checks it too, but before that a batch would hold copies.
  if (ids->size() > static_cast<size_t>(most)) {
    return FieldError(field, absl::StrCat("has ", ids->size(), " tokens, must have fewer than ",
                                          "max_model_len ", context.model->max_model_len));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<TokenId>> ReadPrompt(const Json& body, const Json& value,
                                                bool add_special_tokens,
                                                const ApiContext& context) {
  std::vector<TokenId> ids;
  if (value.is_string()) {
    ASSIGN_OR_RETURN(ids, Encode("prompt", value.get_ref<const std::string&>(), add_special_tokens,
                                 body, context));
  } else if (value.is_array() && !value.empty()) {
    ASSIGN_OR_RETURN(ids, ReadIds("prompt", value, context));
  } else {
    return FieldError("prompt", absl::StrCat(Shown(value), " is neither text nor token ids"));
  }
  RETURN_IF_ERROR(Fit("prompt", body, context, &ids));
  return ids;
}

// Content as one text: what templates of text models expect.
absl::StatusOr<std::string> ReadContent(const std::string& field, const Json& content) {
  if (content.is_string()) return content.get<std::string>();
  if (!content.is_array()) {
    return FieldError(field, absl::StrCat(Shown(content), " is neither text nor a list of parts"));
  }
  std::string text;
  for (size_t i = 0; i < content.size(); ++i) {
    const Json& part = content[i];
    if (!part.is_object() || part.value("type", Json()) != "text" ||
        !part.value("text", Json()).is_string()) {
      return FieldError(absl::StrCat(field, "[", i, "]"), "only parts of type text are supported");
    }
    absl::StrAppend(&text, i == 0 ? "" : "\n", part["text"].get_ref<const std::string&>());
  }
  return text;
}

// How templates take what the API leaves open; none tells. Most print a call's arguments as an
// object, where clients send its JSON; some join them to other text. Some ask whether the content
// beside calls is none, others take it for a text.
struct MessageForm {
  bool arguments_parsed, content_null;
};
// In the order in which they are tried. A text where null was meant can be taken for an answer's
// silently, so it comes last.
constexpr MessageForm kMessageForms[] = {{true, true}, {false, true}, {true, false}};

// `values_left`: of all arguments of the body, so that they cost no more than the body itself may.
absl::Status ParseArguments(const std::string& field, Json* message, size_t* values_left) {
  const auto calls = message->find("tool_calls");
  if (calls == message->end() || !calls->is_array()) return absl::OkStatus();
  for (Json& call : *calls) {
    if (!call.is_object() || !call.contains("function")) continue;
    Json& function = call["function"];
    if (!function.is_object() || !function.contains("arguments")) continue;
    Json& arguments = function["arguments"];
    if (arguments.is_null() || arguments == "") arguments = Json::object();
    if (!arguments.is_string()) continue;
    absl::StatusOr<Json> parsed =
        ParseJsonObject(arguments.get_ref<const std::string&>(), values_left);
    if (parsed.ok()) arguments = *std::move(parsed);  // else they stay text
    if (*values_left == 0) {
      return FieldError(field + ".tool_calls",
                        absl::StrCat("the arguments of all calls have more than ", kJsonValuesMax,
                                     " JSON values"));
    }
  }
  return absl::OkStatus();
}

// Null is what absence is, but templates ask whether a name is there.
Json WithoutNulls(Json message) {
  Json::object_t kept;
  for (auto& [name, value] : message.get_ref<Json::object_t&>()) {
    if (name != "content" && (value.is_null() || (name == "tool_calls" && value.empty()))) continue;
    kept.push_back({name, std::move(value)});  // unlike operator[], without a search
  }
  return kept;
}

absl::StatusOr<Json> ReadMessages(const Json& body, const MessageForm& form) {
  const auto it = body.find("messages");
  if (it == body.end() || !it->is_array() || it->empty()) {
    return FieldError("messages", "must be a list of at least one message");
  }
  Json out = *it;
  size_t values_left = kJsonValuesMax;
  for (size_t i = 0; i < out.size(); ++i) {
    const std::string field = absl::StrCat("messages[", i, "]");
    Json& message = out[i];
    if (!message.is_object()) {
      return FieldError(field, absl::StrCat(Shown(message), " is not an object"));
    }
    const Json role = message.value("role", Json());
    if (role != "system" && role != "developer" && role != "user" && role != "assistant" &&
        role != "tool") {
      return FieldError(
          field + ".role",
          absl::StrCat(Shown(role), " is none of system, developer, user, assistant, tool"));
    }
    message = WithoutNulls(std::move(message));
    if (form.arguments_parsed) {
      RETURN_IF_ERROR(ParseArguments(field, &message, &values_left));
    }
    const Json content = message.value("content", Json());
    if (content.is_null() && role == "assistant") {
      const bool keep = form.content_null && message.contains("tool_calls");
      message["content"] = keep ? Json() : Json("");
      continue;
    }
    ASSIGN_OR_RETURN(std::string text, ReadContent(field + ".content", content));
    message["content"] = std::move(text);
  }
  return out;
}

// What the template may use beside the messages.
absl::StatusOr<Json> ReadChatVariables(const Json& body) {
  FieldReader fields(body);
  Json chat = {{"tools", nullptr}, {"documents", nullptr}};
  if (const Json* more = fields.Find("chat_template_kwargs")) {
    if (!more->is_object()) {
      return FieldError("chat_template_kwargs", absl::StrCat(Shown(*more), " is not an object"));
    }
    chat.update(*more);
  }
  for (const char* name : {"tools", "documents"}) {
    const Json* list = fields.Find(name);
    if (list == nullptr || list->empty()) continue;
    if (!list->is_array()) return FieldError(name, absl::StrCat(Shown(*list), " is not a list"));
    chat[name] = *list;
  }
  return chat;
}

// The prompt ends where the last message's text does, so that the answer goes on from there. As
// transformers: a template may have trimmed the text.
absl::Status CutAfterLast(std::string_view last, std::string* text) {
  constexpr std::string_view kSpace = " \t\n\v\f\r";
  const size_t begin = std::min(last.find_first_not_of(kSpace), last.size());
  last.remove_prefix(begin);
  const std::string_view trimmed = last.substr(0, last.find_last_not_of(kSpace) + 1);
  const size_t at = text->rfind(trimmed);
  if (at == std::string::npos || trimmed.empty()) {
    return FieldError("continue_final_message",
                      "the last message's text does not stand in the prompt");
  }
  const bool whole = text->compare(at, last.size(), last) == 0;
  text->resize(at + (whole ? last.size() : trimmed.size()));
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::vector<std::vector<TokenId>>> ReadPrompts(const Json& body, int n,
                                                              const ApiContext& context) {
  FieldReader fields(body);
  const bool add_special_tokens = fields.Bool("add_special_tokens", true);
  RETURN_IF_ERROR(fields.status());
  const Json* value = fields.Find("prompt");
  if (value == nullptr) return FieldError("prompt", "is missing");
  std::vector<std::vector<TokenId>> out;
  const bool batch = value->is_array() && !value->empty() &&
                     (value->front().is_string() || value->front().is_array());
  if (!batch) {
    ASSIGN_OR_RETURN(out.emplace_back(), ReadPrompt(body, *value, add_special_tokens, context));
    return out;
  }
  if (value->size() > kPromptsMax) {
    return FieldError("prompt",
                      absl::StrCat(value->size(), " prompts are more than ", kPromptsMax));
  }
  if (value->size() * static_cast<size_t>(n) > kPromptsMax) {
    return FieldError("n", absl::StrCat(n, " samples of ", value->size(), " prompts are more than ",
                                        kPromptsMax, " choices"));
  }
  for (const Json& one : *value) {
    ASSIGN_OR_RETURN(out.emplace_back(), ReadPrompt(body, one, add_special_tokens, context));
  }
  return out;
}

absl::StatusOr<ChatText> RenderChat(const Json& body, const ApiContext& context) {
  ASSIGN_OR_RETURN(Json messages, ReadMessages(body, kMessageForms[0]));
  if (context.tokenizer == nullptr) {
    return FieldError("messages", "this checkpoint has no tokenizer: give token ids");
  }
  if (!context.render_chat) {
    return FieldError("messages", "this checkpoint has no chat template: use /v1/completions");
  }
  FieldReader fields(body);
  const bool continue_last = fields.Bool("continue_final_message", false);
  const bool generation_prompt = fields.Bool("add_generation_prompt", true);
  const bool add_special_tokens = fields.Bool("add_special_tokens", false);
  RETURN_IF_ERROR(fields.status());
  if (continue_last && generation_prompt) {
    return FieldError("continue_final_message", "needs add_generation_prompt false");
  }
  ASSIGN_OR_RETURN(Json chat, ReadChatVariables(body));
  chat["add_generation_prompt"] = generation_prompt;
  const Json content = messages.back()["content"];
  chat["messages"] = std::move(messages);
  absl::StatusOr<std::string> text = context.render_chat(chat);
  const absl::Status first = text.status();
  for (const MessageForm& form : kMessageForms) {
    if (text.ok()) break;
    ASSIGN_OR_RETURN(messages, ReadMessages(body, form));
    if (messages == chat["messages"]) continue;  // has failed
    chat["messages"] = std::move(messages);
    text = context.render_chat(chat);
  }
  if (!text.ok()) return FieldError("messages", std::string(first.message()));
  if (continue_last) {
    RETURN_IF_ERROR(CutAfterLast(content.is_null() ? "" : content.get<std::string>(), &*text));
  }
  return ChatText{*std::move(text), add_special_tokens};
}

absl::StatusOr<std::vector<TokenId>> ReadChatPrompt(const Json& body, const ApiContext& context) {
  ASSIGN_OR_RETURN(const ChatText chat, RenderChat(body, context));
  ASSIGN_OR_RETURN(std::vector<TokenId> ids,
                   Encode("messages", chat.text, chat.add_special_tokens, body, context));
  RETURN_IF_ERROR(Fit("messages", body, context, &ids));
  return ids;
}

}  // namespace switchyard
