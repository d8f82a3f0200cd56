#include "model/cuda/step_arrays.h"

#include <algorithm>
#include <bit>

namespace switchyard::cuda {
namespace {

constexpr size_t kAlignment = 256;
constexpr int kContextClassMin = kAttentionSegment;

int ClassOf(int value, int low, int high) {
  const auto power = static_cast<int>(std::bit_ceil(static_cast<unsigned>(std::max(value, low))));
  return std::max(value, std::min(power, high));
}

}  // namespace

StepShape ShapeOf(const ForwardBatch& batch) {
  StepShape shape{.rows = static_cast<int>(batch.tokens.size()),
                  .sequences = static_cast<int>(batch.sequences.size()),
                  .logit_rows = static_cast<int>(batch.logit_rows.size())};
  for (const AttentionSequence& s : batch.sequences) {
    shape.rows_max = std::max(shape.rows_max, s.count);
    shape.context_max = std::max(shape.context_max, s.first_position + s.count);
  }
  return shape;
}

bool IsDecode(const StepShape& exact) {
  return exact.rows > 0 && exact.rows_max == 1 && exact.logit_rows == exact.rows;
}

size_t SplitBytes(const StepShape& shape, const AttentionShape& attention, DType cache,
                  size_t room) {
  if (shape.rows_max != 1 || shape.context_max <= kAttentionSegment || cache != DType::kBfloat16) {
    return 0;
  }
  const AttentionBatch batch{.count = shape.sequences, .context_max = shape.context_max};
  const size_t bytes = AttentionWorkspaceBytes(attention, batch, shape.rows, true);
  return bytes <= room ? bytes : 0;
}

StepShape DecodeClass(const StepShape& exact, int rows_max, int context_max) {
  StepShape shape = exact;
  shape.rows = shape.sequences = shape.logit_rows = ClassOf(exact.rows, 1, rows_max);
  shape.context_max = ClassOf(exact.context_max, kContextClassMin, context_max);
  return shape;
}

namespace {

// Where each array begins, if the memory begins at 0; returns the end.
template <typename Visit>
size_t ForArrays(const StepLimits& l, Visit visit) {
  size_t at = 0;
  const auto array = [&](auto StepArrays::*member, int count) {
    using T = std::remove_pointer_t<std::remove_reference_t<decltype(StepArrays().*member)>>;
    visit(member, at);
    at += (static_cast<size_t>(count) * sizeof(T) + kAlignment - 1) / kAlignment * kAlignment;
  };
  array(&StepArrays::tokens, l.rows);
  array(&StepArrays::positions, l.rows);
  array(&StepArrays::slots, l.rows);
  array(&StepArrays::sequences, l.sequences);
  array(&StepArrays::tables, l.tables);
  array(&StepArrays::logit_rows, l.logit_rows);
  array(&StepArrays::sampling, l.logit_rows);
  array(&StepArrays::group_rows, l.groups);
  return at;
}

}  // namespace

size_t BytesFor(const StepLimits& limits) {
  return ForArrays(limits, [](auto, size_t) {});
}

StepArrays PlaceArrays(std::byte* memory, const StepLimits& limits) {
  StepArrays arrays;
  ForArrays(limits, [&](auto member, size_t at) {
    using Pointer = std::remove_reference_t<decltype(arrays.*member)>;
    arrays.*member = reinterpret_cast<Pointer>(memory + at);
  });
  return arrays;
}

ForwardBatch RowsOfBatch(const ForwardBatch& batch, size_t begin, size_t end,
                         std::vector<AttentionSequence>* sequences) {
  sequences->clear();
  for (const AttentionSequence& whole : batch.sequences) {
    const AttentionSequence s = RowsWithin(whole, begin, end);
    if (s.count > 0) sequences->push_back(s);
  }
  return {.tokens = batch.tokens.subspan(begin, end - begin),
          .sequences = *sequences,
          .logit_rows = {}};
}

int TablesOf(const ForwardBatch& batch) {
  size_t blocks = 0;
  for (const AttentionSequence& s : batch.sequences) blocks += s.blocks.size();
  return static_cast<int>(blocks);
}

void FillArrays(const ForwardBatch& batch, int block_tokens, int groups, const StepShape& shape,
                const StepArrays& to) {
  const auto rows = static_cast<int>(batch.tokens.size());
  std::copy(batch.tokens.begin(), batch.tokens.end(), to.tokens);
  std::fill(to.tokens + rows, to.tokens + shape.rows, 0);
  std::fill(to.positions + rows, to.positions + shape.rows, 0);
  std::fill(to.slots + rows, to.slots + shape.rows, int64_t{-1});
  int table = 0;
  DeviceSequence* sequence = to.sequences;
  for (const AttentionSequence& s : batch.sequences) {
    std::copy(s.blocks.begin(), s.blocks.end(), to.tables + table);
    *sequence++ = {s.first_row, s.count, s.first_position, table};
    table += static_cast<int>(s.blocks.size());
    for (int32_t i = 0; i < s.count; ++i) {
      const int32_t position = s.first_position + i, row = s.first_row + i;
      to.positions[row] = position;
      to.slots[row] =
          int64_t{s.blocks[position / block_tokens]} * block_tokens + position % block_tokens;
    }
  }
  std::fill(sequence, to.sequences + shape.sequences, DeviceSequence{});
  const size_t wanted = batch.logit_rows.size();
  for (int i = 0; i < shape.logit_rows; ++i) {
    const bool real = static_cast<size_t>(i) < wanted;
    to.logit_rows[i] = real ? batch.logit_rows[i] : 0;
    RowSampling& r = to.sampling[i];
    r = {.temperature = 0};
    if (!real || batch.draws.empty() || batch.draws[i].params == nullptr) continue;
    const SamplingParams& p = *batch.draws[i].params;
    r = {.temperature = p.temperature,
         .top_k = p.top_k,
         .top_p = p.top_p,
         .min_p = p.min_p,
         .seed = p.seed,
         .position = batch.draws[i].position,
         .sample = p.sample};
  }
  std::fill(to.group_rows, to.group_rows + groups, shape.rows);
}

}  // namespace switchyard::cuda
