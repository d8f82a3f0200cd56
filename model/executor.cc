#include "model/executor.h"

#include <algorithm>
#include <numeric>

#include "common/status_macros.h"
#include "model/model.h"

namespace switchyard {
namespace {

// Parts of large batches are multiples of this: rows of the kernels' tiles.
constexpr size_t kTileRows = 16, kTiledRowsMin = 8 * kTileRows;

// Positions below `prompt` are the prompt's.
void SplitByForm(AttentionSequence s, int32_t prompt, MicroBatch& b) {
  const auto expanded =
      std::clamp<int32_t>(prompt, s.first_position, s.first_position + s.count) - s.first_position;
  if (expanded > 0) {
    b.expanded.push_back({s.first_row, expanded, s.first_position, s.blocks});
  }
  if (expanded == s.count) return;
  b.absorbed.push_back(
      {s.first_row + expanded, s.count - expanded, s.first_position + expanded, s.blocks});
}

}  // namespace

Executor::Executor(const ModelConfig& config, const ModelWeights& weights)
    : weights_(weights), segments_(1) {
  for (int l = 0; l < config.layers; ++l) {
    for (const Stage stage : StagesOf(config.layer_is_moe[l])) {
      segments_.back().push_back({l, stage});
      if (stage == Stage::kDispatchSend || stage == Stage::kCombineSend) segments_.emplace_back();
    }
  }
}

absl::Status Executor::Run(StepContext& step, std::span<MicroBatch> batches,
                           LayerObserver* observer) const {
  const bool any = std::any_of(batches.begin(), batches.end(),
                               [](const MicroBatch& b) { return b.all_rows() > 0; });
  for (const auto& segment : segments_) {
    for (MicroBatch& batch : batches) {
      for (const auto [layer, stage] : segment) {
        // A rank without rows still serves its experts to the others.
        const size_t rows = stage == Stage::kAttention ? batch.all_rows() : batch.rows();
        if (rows > 0 || IsCollective(stage)) {
          RETURN_IF_ERROR(RunStage(stage, step, layer, weights_.layers[layer], batch));
        }
        // Told as early as the bytes are final: a hand-off overlaps with this layer's experts.
        if (stage == Stage::kAttention && any && &batch == &batches.back() && observer != nullptr) {
          observer->OnLayerWritten(layer);
        }
      }
    }
  }
  return absl::OkStatus();
}

void ShareRows(std::span<const AttentionSequence> sequences, std::span<const int32_t> prompts,
               size_t rows, int rank, int ranks, std::span<MicroBatch> batches) {
  const size_t multiple = rows < kTiledRowsMin ? 1 : kTileRows;
  size_t begin = 0;
  for (size_t i = 0; i < batches.size(); ++i) {
    MicroBatch& b = batches[i];
    const size_t even = (rows * (i + 1) + batches.size() - 1) / batches.size();
    const size_t end = std::min(rows, (even + multiple - 1) / multiple * multiple);
    b.first = begin;
    b.own = SliceOf(end - begin, rank, ranks);
    b.sequences.clear();
    b.expanded.clear();
    b.absorbed.clear();
    b.positions.clear();
    for (size_t j = 0; j < sequences.size(); ++j) {
      const AttentionSequence s = RowsWithin(sequences[j], begin, end);
      if (s.count == 0) continue;
      b.sequences.push_back(s);
      for (int32_t p = 0; p < s.count; ++p) b.positions.push_back(s.first_position + p);
      SplitByForm(s, prompts.empty() ? 0 : prompts[j], b);
    }
    begin = end;
  }
}

absl::StatusOr<Matrix<float>> LastHidden(RowExchange* exchange, std::span<const MicroBatch> batches,
                                         std::span<const int32_t> rows, LastHiddenRows& memory) {
  const int self = exchange != nullptr ? exchange->rank() : 0;
  const int ranks = exchange != nullptr ? exchange->ranks() : 1;
  const size_t width = batches[0].residual.cols();
  // This rank's are packed as they come.
  const Matrix<float> packed = memory.packed.Get(rows.size(), width);
  memory.owners.clear();
  memory.counts.assign(ranks, 0);
  const MicroBatch* b = batches.data();
  for (const int32_t r : rows) {
    while (static_cast<size_t>(r) >= b->first + b->all_rows()) ++b;
    const size_t row = r - b->first;
    int owner = 0;
    for (RowSlice s = SliceOf(b->all_rows(), owner, ranks); row >= s.begin + s.count;) {
      s = SliceOf(b->all_rows(), ++owner, ranks);
    }
    if (owner == self) {
      std::copy_n(b->residual.row(row - b->own.begin), width, packed.row(memory.counts[owner]));
    }
    ++memory.counts[owner];
    memory.owners.push_back(owner);
  }
  if (exchange == nullptr) return packed;
  RETURN_IF_ERROR(CollectRows(*exchange, memory.counts,
                              self == 0 ? packed : packed.Slice(0, memory.counts[self])));
  if (self != 0) return packed.Slice(0, 0);
  // Rank by rank: back into the order of the batch.
  memory.next.resize(ranks);
  std::exclusive_scan(memory.counts.begin(), memory.counts.end(), memory.next.begin(), size_t{0});
  const Matrix<float> ordered = memory.ordered.Get(rows.size(), width);
  for (size_t i = 0; i < rows.size(); ++i) {
    std::copy_n(packed.row(memory.next[memory.owners[i]]++), width, ordered.row(i));
  }
  return ordered;
}

}  // namespace switchyard
