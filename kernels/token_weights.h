// kernels/token_weights.h: walks over a row of logits: are all finite, which is the highest, and
// what tokens weigh in a draw, in fixed point: integers add up to the same sum in any order. Logits
// are taken in blocks, by vectors as wide as the machine's; the arithmetic is that of single
// doubles, so that all widths give the same bits.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace switchyard {

// Whether no logit is infinite or no number: what must be so before a token is chosen.
bool AllFinite(std::span<const float> logits);

// The greatest of `logits`; −∞ where there is none. NaNs are passed over.
float HighestLogit(std::span<const float> logits);

// A token weighs floor(2^bits · e^x), x = (logit − highest) ÷ temperature; nothing where x <= −64
// or is no number. The most probable token weighs 2^bits, and V of them fit 63 bits. `logits`
// [V], V >= 1, must outlive this.
class TokenWeights {
 public:
  static constexpr size_t kBlock = 1024;  // tokens

  // `maxima` is memory for those of the blocks; it must outlive this too.
  TokenWeights(std::span<const float> logits, float temperature, std::vector<float>& maxima);

  size_t blocks() const { return maxima_.size(); }
  std::span<const float> logits(size_t block) const {
    return logits_.subspan(block * kBlock, std::min(kBlock, logits_.size() - block * kBlock));
  }
  float highest(size_t block) const { return maxima_[block]; }
  // The logit at which x is `x`.
  double LogitAt(double x) const { return highest_ + x * temperature_; }
  uint64_t most() const { return uint64_t{1} << bits_; }

  // How many widths of vectors this machine has, one at least.
  static int widths();
  // The weights of a block's tokens, by vectors of width 0, the least, to widths() - 1; of those
  // behind the last token 0.
  void Weigh(size_t block, std::span<uint64_t, kBlock> weights, int width = widths() - 1) const;
  uint64_t Sum(size_t block) const;

 private:
  const std::span<const float> logits_;
  const double temperature_;
  const int bits_;
  std::span<const float> maxima_;  // of the blocks
  double highest_;
};

}  // namespace switchyard
