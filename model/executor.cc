#include "model/executor.h"

#include <algorithm>

#include "common/status_macros.h"
#include "model/model.h"

namespace switchyard {
namespace {

// Parts of large batches are multiples of this: rows of the kernels' tiles.
constexpr size_t kTileRows = 16, kTiledRowsMin = 8 * kTileRows;

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
  const bool any =
      std::any_of(batches.begin(), batches.end(), [](const MicroBatch& b) { return b.rows() > 0; });
  for (const auto& segment : segments_) {
    for (MicroBatch& batch : batches) {
      for (const auto [layer, stage] : segment) {
        // A rank without rows still serves its experts to the others.
        if (batch.rows() > 0 || IsCollective(stage)) {
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

void ShareRows(std::span<const AttentionSequence> sequences, Matrix<float> residual,
               std::span<MicroBatch> batches) {
  const size_t rows = residual.rows(), multiple = rows < kTiledRowsMin ? 1 : kTileRows;
  size_t begin = 0;
  for (size_t i = 0; i < batches.size(); ++i) {
    MicroBatch& b = batches[i];
    const size_t even = (rows * (i + 1) + batches.size() - 1) / batches.size();
    const size_t end = std::min(rows, (even + multiple - 1) / multiple * multiple);
    b.residual = residual.Slice(begin, end - begin);
    b.sequences.clear();
    b.positions.clear();
    for (AttentionSequence s : sequences) {
      const auto first = std::max<size_t>(begin, s.first_row);
      const auto last = std::min<size_t>(end, s.first_row + s.count);
      if (first >= last) continue;
      s.first_position += static_cast<int32_t>(first) - s.first_row;
      s.first_row = static_cast<int32_t>(first - begin);
      s.count = static_cast<int32_t>(last - first);
      b.sequences.push_back(s);
      for (int32_t j = 0; j < s.count; ++j) b.positions.push_back(s.first_position + j);
    }
    begin = end;
  }
}

}  // namespace switchyard
