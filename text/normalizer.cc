#include "text/normalizer.h"

#include <utf8proc.h>

#include <algorithm>
#include <cstdlib>
#include <memory>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "text/pattern.h"

namespace switchyard {
namespace {

bool IsAscii(std::string_view text) {
  return std::all_of(text.begin(), text.end(), [](char c) { return (c & 0x80) == 0; });
}

absl::StatusOr<std::string> ToUnicodeForm(std::string_view text, int options) {
  struct Free {
    void operator()(utf8proc_uint8_t* p) const { std::free(p); }
  };
  utf8proc_uint8_t* raw = nullptr;
  const utf8proc_ssize_t size =
      utf8proc_map(reinterpret_cast<const utf8proc_uint8_t*>(text.data()), text.size(), &raw,
                   static_cast<utf8proc_option_t>(options));
  std::unique_ptr<utf8proc_uint8_t, Free> owned(raw);
  if (size < 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("Unicode normalization: ", utf8proc_errmsg(size)));
  }
  return std::string(reinterpret_cast<const char*>(raw), size);
}

absl::StatusOr<std::string> ReplaceAll(const Regex& pattern, const std::string& content,
                                       const std::string& text) {
  ASSIGN_OR_RETURN(const std::vector<TextRange> matches, pattern.FindAll(text));
  std::string out;
  size_t copied = 0;
  for (const TextRange& m : matches) {
    out.append(text, copied, m.begin - copied);
    out.append(content);
    copied = m.end;
  }
  out.append(text, copied);
  return out;
}

}  // namespace

absl::StatusOr<Normalizer> Normalizer::Parse(std::optional<Json> json) {
  Normalizer normalizer;
  if (!json) return normalizer;
  RETURN_IF_ERROR(VisitSequence(
      *json, "normalizer", "normalizers",
      [&](Json step, std::string_view type) { return normalizer.AddStep(step, type); }));
  return normalizer;
}

absl::Status Normalizer::AddStep(Json json, std::string_view type) {
  constexpr int kCompose = UTF8PROC_STABLE | UTF8PROC_COMPOSE;
  constexpr int kDecompose = UTF8PROC_STABLE | UTF8PROC_DECOMPOSE;
  if (type == "NFC") {
    steps_.emplace_back(UnicodeForm{kCompose});
  } else if (type == "NFD") {
    steps_.emplace_back(UnicodeForm{kDecompose});
  } else if (type == "NFKC") {
    steps_.emplace_back(UnicodeForm{kCompose | UTF8PROC_COMPAT});
  } else if (type == "NFKD") {
    steps_.emplace_back(UnicodeForm{kDecompose | UTF8PROC_COMPAT});
  } else if (type == "Prepend") {
    ASSIGN_OR_RETURN(std::string_view prefix, StringField(json, "normalizer Prepend", "prepend"));
    steps_.emplace_back(Prepend{std::string(prefix)});
  } else if (type == "Replace") {
    ASSIGN_OR_RETURN(Regex pattern, ParsePattern(json, "normalizer Replace"));
    ASSIGN_OR_RETURN(std::string_view content, StringField(json, "normalizer Replace", "content"));
    steps_.emplace_back(Replace{std::move(pattern), std::string(content)});
  } else {
    return Unsupported("normalizer", "type", type,
                       "NFC, NFD, NFKC, NFKD, Prepend, Replace, Sequence");
  }
  return absl::OkStatus();
}

absl::StatusOr<std::string> Normalizer::Apply(std::string text) const {
  if (text.empty()) return text;
  for (const auto& step : steps_) {
    if (const auto* form = std::get_if<UnicodeForm>(&step)) {
      if (IsAscii(text)) continue;
      ASSIGN_OR_RETURN(text, ToUnicodeForm(text, form->utf8proc_options));
    } else if (const auto* prepend = std::get_if<Prepend>(&step)) {
      text.insert(0, text.empty() ? "" : prepend->prefix);
    } else if (const auto* replace = std::get_if<Replace>(&step)) {
      ASSIGN_OR_RETURN(text, ReplaceAll(replace->pattern, replace->content, text));
    }
  }
  return text;
}

}  // namespace switchyard
