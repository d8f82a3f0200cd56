// bench/dataset.h: requests that were recorded elsewhere, in three public formats.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "common/ids.h"

namespace switchyard {

// Of a recorded block with an id: prompts that begin with the same ids begin with the same tokens.
inline constexpr int kTraceBlockTokens = 512;  // Mooncake's

struct DatasetRow {
  absl::Duration at;  // from the first row; zero if the format has no times
  int input_len = 0, output_len = 1;
  std::vector<uint32_t> block_ids;  // of kTraceBlockTokens tokens each; may be empty
  std::vector<TokenId> prompt_ids;  // the prompt itself, where the format has it
};

// A trace of at most `rows_max` rows, by its first line: Mooncake's JSON lines {"timestamp" (ms),
// "input_length", "output_length", "hash_ids"}, or Azure's CSV
// TIMESTAMP,ContextTokens,GeneratedTokens, where a time without a zone is UTC. Rows come out in the
// order of time. kInvalidArgument names the line and what is wrong with it.
absl::StatusOr<std::vector<DatasetRow>> ParseTrace(std::string_view text, int rows_max);

// A conversation's first question and the length of its answer.
struct Conversation {
  std::string prompt, answer;
};
// ShareGPT's JSON: [{"conversations": [{"value": …}, {"value": …}, …]}, …]; those with fewer than
// two turns are left out. kInvalidArgument: not that.
absl::StatusOr<std::vector<Conversation>> ParseShareGpt(std::string_view text, int rows_max);

}  // namespace switchyard
