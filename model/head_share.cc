#include "model/head_share.h"

#include <algorithm>
#include <bit>
#include <numeric>

#include "absl/strings/str_cat.h"

namespace switchyard {
namespace {

constexpr int kOutputGroupsMax = 8;

}  // namespace

int OutputGroups(int heads) { return std::gcd(heads, kOutputGroupsMax); }

absl::Status CheckTensorRanks(const ModelConfig& c, int ranks) {
  const auto refuse = [&](auto... why) {
    return absl::InvalidArgumentError(absl::StrCat("tensor parallelism of ", ranks, ": ", why...));
  };
  if (ranks == 1) return absl::OkStatus();
  if (ranks < 1 || !std::has_single_bit(static_cast<unsigned>(ranks)) || ranks > kOutputGroupsMax) {
    return refuse("1, 2, 4 or ", kOutputGroupsMax, " ranks are supported");
  }
  if (OutputGroups(c.heads) % ranks != 0) {
    return refuse("the model's ", c.heads, " heads can be split over ", OutputGroups(c.heads),
                  " ranks at most");
  }
  if (c.attention == ModelConfig::Attention::kMla) return absl::OkStatus();
  if (c.kv_heads % ranks != 0 && ranks % c.kv_heads != 0) {
    return refuse("the model's ", c.kv_heads, " key/value heads are neither divided by it nor ",
                  "divide it");
  }
  if (c.qk_norm == ModelConfig::QkNorm::kFullWidth) {
    return refuse("the model norms queries over all of its ", c.heads,
                  " heads at once; supported are models that norm each by itself, or none");
  }
  return absl::OkStatus();
}

HeadShare HeadsOf(const ModelConfig& c, int rank, int ranks) {
  HeadShare s;
  s.heads = c.heads / ranks;
  s.first_head = rank * s.heads;
  if (c.attention == ModelConfig::Attention::kMla) {
    s.kv_heads = s.stored = 1;
    return s;
  }
  s.kv_heads = std::max(1, c.kv_heads / ranks);
  s.first_kv = rank * c.kv_heads / ranks;
  s.stored = rank == 0 ? c.kv_heads : s.kv_heads;
  s.first_stored = rank == 0 ? 0 : s.first_kv;
  return s;
}

}  // namespace switchyard
