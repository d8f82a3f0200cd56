#define PCRE2_CODE_UNIT_WIDTH 8
#include "text/regex.h"

#include <pcre2.h>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "text/regex_syntax.h"
#include "text/utf8.h"

namespace switchyard {
namespace {

constexpr size_t kPatternBytesMax = 64 << 10;
constexpr uint32_t kMatchLimit = 10'000'000;   // backtracking steps of one match
constexpr uint32_t kHeapLimitKib = 256 << 10;  // memory of one match

struct FreePcre2 {
  void operator()(pcre2_compile_context* c) const { pcre2_compile_context_free(c); }
  void operator()(pcre2_match_context* c) const { pcre2_match_context_free(c); }
  void operator()(pcre2_match_data* d) const { pcre2_match_data_free(d); }
};

std::string Pcre2Message(int error) {
  PCRE2_UCHAR buffer[256];
  pcre2_get_error_message(error, buffer, sizeof(buffer));
  return reinterpret_cast<const char*>(buffer);
}

}  // namespace

void Regex::Free::operator()(void* code) const { pcre2_code_free(static_cast<pcre2_code*>(code)); }

absl::StatusOr<Regex> Regex::Compile(std::string_view pattern) {
  ASSIGN_OR_RETURN(const std::string translated, OnigurumaToPcre2(pattern));
  return CompilePcre2(translated, PCRE2_MULTILINE);
}

absl::StatusOr<Regex> Regex::Literal(std::string_view text) {
  return CompilePcre2(text, PCRE2_LITERAL);
}

absl::StatusOr<Regex> Regex::CompilePcre2(std::string_view pattern, uint32_t options) {
  if (pattern.size() > kPatternBytesMax) {
    return absl::InvalidArgumentError(
        absl::StrCat("regex of ", pattern.size(), " bytes; the limit is ", kPatternBytesMax));
  }
  std::unique_ptr<pcre2_compile_context, FreePcre2> context(pcre2_compile_context_create(nullptr));
  if (context == nullptr) return absl::ResourceExhaustedError("regex: out of memory");
  pcre2_set_newline(context.get(), PCRE2_NEWLINE_LF);
  if ((options & PCRE2_LITERAL) == 0) options |= PCRE2_UCP | PCRE2_NEVER_BACKSLASH_C;
  int error = 0;
  size_t offset = 0;
  pcre2_code* code = pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern.data()), pattern.size(),
                                   PCRE2_UTF | options, &error, &offset, context.get());
  if (code == nullptr) {
    return absl::InvalidArgumentError(absl::StrCat("regex '", Shortened(pattern), "', offset ",
                                                   offset, ": ", Pcre2Message(error)));
  }
  Regex regex;
  regex.code_.reset(code);
  // Without JIT (a kernel that forbids writable code) the interpreter gives the same matches.
  (void)pcre2_jit_compile(code, PCRE2_JIT_COMPLETE);
  return regex;
}

absl::StatusOr<std::vector<TextRange>> Regex::FindAll(std::string_view text) const {
  const auto* code = static_cast<const pcre2_code*>(code_.get());
  std::unique_ptr<pcre2_match_data, FreePcre2> data(
      pcre2_match_data_create_from_pattern(code, nullptr));
  std::unique_ptr<pcre2_match_context, FreePcre2> context(pcre2_match_context_create(nullptr));
  if (data == nullptr || context == nullptr) {
    return absl::ResourceExhaustedError("regex: out of memory");
  }
  pcre2_set_match_limit(context.get(), kMatchLimit);
  pcre2_set_heap_limit(context.get(), kHeapLimitKib);
  const auto match = [&](size_t from, uint32_t options) {
    return pcre2_match(code, reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(), from,
                       PCRE2_NO_UTF_CHECK | options, data.get(), context.get());
  };
  std::vector<TextRange> matches;
  size_t from = 0;
  while (from <= text.size()) {
    int rc = match(from, 0);
    if (rc == PCRE2_ERROR_JIT_STACKLIMIT) rc = match(from, PCRE2_NO_JIT);
    if (rc == PCRE2_ERROR_NOMATCH) break;
    if (rc < 0) {
      return absl::ResourceExhaustedError(
          absl::StrCat("regex at byte ", from, " of the text: ", Pcre2Message(rc)));
    }
    const size_t* bounds = pcre2_get_ovector_pointer(data.get());
    const TextRange found{bounds[0], bounds[1]};
    if (found.begin == found.end && !matches.empty() && matches.back().end == found.end) {
      if (from == text.size()) break;
      from += FirstCodePoint(text.substr(from)).length;
      continue;
    }
    matches.push_back(found);
    from = found.end;
  }
  return matches;
}

}  // namespace switchyard
