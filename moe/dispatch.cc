#include "moe/dispatch.h"

#include "absl/strings/str_cat.h"

namespace switchyard {

absl::Status CheckDispatch(const DispatchShape& shape, Matrix<const float> hidden,
                           Matrix<const int32_t> experts, Matrix<const float> weights,
                           std::span<const int32_t> positions) {
  const size_t tokens = hidden.rows(), top_k = shape.top_k, width = shape.hidden;
  if (tokens > static_cast<size_t>(shape.max_tokens)) {
    return absl::InvalidArgumentError(
        absl::StrCat("dispatch: ", tokens, " tokens, at most ", shape.max_tokens));
  }
  if (experts.rows() != tokens || experts.cols() != top_k || weights.rows() != tokens ||
      weights.cols() != top_k || hidden.cols() != width || positions.size() != tokens) {
    return absl::InvalidArgumentError(absl::StrCat(
        "dispatch: hidden [", tokens, ", ", hidden.cols(), "], experts [", experts.rows(), ", ",
        experts.cols(), "], weights [", weights.rows(), ", ", weights.cols(), "] and positions [",
        positions.size(), "], wanted [T, ", width, "], [T, ", top_k, "] twice and [T]"));
  }
  for (size_t t = 0; t < tokens; ++t) {
    for (size_t k = 0; k < top_k; ++k) {
      if (experts(t, k) < 0 || experts(t, k) >= shape.experts) {
        return absl::InvalidArgumentError(absl::StrCat(
            "dispatch: expert ", experts(t, k), " of token ", t, ", there are ", shape.experts));
      }
    }
  }
  return absl::OkStatus();
}

absl::Status CheckCombine(const DispatchShape& shape, size_t tokens, size_t rows,
                          const ConstRows& expert_rows, Matrix<float> out) {
  const size_t width = shape.hidden;
  if (expert_rows.rows == rows && expert_rows.cols == width && expert_rows.dtype == shape.dtype &&
      out.rows() == tokens && out.cols() == width) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(
      absl::StrCat("combine: expert rows [", expert_rows.rows, ", ", expert_rows.cols, "] of ",
                   std::string(Name(expert_rows.dtype)), " and out [", out.rows(), ", ", out.cols(),
                   "] for ", rows, " rows of ", std::string(Name(shape.dtype)), ", ", tokens,
                   " tokens and width ", width));
}

}  // namespace switchyard
