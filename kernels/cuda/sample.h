// kernels/cuda/sample.h: from rows of logits to tokens without a sort and without the host.
#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "kernels/cuda/matrix.h"

namespace switchyard::cuda {

// One row's parameters: SamplingParams of kernels/sample.h without its lists.
struct RowSampling {
  float temperature = 1.0f;
  int32_t top_k = 0;
  float top_p = 1.0f, min_p = 0.0f;
  uint64_t seed = 0, position = 0;
  uint32_t sample = 0;
  uint32_t unused = 0;
};
static_assert(sizeof(RowSampling) == 40);

// tokens [R]: what ChooseToken of kernels/sample.h draws from logits [R, V] (but for exp of
// doubles, which another library may round otherwise). V in [1, 2^24].
//
// One block of 1,024 threads per row. The probabilities are 64-bit fixed point, so that their sums
// are exact in any order; the cuts of top-k and top-p are found by radix descent over the ranking
// (8 digits of 8 bits, a histogram each), the draw by a scan in id order. Nothing is sorted and no
// workspace is needed; logits are read about twice per digit that is looked at, from L2.
absl::Status SampleTokens(Stream stream, DeviceMatrix<const float> logits,
                          const RowSampling* params, int32_t* tokens);

// logprobs [R]: log softmax of logits[r][tokens[r]], NaN if any logit of the row is not finite;
// ranks [R]: 1 + tokens with a greater logit. In double, in a fixed order.
absl::Status ScoreTokens(Stream stream, DeviceMatrix<const float> logits, const int32_t* tokens,
                         float* logprobs, int32_t* ranks);

}  // namespace switchyard::cuda
