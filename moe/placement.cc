#include "moe/placement.h"

#include <algorithm>
#include <numeric>

#include "absl/strings/str_cat.h"
#include "common/check.h"

namespace switchyard {

absl::StatusOr<Placement> Placement::Create(uint64_t version, int experts, int ranks,
                                            Matrix<const int32_t> physical_to_logical) {
  const size_t layers = physical_to_logical.rows(), slots = physical_to_logical.cols();
  // Ids are 32 bits.
  if (experts < 1 || ranks < 1 || layers > INT32_MAX || slots < 1 || slots > INT32_MAX) {
    return absl::InvalidArgumentError(absl::StrCat("a placement of ", experts, " experts in ",
                                                   slots, " slots on ", ranks, " ranks, ", layers,
                                                   " layers: each must be from 1 to ", INT32_MAX));
  }
  if (static_cast<size_t>(experts) > slots) {
    return absl::InvalidArgumentError(
        absl::StrCat(experts, " experts do not fit ", slots, " slots"));
  }
  if (slots % ranks != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat(slots, " slots cannot be split evenly over ", ranks, " ranks"));
  }
  Placement p;
  p.version_ = version;
  p.layers_ = static_cast<int>(layers);
  p.experts_ = experts;
  p.ranks_ = ranks;
  p.slots_per_rank_ = static_cast<int>(slots) / ranks;
  p.offsets_.assign(1, 0);
  std::vector<std::vector<Replica>> replicas(experts);  // of one layer
  for (size_t l = 0; l < layers; ++l) {
    for (auto& r : replicas) r.clear();
    for (int32_t s = 0; s < static_cast<int32_t>(slots); ++s) {
      const int32_t e = physical_to_logical(l, s);
      if (e < kEmptySlot || e >= experts) {
        return absl::InvalidArgumentError(
            absl::StrCat("layer ", l, ", slot ", s, " has expert ", e, "; there are ", experts));
      }
      p.logical_.push_back(e);
      if (e == kEmptySlot) continue;
      replicas[e].push_back({ExpertId(s), RankId(s / p.slots_per_rank_)});
    }
    for (int e = 0; e < experts; ++e) {
      if (replicas[e].empty()) {
        return absl::InvalidArgumentError(
            absl::StrCat("layer ", l, ": expert ", e, " has no replica"));
      }
      p.replicas_.insert(p.replicas_.end(), replicas[e].begin(), replicas[e].end());
      p.offsets_.push_back(p.replicas_.size());
    }
  }
  return p;
}

absl::StatusOr<Placement> Placement::InOrder(uint64_t version, int layers, int experts, int ranks) {
  if (layers < 0 || experts < 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("a placement of ", experts, " experts in ", layers, " layers"));
  }
  std::vector<int32_t> row(experts), table;
  std::iota(row.begin(), row.end(), 0);
  for (int l = 0; l < layers; ++l) table.insert(table.end(), row.begin(), row.end());
  return Create(version, experts, ranks,
                {table.data(), {static_cast<size_t>(layers), static_cast<size_t>(experts)}});
}

absl::StatusOr<Placement> Placement::Without(uint64_t version,
                                             const std::vector<bool>& present) const {
  SY_CHECK(present.size() == static_cast<size_t>(ranks_));
  std::vector<int> survivors;
  for (int r = 0; r < ranks_; ++r) {
    if (present[r]) survivors.push_back(r);
  }
  if (survivors.empty()) return absl::InvalidArgumentError("a placement without any rank");
  // Per layer and rank, what comes behind its slots; dealt in turn, the first rank first.
  std::vector<std::vector<std::vector<int32_t>>> added(layers_);
  size_t most = 0;
  for (int l = 0; l < layers_; ++l) {
    added[l].resize(ranks_);
    size_t next = 0;
    for (int e = 0; e < experts_; ++e) {
      const auto replicas = Replicas(l, e);
      const bool lost = std::none_of(replicas.begin(), replicas.end(),
                                     [&](const Replica& r) { return present[r.rank.value()]; });
      if (!lost) continue;
      std::vector<int32_t>& to = added[l][survivors[next++ % survivors.size()]];
      to.push_back(e);
      most = std::max(most, to.size());
    }
  }
  const size_t slots = slots_per_rank_ + most;
  std::vector<int32_t> table;
  for (int l = 0; l < layers_; ++l) {
    for (int r = 0; r < ranks_; ++r) {
      const size_t begin = table.size();
      if (present[r]) {
        const auto hosted = Hosted(l, RankId(r));
        table.insert(table.end(), hosted.begin(), hosted.end());
        table.insert(table.end(), added[l][r].begin(), added[l][r].end());
      }
      table.resize(begin + slots, kEmptySlot);
    }
  }
  return Create(version, experts_, ranks_,
                {table.data(), {static_cast<size_t>(layers_), slots * ranks_}});
}

std::span<const Replica> Placement::Replicas(int layer, int logical) const {
  SY_CHECK(layer >= 0 && layer < layers_ && logical >= 0 && logical < experts_);
  const size_t i = static_cast<size_t>(layer) * experts_ + logical;
  return std::span(replicas_).subspan(offsets_[i], offsets_[i + 1] - offsets_[i]);
}

int32_t Placement::Logical(int layer, ExpertId physical) const {
  const int32_t p = physical.value();
  SY_CHECK(p >= 0);
  return Hosted(layer, RankId(p / slots_per_rank_))[p % slots_per_rank_];
}

std::span<const int32_t> Placement::Hosted(int layer, RankId rank) const {
  SY_CHECK(layer >= 0 && layer < layers_ && rank.value() >= 0 && rank.value() < ranks_);
  const size_t row = static_cast<size_t>(layer) * ranks_ + rank.value();
  return std::span(logical_).subspan(row * slots_per_rank_, slots_per_rank_);
}

std::vector<double> Placement::RankLoads(int layer, std::span<const double> expert_loads) const {
  SY_CHECK(expert_loads.size() == static_cast<size_t>(experts_));
  std::vector<double> loads(ranks_);
  for (int e = 0; e < experts_; ++e) {
    const auto replicas = Replicas(layer, e);
    for (const Replica& r : replicas) {
      loads[r.rank.value()] += expert_loads[e] / static_cast<double>(replicas.size());
    }
  }
  return loads;
}

}  // namespace switchyard
