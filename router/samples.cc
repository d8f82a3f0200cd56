#include "router/samples.h"

#include "absl/strings/str_cat.h"

namespace switchyard {

void AppendSamples(const ClientRequest& prompt, int n, std::vector<ClientRequest>* out) {
  for (int i = 0; i < n; ++i) {
    ClientRequest& sample = out->emplace_back(prompt);
    sample.sampling.sample = static_cast<uint32_t>(i);
    if (n > 1 && !prompt.request_id.empty()) absl::StrAppend(&sample.request_id, "-", i);
  }
}

void ShareSeeds(const std::function<uint64_t()>& draw, std::vector<ClientRequest>* samples) {
  for (size_t i = 1; i < samples->size(); ++i) {
    ClientRequest& first = (*samples)[i - 1];
    ClientRequest& next = (*samples)[i];
    if (next.sampling.sample == 0) continue;
    if (!first.seed_given) first.sampling.seed = draw();
    first.seed_given = next.seed_given = true;
    next.sampling.seed = first.sampling.seed;
  }
}

}  // namespace switchyard
