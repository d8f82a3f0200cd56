#include "engine/step_batch.h"

#include <algorithm>

#include "absl/strings/str_cat.h"

namespace switchyard {
namespace {

// Words: these, tokens, {rows, first position, prompt, blocks} of each sequence, rows with logits,
// blocks.
struct BatchHeader {
  int32_t block_size, kv_blocks, tokens, sequences, logit_rows, blocks;
};
constexpr size_t kHeaderWords = sizeof(BatchHeader) / sizeof(int32_t), kSequenceWords = 4;

}  // namespace

void StepBatch::Clear() {
  tokens.clear();
  tables.clear();
  logit_rows.clear();
  prompts.clear();
  sequences.clear();
  sampled.clear();
}

void BuildBatch(std::span<const Scheduler::Chunk> plan, StepBatch* batch) {
  batch->Clear();
  for (const Scheduler::Chunk& c : plan) {
    const Sequence& s = *c.sequence;
    const auto first_row = static_cast<int32_t>(batch->tokens.size());
    batch->tokens.insert(batch->tokens.end(), s.tokens.begin() + s.computed,
                         s.tokens.begin() + s.computed + c.rows);
    for (BlockId b : s.blocks) batch->tables.push_back(b.value());
    batch->sequences.push_back({first_row, c.rows, s.computed, {}});
    batch->prompts.push_back(s.prompt_length());
    // Row i scores prompt_ids[i + 1]. A recomputed row is not scored again.
    const int scored = static_cast<int>(s.prompt_scores.size());
    for (int i = 0; i < c.rows; ++i) {
      const int position = s.computed + i;
      const bool score =
          s.wants_prompt_scores() && position >= scored && position + 1 < s.prompt_length();
      if (!score && !(c.samples() && i + 1 == c.rows)) continue;
      batch->logit_rows.push_back(first_row + i);
      batch->sampled.push_back(score ? nullptr : &s);
    }
  }
  size_t table = 0;  // only now have the tables stopped moving
  for (size_t i = 0; i < plan.size(); ++i) {
    const size_t blocks = plan[i].sequence->blocks.size();
    batch->sequences[i].blocks = std::span(batch->tables).subspan(table, blocks);
    table += blocks;
  }
}

size_t BatchLimits::words() const {
  const auto r = static_cast<size_t>(rows), s = static_cast<size_t>(sequences);
  return kHeaderWords + 2 * r + s * (kSequenceWords + static_cast<size_t>(blocks_per_sequence));
}

void EncodeBatch(const StepBatch& batch, const BatchLimits& limits, std::vector<int32_t>* words) {
  words->clear();
  if (batch.tokens.empty()) return;
  const auto size = [](const auto& v) { return static_cast<int32_t>(v.size()); };
  *words = {limits.block_size,     limits.kv_blocks,       size(batch.tokens),
            size(batch.sequences), size(batch.logit_rows), size(batch.tables)};
  words->insert(words->end(), batch.tokens.begin(), batch.tokens.end());
  for (size_t i = 0; i < batch.sequences.size(); ++i) {
    const AttentionSequence& s = batch.sequences[i];
    words->insert(words->end(), {s.count, s.first_position, batch.prompts[i], size(s.blocks)});
  }
  words->insert(words->end(), batch.logit_rows.begin(), batch.logit_rows.end());
  words->insert(words->end(), batch.tables.begin(), batch.tables.end());
}

absl::Status DecodeBatch(std::span<const int32_t> words, const BatchLimits& limits,
                         StepBatch* batch) {
  batch->Clear();
  if (words.empty()) return absl::OkStatus();
  const auto refuse = [](auto... what) {
    return absl::InvalidArgumentError(absl::StrCat("shared batch: ", what...));
  };
  if (words.size() < kHeaderWords) return refuse(words.size(), " words");
  const BatchHeader h{words[0], words[1], words[2], words[3], words[4], words[5]};
  if (h.block_size != limits.block_size || h.kv_blocks != limits.kv_blocks) {
    return refuse("block-size ", h.block_size, " and kv-blocks ", h.kv_blocks,
                  "; this rank has block-size ", limits.block_size, " and kv-blocks ",
                  limits.kv_blocks);
  }
  const int64_t wanted = static_cast<int64_t>(kHeaderWords) + h.tokens + h.logit_rows + h.blocks +
                         int64_t{kSequenceWords} * h.sequences;
  if (std::min({h.tokens, h.sequences, h.logit_rows, h.blocks}) < 0 || h.tokens > limits.rows ||
      h.sequences > limits.sequences || wanted != static_cast<int64_t>(words.size())) {
    return refuse(h.tokens, " tokens of ", h.sequences, " sequences, ", h.blocks, " blocks, ",
                  h.logit_rows, " rows with logits in ", words.size(), " words; at most ",
                  limits.rows, " tokens of ", limits.sequences, " sequences");
  }
  const auto take = [&words](size_t count) {
    const auto part = words.first(count);
    words = words.subspan(count);
    return part;
  };
  const auto copy = [&](int32_t count, std::vector<int32_t>* to) {
    const auto part = take(static_cast<size_t>(count));
    to->assign(part.begin(), part.end());
  };
  take(kHeaderWords);
  copy(h.tokens, &batch->tokens);
  const auto sequences = take(kSequenceWords * static_cast<size_t>(h.sequences));
  copy(h.logit_rows, &batch->logit_rows);
  copy(h.blocks, &batch->tables);
  int64_t row = 0, table = 0;
  for (size_t i = 0; i < sequences.size(); i += kSequenceWords) {
    const int32_t count = sequences[i], blocks = sequences[i + 3];
    if (count < 1 || count > h.tokens - row || blocks < 0 || blocks > h.blocks - table) {
      return refuse("sequence of ", count, " rows and ", blocks, " blocks from row ", row, " of ",
                    h.tokens, " and block ", table, " of ", h.blocks);
    }
    batch->sequences.push_back(
        {static_cast<int32_t>(row), count, sequences[i + 1],
         std::span<const int32_t>(batch->tables)
             .subspan(static_cast<size_t>(table), static_cast<size_t>(blocks))});
    batch->prompts.push_back(sequences[i + 2]);
    row += count;
    table += blocks;
  }
  return absl::OkStatus();
}

}  // namespace switchyard
