#include "moe/load_statistics.h"

#include <algorithm>
#include <numeric>

#include "absl/strings/str_cat.h"
#include "common/checked_math.h"

namespace switchyard {

RankBalance RankBalance::Of(std::span<const double> rank_loads) {
  if (rank_loads.empty()) return {};
  return {.mean = std::accumulate(rank_loads.begin(), rank_loads.end(), 0.0) /
                  static_cast<double>(rank_loads.size()),
          .max = *std::max_element(rank_loads.begin(), rank_loads.end())};
}

RankBalance& RankBalance::operator+=(const RankBalance& other) {
  mean += other.mean;
  max += other.max;
  return *this;
}

absl::StatusOr<LoadStatistics> LoadStatistics::Create(const LoadStatisticsOptions& o) {
  constexpr uint64_t kCountsMax = 1 << 26;
  const bool positive = o.layers > 0 && o.experts > 0 && o.window_steps > 0;
  if (!positive ||
      CheckedProduct({static_cast<uint64_t>(o.layers), static_cast<uint64_t>(o.experts),
                      static_cast<uint64_t>(o.window_steps)})
              .value_or(kCountsMax + 1) > kCountsMax) {
    return absl::InvalidArgumentError(absl::StrCat(
        "load statistics of ", o.layers, " layers, ", o.experts, " experts, ", o.window_steps,
        " steps: each must be at least 1, and the product at most ", kCountsMax));
  }
  return LoadStatistics(o);
}

LoadStatistics::LoadStatistics(const LoadStatisticsOptions& options)
    : options_(options),
      window_(static_cast<size_t>(options.window_steps) * options.layers * options.experts),
      totals_(static_cast<size_t>(options.layers) * options.experts) {}

absl::Status LoadStatistics::AddStep(Matrix<const int32_t> counts) {
  const size_t layers = options_.layers, experts = options_.experts;
  if (counts.rows() != layers || counts.cols() != experts) {
    return absl::InvalidArgumentError(absl::StrCat("counts are [", counts.rows(), ", ",
                                                   counts.cols(), "], not [", layers, ", ", experts,
                                                   "]"));
  }
  for (size_t l = 0; l < layers; ++l) {
    for (size_t e = 0; e < experts; ++e) {
      if (counts(l, e) < 0) {
        return absl::InvalidArgumentError(
            absl::StrCat("layer ", l, ", expert ", e, " counts ", counts(l, e), " tokens"));
      }
    }
  }
  int32_t* const oldest = window_.data() + static_cast<size_t>(next_) * layers * experts;
  for (size_t l = 0; l < layers; ++l) {
    for (size_t e = 0; e < experts; ++e) {
      int32_t& slot = oldest[l * experts + e];
      totals_[l * experts + e] += static_cast<int64_t>(counts(l, e)) - slot;
      slot = counts(l, e);
    }
  }
  next_ = (next_ + 1) % options_.window_steps;
  steps_ = std::min(steps_ + 1, options_.window_steps);
  return absl::OkStatus();
}

Matrix<const int64_t> LoadStatistics::totals() const {
  return {totals_.data(),
          {static_cast<size_t>(options_.layers), static_cast<size_t>(options_.experts)}};
}

}  // namespace switchyard
