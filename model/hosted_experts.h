// model/hosted_experts.h: other experts for a rank that has its weights already.
#pragma once

#include <vector>

#include "model/weights.h"

namespace switchyard {

// The experts that `hosted` names and that neither `weights` nor `spare` have.
std::vector<ExpertKey> MissingExperts(const ModelWeights& weights, const HostedExperts& hosted,
                                      const SpareExperts& spare);
// Makes every MoE layer host what `hosted` says, from the layer's own experts and from `spare`.
// None may be missing. Experts that no slot wants are left in `spare`.
void RehostExperts(const HostedExperts& hosted, ModelWeights* weights, SpareExperts* spare);

}  // namespace switchyard
