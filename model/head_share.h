// model/head_share.h: which heads of attention a rank of a tensor-parallel group has.
#pragma once

#include "absl/status/status.h"
#include "model/config.h"

namespace switchyard {

// The output projection sums so many groups of heads, each of heads / groups neighbours: as many as
// tensor parallelism up to 8 can want, whether there is any or not (docs/numerics.md).
int OutputGroups(int heads);

// What one of N ranks has of attention.
struct HeadShare {
  int heads = 0, first_head = 0;     // query heads
  int kv_heads = 0, first_kv = 0;    // those that they read; MLA: the latent, one for all
  int stored = 0, first_stored = 0;  // whose keys and values it computes and keeps. The first rank
                                     // keeps all: it hands the whole prompt on
};
// kInvalidArgument names the number that cannot be split.
absl::Status CheckTensorRanks(const ModelConfig& config, int ranks);
HeadShare HeadsOf(const ModelConfig& config, int rank, int ranks);

}  // namespace switchyard
