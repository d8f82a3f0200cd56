#include "bench/tokenizer_bench.h"

#include <time.h>

#include <algorithm>
#include <functional>
#include <random>
#include <string_view>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "bench/spread.h"
#include "common/file.h"
#include "common/status_macros.h"
#include "text/tokenizer.h"

namespace switchyard {
namespace {

using nlohmann::ordered_json;

constexpr size_t kTextBytesMax = 256 << 20;
constexpr size_t kWordBytesMin = 64 << 10;

// The thread's own: others' work on the machine does not count.
double CpuSeconds() {
  timespec t;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

// The median of `repeats` runs, in seconds.
absl::StatusOr<double> Time(int repeats, const std::function<absl::Status()>& run) {
  std::vector<double> seconds;
  for (int i = 0; i < repeats; ++i) {
    const double begin = CpuSeconds();
    RETURN_IF_ERROR(run());
    seconds.push_back(CpuSeconds() - begin);
  }
  return Median(std::move(seconds));
}

// Pieces of about `size` bytes that end at a line, or else at a character.
std::vector<std::string_view> Documents(std::string_view text, size_t size) {
  std::vector<std::string_view> out;
  while (!text.empty()) {
    size_t end = std::min(size, text.size());
    if (end < text.size()) {
      const size_t line = text.rfind('\n', end);
      if (line != text.npos && line > 0) end = line;
      while (end < text.size() && (static_cast<unsigned char>(text[end]) & 0xc0) == 0x80) ++end;
    }
    out.push_back(text.substr(0, end));
    text.remove_prefix(end);
  }
  return out;
}

// Words that no pattern splits: one letter, letters by chance, and the text's own without anything
// else.
struct WordKind {
  const char* name;
  std::string letters;  // as many as the longest word has bytes
};

std::vector<WordKind> WordKinds(std::string_view text, size_t bytes) {
  std::mt19937_64 rng(1);
  std::string random(bytes, 'a'), own;
  for (char& c : random) c = static_cast<char>('a' + rng() % 26);
  std::string letters;
  std::copy_if(text.begin(), text.end(), std::back_inserter(letters),
               [](char c) { return c >= 'a' && c <= 'z'; });
  if (letters.empty()) letters.push_back('a');
  while (own.size() < bytes) own += letters;
  return {{"one letter", std::string(bytes, 'a')},
          {"random letters", std::move(random)},
          {"the text's letters", std::move(own)}};
}

absl::StatusOr<ordered_json> MeasureText(const Tokenizer& tokenizer, std::string_view text,
                                         const BenchTokenizerOptions& o) {
  const std::vector<std::string_view> documents = Documents(text, o.document_bytes);
  size_t tokens = 0;
  ASSIGN_OR_RETURN(const double seconds, Time(o.repeats, [&]() -> absl::Status {
                     tokens = 0;
                     for (const std::string_view document : documents) {
                       ASSIGN_OR_RETURN(const auto ids, tokenizer.Encode(document, false));
                       tokens += ids.size();
                     }
                     return absl::OkStatus();
                   }));
  const double megabytes = 1e-6 * static_cast<double>(text.size());
  if (o.progress) {
    o.progress(absl::StrFormat("text of %.1f MB, %d tokens: %.1f MB/s", megabytes, tokens,
                               megabytes / seconds));
  }
  return ordered_json{
      {"megabytes", megabytes}, {"tokens", tokens}, {"megabytes_per_second", megabytes / seconds}};
}

absl::StatusOr<ordered_json> MeasureWords(const Tokenizer& tokenizer, std::string_view text,
                                          const BenchTokenizerOptions& o) {
  ordered_json out = ordered_json::array();
  for (const WordKind& kind : WordKinds(text, o.word_bytes_max)) {
    for (size_t bytes = kWordBytesMin; bytes <= o.word_bytes_max; bytes *= 2) {
      const std::string_view word = std::string_view(kind.letters).substr(0, bytes);
      ASSIGN_OR_RETURN(const double seconds,
                       Time(o.repeats, [&] { return tokenizer.Encode(word, false).status(); }));
      const double rate = 1e-6 * static_cast<double>(bytes) / seconds;
      if (o.progress) {
        o.progress(absl::StrFormat("one word of %s, %7d bytes: %8.2f ms, %.1f MB/s", kind.name,
                                   bytes, 1e3 * seconds, rate));
      }
      out.push_back({{"kind", kind.name},
                     {"bytes", bytes},
                     {"ms", 1e3 * seconds},
                     {"megabytes_per_second", rate}});
    }
  }
  return out;
}

}  // namespace

absl::StatusOr<ordered_json> RunBenchTokenizer(const BenchTokenizerOptions& o) {
  if (o.repeats < 1 || o.document_bytes < 1) {
    return absl::InvalidArgumentError(absl::StrCat("repeats ", o.repeats, " and document_bytes ",
                                                   o.document_bytes, " must be at least 1"));
  }
  ASSIGN_OR_RETURN(const std::string text, ReadFile(o.text_file, kTextBytesMax));
  if (text.empty()) return absl::InvalidArgumentError(absl::StrCat(o.text_file, " is empty"));
  std::unique_ptr<Tokenizer> tokenizer;
  ASSIGN_OR_RETURN(const double load, Time(o.repeats, [&]() -> absl::Status {
                     ASSIGN_OR_RETURN(tokenizer, Tokenizer::Load(o.tokenizer));
                     return absl::OkStatus();
                   }));
  if (o.progress) {
    o.progress(
        absl::StrFormat("%d tokens, loaded in %.0f ms", tokenizer->vocab_size(), 1e3 * load));
  }
  ordered_json out = {{"tokens", tokenizer->vocab_size()}, {"load_ms", 1e3 * load}};
  ASSIGN_OR_RETURN(out["text"], MeasureText(*tokenizer, text, o));
  ASSIGN_OR_RETURN(out["words"], MeasureWords(*tokenizer, text, o));
  return out;
}

}  // namespace switchyard
