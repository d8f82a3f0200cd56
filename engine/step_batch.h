// engine/step_batch.h: the rows of one step, as the model wants them, and as words from the rank
// that scheduled them to those that compute attention with it.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "engine/scheduler.h"
#include "kernels/attention.h"

namespace switchyard {

// Kept from step to step, so that a steady state allocates nothing.
struct StepBatch {
  std::vector<int32_t> tokens, tables, logit_rows;
  std::vector<int32_t> prompts;              // [sequences] ForwardBatch::prompts
  std::vector<AttentionSequence> sequences;  // their blocks lie in `tables`
  // [logit_rows] whose next token is sampled; null: the row is scored. Not shared.
  std::vector<const Sequence*> sampled;

  void Clear();
};

// The rows of `plan`, with logits where a token is sampled or scored.
void BuildBatch(std::span<const Scheduler::Chunk> plan, StepBatch* batch);

// What the ranks must agree on, and what a batch may be.
struct BatchLimits {
  int block_size = 0, kv_blocks = 0;  // equal on all
  int rows = 0, sequences = 0, blocks_per_sequence = 0;

  size_t words() const;
};
void EncodeBatch(const StepBatch& batch, const BatchLimits& limits, std::vector<int32_t>* words);
// No words: no rows. kInvalidArgument names what cannot be; Model::Forward checks the values.
absl::Status DecodeBatch(std::span<const int32_t> words, const BatchLimits& limits,
                         StepBatch* batch);

}  // namespace switchyard
