#include "engine/requests_file.h"

#include <charconv>
#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>
#include <set>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "common/status_macros.h"

namespace switchyard {
namespace {

using Json = nlohmann::json;

constexpr size_t kLineBytesMax = size_t{16} << 20;
constexpr size_t kRequestsMax = size_t{1} << 20;

// A value as it stands in the file, cut to a readable length.
std::string Show(const Json& value) {
  if (value.is_array()) return absl::StrCat("an array of ", value.size());  // of any depth
  if (value.is_object()) return absl::StrCat("an object of ", value.size());
  std::string text = value.dump(-1, ' ', true, Json::error_handler_t::replace);
  if (text.size() > 60) text = text.substr(0, 60) + "…";
  return text;
}

absl::Status Wanted(const std::string& field, const Json& value, const char* wanted) {
  return absl::InvalidArgumentError(absl::StrCat(field, " is ", Show(value), "; ", wanted));
}

template <typename T>
absl::Status ReadInteger(const std::string& field, const Json& v, T* out) {
  constexpr auto kMax = static_cast<uint64_t>(std::numeric_limits<T>::max());
  constexpr auto kMin = static_cast<int64_t>(std::numeric_limits<T>::min());
  if (v.is_number_unsigned() && v.get<uint64_t>() <= kMax) {
    *out = static_cast<T>(v.get<uint64_t>());
  } else if (v.is_number_integer() && !v.is_number_unsigned() && v.get<int64_t>() >= kMin &&
             v.get<int64_t>() < 0) {
    *out = static_cast<T>(v.get<int64_t>());
  } else {
    return absl::InvalidArgumentError(absl::StrCat(field, " is ", Show(v), "; an integer from ",
                                                   kMin, " to ", kMax, " is wanted"));
  }
  return absl::OkStatus();
}

absl::Status ReadFloat(const std::string& field, const Json& v, float* out) {
  if (!v.is_number() || std::abs(v.get<double>()) > std::numeric_limits<float>::max()) {
    return Wanted(field, v, "a number is wanted");
  }
  *out = static_cast<float>(v.get<double>());
  return absl::OkStatus();
}

absl::Status ReadString(const std::string& field, const Json& v, std::string* out) {
  if (!v.is_string()) return Wanted(field, v, "a string is wanted");
  *out = v.get<std::string>();
  return absl::OkStatus();
}

absl::Status ReadBool(const std::string& field, const Json& v, bool* out) {
  if (!v.is_boolean()) return Wanted(field, v, "true or false is wanted");
  *out = v.get<bool>();
  return absl::OkStatus();
}

absl::Status ReadIds(const std::string& field, const Json& v, std::vector<TokenId>* out) {
  if (!v.is_array()) return Wanted(field, v, "an array of token ids is wanted");
  out->clear();
  out->reserve(v.size());
  for (const Json& id : v) {
    out->emplace_back();
    RETURN_IF_ERROR(
        ReadInteger(field + "[" + std::to_string(out->size() - 1) + "]", id, &out->back()));
  }
  return absl::OkStatus();
}

absl::Status ReadLogitBias(const Json& v, SamplingParams* out) {
  if (!v.is_object()) return Wanted("logit_bias", v, "an object of token ids is wanted");
  for (const auto& [name, bias] : v.items()) {
    auto& [token, value] = out->logit_bias.emplace_back();
    if (!absl::SimpleAtoi(name, &token)) {
      return Wanted("logit_bias", Json(name), "a token id is wanted");
    }
    RETURN_IF_ERROR(ReadFloat("logit_bias." + name, bias, &value));
  }
  return absl::OkStatus();
}

absl::Status ReadPrompt(const Json& v, FileRequest* out) {
  if (!v.is_string()) return ReadIds("prompt", v, &out->request.prompt_ids);
  out->text = v.get<std::string>();
  return absl::OkStatus();
}

absl::Status ReadField(const std::string& name, const Json& v, FileRequest* out) {
  EngineRequest& r = out->request;
  if (v.is_null()) return absl::OkStatus();
  if (name == "id") return ReadString(name, v, &r.key.request);
  if (name == "prompt") return ReadPrompt(v, out);
  if (name == "prompt_ids") return absl::OkStatus();  // after `prompt`, over which it wins
  if (name == "max_tokens") return ReadInteger(name, v, &r.max_tokens);
  if (name == "temperature") return ReadFloat(name, v, &r.sampling.temperature);
  if (name == "top_k") return ReadInteger(name, v, &r.sampling.top_k);
  if (name == "top_p") return ReadFloat(name, v, &r.sampling.top_p);
  if (name == "min_p") return ReadFloat(name, v, &r.sampling.min_p);
  if (name == "presence_penalty") return ReadFloat(name, v, &r.sampling.presence_penalty);
  if (name == "frequency_penalty") return ReadFloat(name, v, &r.sampling.frequency_penalty);
  if (name == "repetition_penalty") return ReadFloat(name, v, &r.sampling.repetition_penalty);
  if (name == "logit_bias") return ReadLogitBias(v, &r.sampling);
  if (name == "sample") return ReadInteger(name, v, &r.sampling.sample);
  if (name == "cache_salt") return ReadString(name, v, &r.cache_salt);
  if (name == "min_tokens") return ReadInteger(name, v, &r.min_tokens);
  if (name == "seed") return ReadInteger(name, v, &r.sampling.seed);
  if (name == "logprobs") return ReadInteger(name, v, &r.sampling.logprobs);
  if (name == "prompt_logprobs") return ReadInteger(name, v, &r.prompt_logprobs);
  if (name == "stop_token_ids") return ReadIds(name, v, &r.stop_token_ids);
  if (name == "ignore_eos") return ReadBool(name, v, &r.ignore_eos);
  if (name == "priority") return ReadInteger(name, v, &r.priority);
  return absl::InvalidArgumentError(absl::StrCat("unknown field ", Show(Json(name))));
}

absl::StatusOr<FileRequest> ParseLine(std::string_view line, size_t number) {
  if (line.size() > kLineBytesMax) {
    return absl::InvalidArgumentError(
        absl::StrCat("has ", line.size(), " bytes; at most ", kLineBytesMax, " are allowed"));
  }
  const Json json = Json::parse(line.begin(), line.end(), nullptr, /*allow_exceptions=*/false);
  if (!json.is_object()) return absl::InvalidArgumentError("is not a JSON object");
  FileRequest out;
  out.request.key.request = std::to_string(number);
  for (const auto& [name, value] : json.items()) RETURN_IF_ERROR(ReadField(name, value, &out));
  if (const auto ids = json.find("prompt_ids"); ids != json.end() && !ids->is_null()) {
    out.text.reset();
    RETURN_IF_ERROR(ReadIds("prompt_ids", *ids, &out.request.prompt_ids));
  }
  EngineRequest checked = out.request;
  if (out.text) checked.prompt_ids = {0};  // not known yet
  RETURN_IF_ERROR(CheckRequest(checked));
  return out;
}

void AppendFloat(float value, std::string* out) {
  char text[32];
  out->append(text, std::to_chars(text, text + sizeof(text), value).ptr);
}

std::string Quoted(const std::string& text) {
  return Json(text).dump(-1, ' ', false, Json::error_handler_t::replace);
}

// ,"name":[item,item,…]
template <typename Items, typename Print>
void AppendArray(absl::string_view name, const Items& items, Print print, std::string* out) {
  absl::StrAppend(out, ",\"", name, "\":[");
  bool first = true;
  for (const auto& item : items) {
    if (!first) out->push_back(',');
    first = false;
    print(item);
  }
  out->push_back(']');
}

const char* NameOf(FinishReason finish) {
  switch (finish) {
    case FinishReason::kStop:
      return "stop";
    case FinishReason::kLength:
      return "length";
    case FinishReason::kAborted:
      return "abort";
    case FinishReason::kError:
      return "error";
    case FinishReason::kNone:
      break;
  }
  return "none";
}

}  // namespace

absl::StatusOr<std::vector<FileRequest>> ParseRequests(std::string_view json_lines) {
  std::vector<FileRequest> requests;
  std::set<std::string> ids;
  for (size_t number = 1; !json_lines.empty(); ++number) {
    const size_t end = std::min(json_lines.find('\n'), json_lines.size());
    const std::string_view line = json_lines.substr(0, end);
    json_lines.remove_prefix(std::min(end + 1, json_lines.size()));
    if (line.find_first_not_of(" \t\r") == std::string_view::npos) continue;
    auto request = ParseLine(line, number);
    if (request.ok() && !ids.insert(request->request.key.request).second) {
      request = absl::InvalidArgumentError(
          absl::StrCat("id ", Quoted(request->request.key.request), " is used before"));
    }
    if (request.ok() && requests.size() == kRequestsMax) {
      request = absl::InvalidArgumentError(
          absl::StrCat("more than ", kRequestsMax, " requests in one file"));
    }
    if (!request.ok()) {
      return absl::InvalidArgumentError(
          absl::StrCat("line ", number, ": ", request.status().message()));
    }
    requests.push_back(*std::move(request));
  }
  return requests;
}

std::string FormatResult(const FileResult& result, const EngineRequest& request) {
  std::string out =
      absl::StrCat("{\"id\":", Quoted(result.id), ",\"prompt_tokens\":", result.prompt_tokens);
  const auto logprob = [&out](const auto& t) { AppendFloat(t.logprob, &out); };
  AppendArray(
      "token_ids", result.tokens, [&out](const SampledToken& t) { absl::StrAppend(&out, t.token); },
      &out);
  if (request.sampling.logprobs >= 0) {
    AppendArray("logprobs", result.tokens, logprob, &out);
    AppendArray(
        "ranks", result.tokens, [&out](const SampledToken& t) { absl::StrAppend(&out, t.rank); },
        &out);
  }
  if (request.sampling.logprobs > 0) {
    AppendArray(
        "top_logprobs", result.tokens,
        [&out](const SampledToken& t) {
          const char* separator = "[";
          for (const TokenLogprob& top : t.top) {
            absl::StrAppend(&out, separator, "{\"id\":", top.token, ",\"logprob\":");
            AppendFloat(top.logprob, &out);
            out.push_back('}');
            separator = ",";
          }
          out.append(t.top.empty() ? "[]" : "]");
        },
        &out);
  }
  if (request.prompt_logprobs >= 0) {
    std::vector<std::optional<float>> scores = {std::nullopt};  // nothing precedes the first token
    for (const SampledToken& t : result.prompt_logprobs) scores.push_back(t.logprob);
    AppendArray(
        "prompt_logprobs", scores,
        [&out](const std::optional<float>& score) {
          if (score) return AppendFloat(*score, &out);
          out.append("null");
        },
        &out);
  }
  absl::StrAppend(&out, ",\"finish_reason\":\"", NameOf(result.finish), "\"");
  if (result.finish == FinishReason::kError) {
    absl::StrAppend(&out, ",\"error\":", Quoted(std::string(result.error.message())));
  }
  return out + "}\n";
}

}  // namespace switchyard
