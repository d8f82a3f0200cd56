#include "bench/workload.h"

#include <algorithm>
#include <cmath>
#include <random>

#include "absl/strings/str_cat.h"

namespace switchyard {
namespace {

// Of the conversations in ShareGPT_V3 as vLLM's benchmark cuts them: most prompts are short, the
// tail is long. Log-normal fits of (median, sigma of the logarithm); lengths shaped like it, not
// the data set itself.
constexpr double kShareGptInputMedian = 100, kShareGptInputSigma = 1.3;
constexpr double kShareGptOutputMedian = 160, kShareGptOutputSigma = 1.0;
constexpr int kPromptsMax = 10'000'000;

absl::Status Invalid(const char* option, double value, const char* limit) {
  return absl::InvalidArgumentError(absl::StrCat(option, " is ", value, ", must be ", limit));
}

absl::Status Check(const WorkloadOptions& o) {
  if (o.prompts < 1 || o.prompts > kPromptsMax) {
    return Invalid("--num-prompts", o.prompts, "in [1, 10000000]");
  }
  if (o.input_len < 1) return Invalid("--random-input-len", o.input_len, "at least 1");
  if (o.output_len < 1) return Invalid("--random-output-len", o.output_len, "at least 1");
  if (!(o.range_ratio >= 0 && o.range_ratio < 1)) {
    return Invalid("--random-range-ratio", o.range_ratio, "in [0, 1)");
  }
  if (o.prefix_len < 0) return Invalid("--random-prefix-len", o.prefix_len, "at least 0");
  if (!(o.request_rate >= 0)) return Invalid("--request-rate", o.request_rate, "positive or inf");
  if (!(o.burstiness > 0)) return Invalid("--burstiness", o.burstiness, "greater than 0");
  if (o.vocab_size < 2) return Invalid("vocabulary size", o.vocab_size, "at least 2");
  if (o.tokens_max < 2) return Invalid("context length", o.tokens_max, "at least 2");
  return absl::OkStatus();
}

int DrawLength(const WorkloadOptions& o, bool input, std::mt19937_64& rng) {
  if (o.lengths == WorkloadOptions::Lengths::kShareGpt) {
    const double median = input ? kShareGptInputMedian : kShareGptOutputMedian;
    const double sigma = input ? kShareGptInputSigma : kShareGptOutputSigma;
    std::lognormal_distribution<double> draw(std::log(median), sigma);
    return std::max(1, static_cast<int>(std::min(draw(rng), 1e6)));
  }
  const int mean = input ? o.input_len : o.output_len;
  const int low = std::max(1, static_cast<int>(std::floor(mean * (1 - o.range_ratio))));
  const int high = std::max(low, static_cast<int>(std::ceil(mean * (1 + o.range_ratio))));
  return std::uniform_int_distribution<int>(low, high)(rng);
}

}  // namespace

absl::StatusOr<std::vector<WorkItem>> MakeWorkload(const WorkloadOptions& o) {
  if (absl::Status status = Check(o); !status.ok()) return status;
  std::mt19937_64 rng(o.seed);
  std::uniform_int_distribution<TokenId> token(0, o.vocab_size - 1);
  std::vector<TokenId> prefix(o.prefix_len);
  for (TokenId& t : prefix) t = token(rng);

  std::vector<WorkItem> items(o.prompts);
  absl::Duration at;
  for (WorkItem& item : items) {
    item.send_at = at;
    if (o.request_rate > 0) {
      // Gaps with mean 1/rate: gamma of shape b and scale 1/(rate·b).
      std::gamma_distribution<double> gap(o.burstiness, 1 / (o.request_rate * o.burstiness));
      at += absl::Seconds(gap(rng));
    }
    const int output = DrawLength(o, false, rng);
    item.output_len = std::min(output, o.tokens_max - 1);
    const int64_t drawn = int64_t{DrawLength(o, true, rng)} + o.prefix_len;
    const int input = static_cast<int>(std::min<int64_t>(drawn, o.tokens_max - item.output_len));
    item.cut = drawn + output > o.tokens_max;
    item.prompt_ids = prefix;
    item.prompt_ids.resize(input);
    for (int i = std::min(o.prefix_len, input); i < input; ++i) item.prompt_ids[i] = token(rng);
  }
  return items;
}

}  // namespace switchyard
