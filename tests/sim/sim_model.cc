#include "tests/sim/sim_model.h"

#include <array>
#include <cstring>

namespace switchyard::sim {
namespace {

uint64_t Mix(uint64_t a, uint64_t b) {
  uint64_t z = (a ^ (b + 0x9e3779b97f4a7c15)) * 0xbf58476d1ce4e5b9;
  z ^= z >> 29;
  z *= 0x94d049bb133111eb;
  return z ^ (z >> 32);
}

// What a layer makes of a position: its KV row, given its input and the fold of the rows before.
uint64_t Row(uint64_t input, uint64_t before, int layer) { return Mix(Mix(input, layer), before); }
constexpr uint64_t kNothing = 0x5157;

void FillLogits(uint64_t hash, std::span<float> logits) {
  for (size_t v = 0; v < logits.size(); ++v) {
    logits[v] = static_cast<float>((hash >> (v % 48)) & 0xff) * 0.03f;
  }
  logits[hash % logits.size()] += 9;
}

// The 8 bytes of a position in a block: half is its key, half its value.
std::array<std::byte*, 2> Halves(const KvStorage& kv, int layer, std::span<const int32_t> blocks,
                                 int position) {
  const KvLayout& layout = kv.layout();
  const KvAddressing a = layout.Addressing();
  std::byte* base = kv.Block(layer, blocks[position / layout.block_tokens]);
  const int row = position % layout.block_tokens;
  return {base + 4 * (a.k_offset + row * a.k_token_stride),
          base + 4 * (a.v_offset + row * a.v_token_stride)};
}

}  // namespace

SimModel::SimModel() {
  config_.architecture = "Sim";
  config_.vocab_size = kVocab;
  config_.layers = kLayers;
  config_.max_position_embeddings = kPositions;
  config_.eos_token_ids = {kEos};
  config_.heads = config_.kv_heads = config_.head_dim = 1;
  options_.dtype = DType::kFloat32;
}

absl::Status SimModel::Forward(const ForwardBatch& batch, KvStorage& kv, LayerObserver* observer,
                               Matrix<float> logits) {
  inputs_.assign(batch.tokens.begin(), batch.tokens.end());
  for (int layer = 0; layer < kLayers; ++layer) {
    for (const AttentionSequence& s : batch.sequences) {
      uint64_t fold = kNothing;
      for (int p = 0; p < s.first_position; ++p) {
        uint64_t row;
        const auto at = Halves(kv, layer, s.blocks, p);
        std::memcpy(&row, at[0], 4);
        std::memcpy(reinterpret_cast<std::byte*>(&row) + 4, at[1], 4);
        fold = Mix(fold, row);
      }
      for (int i = 0; i < s.count; ++i) {
        uint64_t& input = inputs_[s.first_row + i];
        const uint64_t row = Row(input, fold, layer);
        const auto at = Halves(kv, layer, s.blocks, s.first_position + i);
        std::memcpy(at[0], &row, 4);
        std::memcpy(at[1], reinterpret_cast<const std::byte*>(&row) + 4, 4);
        fold = Mix(fold, row);
        input = fold;
      }
    }
    if (observer != nullptr) observer->OnLayerWritten(layer);
  }
  for (size_t i = 0; i < batch.logit_rows.size(); ++i) {
    FillLogits(inputs_[batch.logit_rows[i]], {logits.row(i), kVocab});
  }
  return absl::OkStatus();
}

std::vector<TokenId> SimModel::Expected(std::vector<TokenId> history,
                                        const SamplingParams& sampling, int max_tokens,
                                        bool ignore_eos) {
  std::vector<TokenId> out;
  std::array<float, kVocab> logits;
  uint64_t folds[kLayers] = {kNothing, kNothing}, last = 0;
  const auto push = [&](TokenId token) {
    last = static_cast<uint64_t>(token);
    for (int layer = 0; layer < kLayers; ++layer) {
      folds[layer] = Mix(folds[layer], Row(last, folds[layer], layer));
      last = folds[layer];
    }
  };
  for (const TokenId token : history) push(token);
  while (static_cast<int>(out.size()) < max_tokens) {
    FillLogits(last, logits);
    out.push_back(ChooseToken(logits, sampling, history.size() + out.size()));
    if (!ignore_eos && out.back() == kEos) break;
    push(out.back());
  }
  return out;
}

}  // namespace switchyard::sim
