#include "model/hosted_experts.h"

#include <algorithm>
#include <map>

#include "common/check.h"

namespace switchyard {

void LayerWeights::MakeTable() {
  const auto there = [](const PackedExpert& e) { return e.hidden > 0; };
  const auto any = std::find_if(experts.begin(), experts.end(), there);
  expert_table.clear();
  for (const PackedExpert& e : experts) {
    // An empty slot never gets a row, but the kernel wants all experts of a call to be alike.
    expert_table.push_back(there(e) || any == experts.end() ? &e : &*any);
  }
}

std::vector<ExpertKey> MissingExperts(int layers, const HostedExperts& there,
                                      const HostedExperts& wanted, const SpareExperts& spare) {
  std::vector<ExpertKey> missing;
  for (int l = 0; l < layers; ++l) {
    const std::span<const int32_t> now = there(l), then = wanted(l);
    if (now.empty() || std::equal(now.begin(), now.end(), then.begin(), then.end())) continue;
    std::map<int32_t, size_t> had;
    for (const int32_t e : now) ++had[e];
    std::map<int32_t, size_t> needed;
    for (const int32_t e : then) {
      if (e >= 0 && ++needed[e] > had[e] + spare.count({l, e})) missing.push_back({l, e});
    }
  }
  return missing;
}

void RehostExperts(const HostedExperts& hosted, ModelWeights* weights, SpareExperts* spare) {
  for (int l = 0; l < static_cast<int>(weights->layers.size()); ++l) {
    LayerWeights& w = weights->layers[l];
    const std::span<const int32_t> wanted = hosted(l);
    const std::vector<int32_t>& there = w.logical_experts;
    if (there.empty() || std::equal(there.begin(), there.end(), wanted.begin(), wanted.end())) {
      continue;
    }
    for (size_t i = 0; i < w.experts.size(); ++i) {
      if (there[i] >= 0) spare->emplace(ExpertKey{l, there[i]}, std::move(w.experts[i]));
    }
    w.experts.clear();
    for (const int32_t e : wanted) {
      PackedExpert& slot = w.experts.emplace_back();
      if (e < 0) continue;
      const auto it = spare->find({l, e});
      SY_CHECK(it != spare->end());
      slot = std::move(it->second);
      spare->erase(it);
    }
    w.logical_experts.assign(wanted.begin(), wanted.end());
    w.MakeTable();
  }
}

}  // namespace switchyard
