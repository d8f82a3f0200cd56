// model/hosted_experts.h: other experts for a rank that has its weights already.
#pragma once

#include <vector>

#include "model/weights.h"

namespace switchyard {

// The experts that `wanted` names and that neither `there`, of layers without experts empty, nor
// `spare` have.
std::vector<ExpertKey> MissingExperts(int layers, const HostedExperts& there,
                                      const HostedExperts& wanted, const SpareExperts& spare);
// Makes every MoE layer host what `hosted` says, from the layer's own experts and from `spare`.
// None may be missing. Experts that no slot wants are left in `spare`.
void RehostExperts(const HostedExperts& hosted, ModelWeights* weights, SpareExperts* spare);

}  // namespace switchyard
