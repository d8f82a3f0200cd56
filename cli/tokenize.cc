// switchyard tokenize, switchyard detokenize: JSON lines on stdin to JSON lines on stdout.
#include <functional>
#include <iostream>
#include <nlohmann/json.hpp>

#include "cli/command.h"
#include "cli/flags.h"
#include "common/status_macros.h"
#include "text/tokenizer.h"

namespace switchyard {
namespace {

using Json = nlohmann::json;

absl::StatusOr<bool> BoolField(const Json& line, const char* name, bool otherwise) {
  const auto it = line.find(name);
  if (it == line.end() || it->is_null()) return otherwise;
  if (!it->is_boolean()) {
    return absl::InvalidArgumentError(
        absl::StrCat(name, " is ", it->dump(), ", not true or false"));
  }
  return it->get<bool>();
}

absl::StatusOr<Json> Tokenize(const Tokenizer& tokenizer, const Json& line) {
  const auto text = line.find("text");
  if (text == line.end() || !text->is_string()) {
    return absl::InvalidArgumentError("text: a string is wanted");
  }
  ASSIGN_OR_RETURN(const bool special, BoolField(line, "add_special_tokens", true));
  ASSIGN_OR_RETURN(const auto ids, tokenizer.Encode(text->get_ref<const std::string&>(), special));
  return Json{{"ids", ids}};
}

absl::StatusOr<Json> Detokenize(const Tokenizer& tokenizer, const Json& line) {
  const auto ids = line.find("ids");
  if (ids == line.end() || !ids->is_array()) {
    return absl::InvalidArgumentError("ids: a list of token ids is wanted");
  }
  std::vector<TokenId> tokens;
  for (const Json& id : *ids) {
    if (!id.is_number_integer() || id < 0 || id > INT32_MAX) {
      return absl::InvalidArgumentError(
          absl::StrCat("ids[", tokens.size(), "] is ", id.dump(), ", not a token id"));
    }
    tokens.push_back(id.get<TokenId>());
  }
  ASSIGN_OR_RETURN(const bool skip, BoolField(line, "skip_special_tokens", true));
  ASSIGN_OR_RETURN(const std::string text, tokenizer.Decode(tokens, skip));
  return Json{{"text", text}};
}

class LinesCommand final : public Command {
 public:
  using Convert = absl::StatusOr<Json> (*)(const Tokenizer&, const Json&);
  LinesCommand(std::string name, std::string help, Convert convert)
      : name_(std::move(name)), help_(std::move(help)), convert_(convert) {}
  std::string name() const override { return name_; }
  std::string help() const override { return help_; }

  void AddFlags(CLI::App& app) override {
    app.add_option("model,--model", model_, "a checkpoint's directory or a tokenizer.json")
        ->check(CLI::ExistingPath)
        ->option_text("MODEL");
  }
  absl::Status CheckFlags() const override { return CheckModelGiven(model_); }

  // A line that cannot be converted gives {"error": …}, and 1 in the end.
  absl::StatusOr<int> Run(const CLI::App&) override {
    ASSIGN_OR_RETURN(const std::unique_ptr<Tokenizer> tokenizer, Tokenizer::Load(model_));
    int code = 0;
    for (std::string text; std::getline(std::cin, text);) {
      if (text.find_first_not_of(" \t\r") == std::string::npos) continue;
      const Json line = Json::parse(text, nullptr, /*allow_exceptions=*/false);
      absl::StatusOr<Json> out = absl::InvalidArgumentError("not a JSON object");
      if (line.is_object()) out = convert_(*tokenizer, line);
      if (!out.ok()) {
        code = 1;
        out = Json{{"error", std::string(out.status().message())}};
      }
      std::cout << out->dump(-1, ' ', false, Json::error_handler_t::replace) << "\n" << std::flush;
    }
    return code;
  }

 private:
  const std::string name_, help_;
  const Convert convert_;
  std::string model_;
};

}  // namespace

std::unique_ptr<Command> MakeTokenize() {
  return std::make_unique<LinesCommand>("tokenize",
                                        R"(JSON lines {"text": …} in, {"ids": […]} out)", Tokenize);
}
std::unique_ptr<Command> MakeDetokenize() {
  return std::make_unique<LinesCommand>(
      "detokenize", R"(JSON lines {"ids": […]} in, {"text": …} out)", Detokenize);
}

}  // namespace switchyard
