#include "text/normalizer.h"

#include <utf8proc.h>

#include <algorithm>
#include <cstdlib>
#include <memory>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "text/pattern.h"
#include "text/utf8.h"

namespace switchyard {
namespace {

constexpr size_t kStepsMax = 64;
// Four bytes of a mathematical letter become one of ASCII, 3 × 3 of Hangul 3; no character becomes
// nothing.
constexpr size_t kUnicodeShrinkMax = 4;

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

// What takes a match's place stems from where the match's last character does.
absl::StatusOr<std::string> ReplaceAll(const Regex& pattern, const std::string& content,
                                       const std::string& text, size_t* head) {
  ASSIGN_OR_RETURN(const std::vector<TextRange> matches, pattern.FindAll(text));
  std::string out;
  size_t copied = 0, new_head = 0;
  const auto copy_until = [&](size_t end) {
    out.append(text, copied, end - copied);
    if (copied < *head) new_head = out.size() - (end - std::min(end, *head));
    copied = end;
  };
  for (const TextRange& m : matches) {
    copy_until(m.begin);
    out.append(content);
    if (*head > 0 && m.end <= *head) new_head = out.size();
    copied = m.end;
    if (out.size() > kTextBytesMax) {
      return absl::InvalidArgumentError(
          absl::StrCat("the normalized text is longer than ", kTextBytesMax, " bytes, the limit"));
    }
  }
  copy_until(text.size());
  *head = new_head;
  return out;
}

// The offset behind the first `count` characters, at most the size.
size_t OffsetBehind(std::string_view text, size_t count) {
  size_t at = 0;
  for (; count > 0 && at < text.size(); --count) at += FirstCodePoint(text.substr(at)).length;
  return at;
}

// A composed character stems from where its first part does.
absl::StatusOr<std::string> ApplyUnicodeForm(const std::string& text, int options, size_t* head) {
  ASSIGN_OR_RETURN(const std::string first,
                   ToUnicodeForm(std::string_view(text).substr(0, *head), options));
  ASSIGN_OR_RETURN(std::string out, ToUnicodeForm(text, options));
  *head = OffsetBehind(out, CountCodePoints(first));
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
    RETURN_IF_ERROR(CheckContent("normalizer Prepend", "prepend", prefix));
    steps_.emplace_back(Prepend{std::string(prefix)});
  } else if (type == "Replace") {
    ASSIGN_OR_RETURN(Regex pattern, ParsePattern(json, "normalizer Replace"));
    ASSIGN_OR_RETURN(std::string_view content, StringField(json, "normalizer Replace", "content"));
    RETURN_IF_ERROR(CheckContent("normalizer Replace", "content", content));
    // A literal is its pattern's bytes.
    const auto literal = FindField(*FindField(json, "pattern"), "String");
    std::string_view replaced;
    if (!literal || literal->get(replaced) != simdjson::SUCCESS ||
        content.size() < replaced.size()) {
      shrink_max_ = 0;
    }
    steps_.emplace_back(Replace{std::move(pattern), std::string(content)});
  } else {
    return Unsupported("normalizer", "type", type,
                       "NFC, NFD, NFKC, NFKD, Prepend, Replace, Sequence");
  }
  if (steps_.size() > kStepsMax) {
    return absl::InvalidArgumentError(
        absl::StrCat("tokenizer.json: normalizer: more than ", kStepsMax, " steps"));
  }
  if (std::holds_alternative<UnicodeForm>(steps_.back())) shrink_max_ *= kUnicodeShrinkMax;
  return absl::OkStatus();
}

absl::StatusOr<std::string> Normalizer::Apply(std::string text, size_t* head) const {
  if (text.empty()) return text;
  for (const auto& step : steps_) {
    if (const auto* form = std::get_if<UnicodeForm>(&step)) {
      if (IsAscii(text)) continue;
      ASSIGN_OR_RETURN(text, ApplyUnicodeForm(text, form->utf8proc_options, head));
    } else if (const auto* prepend = std::get_if<Prepend>(&step)) {
      if (text.empty()) continue;
      text.insert(0, prepend->prefix);
      // The reference takes what is inserted for a part of the first character.
      if (*head > 0) *head += prepend->prefix.size();
    } else if (const auto* replace = std::get_if<Replace>(&step)) {
      ASSIGN_OR_RETURN(text, ReplaceAll(replace->pattern, replace->content, text, head));
    }
  }
  return text;
}

}  // namespace switchyard
