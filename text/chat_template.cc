#include "text/chat_template.h"

#include "absl/strings/str_cat.h"
#include "common/file.h"
#include "common/status_macros.h"
#include "text/jinja_interpreter.h"
#include "text/jinja_parser.h"
#include "text/utf8.h"

namespace switchyard {
namespace {

constexpr size_t kSourceBytesMax = 1 << 20;
constexpr size_t kConfigBytesMax = 64 << 20;  // some list every special token

// The template's source in tokenizer_config.json, or nothing.
const nlohmann::json* FindTemplate(const nlohmann::json& config) {
  const auto it = config.find("chat_template");
  if (it == config.end()) return nullptr;
  if (it->is_string()) return &*it;
  if (!it->is_array()) return nullptr;
  for (const auto& entry : *it) {
    if (!entry.is_object() || !entry.contains("name") || entry["name"] != "default") continue;
    if (entry.contains("template") && entry["template"].is_string()) return &entry["template"];
  }
  return nullptr;
}

nlohmann::json SpecialTokens(const nlohmann::json& config) {
  nlohmann::json tokens = nlohmann::json::object();
  for (const char* key : {"bos_token", "eos_token", "unk_token", "pad_token"}) {
    const auto it = config.find(key);
    if (it == config.end()) continue;
    if (it->is_string()) tokens[key] = *it;
    if (it->is_object() && it->contains("content") && (*it)["content"].is_string()) {
      tokens[key] = (*it)["content"];
    }
  }
  return tokens;
}

}  // namespace

struct ChatTemplate::Program {
  std::vector<jinja::Stmt> body;
};

ChatTemplate::ChatTemplate(std::unique_ptr<const Program> program) : program_(std::move(program)) {}
ChatTemplate::~ChatTemplate() = default;

absl::StatusOr<std::unique_ptr<ChatTemplate>> ChatTemplate::Parse(std::string_view source) {
  if (source.size() > kSourceBytesMax) {
    return absl::InvalidArgumentError(
        absl::StrCat("chat template of ", source.size(), " bytes; the limit is ", kSourceBytesMax));
  }
  if (const size_t bad = FindInvalidUtf8(source); bad != source.npos) {
    return absl::InvalidArgumentError(absl::StrCat("chat template is not UTF-8 at byte ", bad));
  }
  auto program = std::make_unique<Program>();
  ASSIGN_OR_RETURN(program->body, jinja::ParseTemplate(source));
  return std::unique_ptr<ChatTemplate>(new ChatTemplate(std::move(program)));
}

template <typename J>
absl::StatusOr<std::string> ChatTemplate::RenderJson(const J& context, absl::Time now) const {
  if (!context.is_object()) {
    return absl::InvalidArgumentError("chat template: the context is not an object");
  }
  ASSIGN_OR_RETURN(const jinja::Value values, jinja::FromJson(context));
  return jinja::Interpreter(*values.AsDict(), now).Run(program_->body);
}

absl::StatusOr<std::string> ChatTemplate::Render(const nlohmann::json& context,
                                                 absl::Time now) const {
  return RenderJson(context, now);
}

absl::StatusOr<std::string> ChatTemplate::Render(const nlohmann::ordered_json& context,
                                                 absl::Time now) const {
  return RenderJson(context, now);
}

absl::StatusOr<std::unique_ptr<ChatTemplate>> LoadChatTemplate(const std::string& model_dir,
                                                               nlohmann::json* special_tokens) {
  nlohmann::json config = nlohmann::json::object();
  const std::string path = model_dir + "/tokenizer_config.json";
  const absl::StatusOr<std::string> text = ReadFile(path, kConfigBytesMax);
  if (text.ok()) {
    config = nlohmann::json::parse(*text, nullptr, /*allow_exceptions=*/false);
    if (!config.is_object()) {
      return absl::InvalidArgumentError(absl::StrCat(path, " is not a JSON object"));
    }
  } else if (!absl::IsNotFound(text.status())) {
    return text.status();
  }
  *special_tokens = SpecialTokens(config);
  const absl::StatusOr<std::string> file =
      ReadFile(model_dir + "/chat_template.jinja", kSourceBytesMax);
  if (file.ok()) return ChatTemplate::Parse(*file);
  if (!absl::IsNotFound(file.status())) return file.status();
  if (const nlohmann::json* source = FindTemplate(config)) {
    return ChatTemplate::Parse(source->get_ref<const std::string&>());
  }
  return absl::NotFoundError(absl::StrCat("there is no chat template in ", model_dir));
}

}  // namespace switchyard
