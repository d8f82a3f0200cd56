// bench/tokenizer_bench.h: how long a tokenizer takes to load, and how fast one thread encodes:
// text, and single words whose lengths double, which shows whether the time is linear in them.
#pragma once

#include <functional>
#include <nlohmann/json.hpp>
#include <string>

#include "absl/status/statusor.h"

namespace switchyard {

struct BenchTokenizerOptions {
  std::string tokenizer;             // a tokenizer.json, or a folder that holds one
  std::string text_file;             // UTF-8
  size_t document_bytes = 64 << 10;  // the text is encoded in pieces of about so many
  size_t word_bytes_max = 4 << 20;   // of the words without a space
  int repeats = 5;                   // the median is reported
  std::function<void(const std::string&)> progress;  // a line per measurement; may be empty
};

// {"tokens", "load_ms", "text": {"megabytes", "tokens", "megabytes_per_second"},
//  "words": [{"kind", "bytes", "ms", "megabytes_per_second"}]}; a megabyte is 10^6 bytes, times are
//  the thread's own.
// Errors: those of files and of Tokenizer; kInvalidArgument for an empty text or a count below 1.
absl::StatusOr<nlohmann::ordered_json> RunBenchTokenizer(const BenchTokenizerOptions& options);

}  // namespace switchyard
