#include "bench/workload.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"

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

}  // namespace

absl::Status Workload::Check(const WorkloadOptions& o) {
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
  if (o.ramp_up != WorkloadOptions::RampUp::kNone) {
    if (!(o.ramp_start_rps > 0))
      return Invalid("--ramp-up-start-rps", o.ramp_start_rps, "positive");
    if (!(o.ramp_end_rps > 0)) return Invalid("--ramp-up-end-rps", o.ramp_end_rps, "positive");
  }
  if (!(o.time_scale > 0)) return Invalid("--trace-time-scale", o.time_scale, "positive");
  if (!(o.length_scale > 0 && o.length_scale <= 1)) {
    return Invalid("--trace-length-scale", o.length_scale, "in (0, 1]");
  }
  if (o.vocab_size != 0 && o.vocab_size < 2) {
    return Invalid("vocabulary size", o.vocab_size, "at least 2");
  }
  if (o.tokens_max != 0 && o.tokens_max < 2) {
    return Invalid("context length", o.tokens_max, "at least 2");
  }
  return absl::OkStatus();
}

namespace {

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

int Scaled(int length, double scale) {
  return std::max(1, static_cast<int>(std::lround(length * scale)));
}

// Fills [begin, end) of `ids` with tokens that depend on `seed` alone.
void FillTokens(uint64_t seed, size_t begin, size_t end, int vocab, std::vector<TokenId>* ids) {
  std::mt19937_64 rng(seed);
  std::uniform_int_distribution<TokenId> token(0, vocab - 1);
  for (size_t i = begin; i < end; ++i) (*ids)[i] = token(rng);
}

}  // namespace

absl::StatusOr<Workload> Workload::Create(WorkloadOptions options) {
  RETURN_IF_ERROR(Check(options));
  if (options.vocab_size == 0 || options.tokens_max == 0) {
    return absl::InvalidArgumentError("vocabulary size and context length: both are wanted");
  }
  return Workload(std::move(options));
}

Workload::Workload(WorkloadOptions options)
    : options_(std::move(options)),
      total_(options_.lengths == WorkloadOptions::Lengths::kDataset
                 ? std::min<int>(options_.prompts, static_cast<int>(options_.rows.size()))
                 : options_.prompts),
      arrivals_(options_.seed),
      contents_(options_.seed ^ 0x9e3779b97f4a7c15),
      prefix_(options_.prefix_len) {
  FillTokens(contents_(), 0, prefix_.size(), options_.vocab_size, &prefix_);
}

// To the request after `next_`: gamma of shape b and scale 1/(rate·b), so the mean is 1/rate.
absl::Duration Workload::Gap() {
  double rate = options_.request_rate;
  if (options_.ramp_up != WorkloadOptions::RampUp::kNone) {
    const double part = static_cast<double>(next_) / std::max(1, total_ - 1);
    const double start = options_.ramp_start_rps, end = options_.ramp_end_rps;
    rate = options_.ramp_up == WorkloadOptions::RampUp::kLinear
               ? start + (end - start) * part
               : start * std::pow(end / start, part);
  }
  if (!(rate > 0)) return absl::ZeroDuration();
  std::gamma_distribution<double> gap(options_.burstiness, 1 / (rate * options_.burstiness));
  return absl::Seconds(gap(arrivals_));
}

void Workload::FillFromRow(const DatasetRow& row, WorkItem* item) const {
  const WorkloadOptions& o = options_;
  const int output = Scaled(row.output_len, o.length_scale);
  const int64_t wanted = row.prompt_ids.empty() ? Scaled(row.input_len, o.length_scale)
                                                : static_cast<int64_t>(row.prompt_ids.size());
  item->output_len = std::min(output, o.tokens_max - 1);
  const auto input =
      static_cast<size_t>(std::min<int64_t>(wanted, o.tokens_max - item->output_len));
  item->cut = wanted + output > o.tokens_max;
  if (!row.prompt_ids.empty()) {
    item->prompt_ids.assign(row.prompt_ids.begin(), row.prompt_ids.begin() + input);
    return;
  }
  item->prompt_ids.resize(input);
  const auto block = static_cast<size_t>(Scaled(kTraceBlockTokens, o.length_scale));
  size_t filled = 0;
  for (const uint32_t id : row.block_ids) {
    if (filled == input) return;
    const size_t end = std::min(filled + block, input);
    FillTokens(o.seed * 0x9e3779b97f4a7c15 + id, filled, end, o.vocab_size, &item->prompt_ids);
    filled = end;
  }
  // What no block covers is this request's own.
  FillTokens(~(o.seed + next_), filled, input, o.vocab_size, &item->prompt_ids);
}

void Workload::FillDrawn(WorkItem* item) {
  const WorkloadOptions& o = options_;
  const int output = DrawLength(o, false, contents_);
  item->output_len = std::min(output, o.tokens_max - 1);
  const int64_t drawn = int64_t{DrawLength(o, true, contents_)} + o.prefix_len;
  const auto input = static_cast<size_t>(std::min<int64_t>(drawn, o.tokens_max - item->output_len));
  item->cut = drawn + output > o.tokens_max;
  item->prompt_ids = prefix_;
  item->prompt_ids.resize(input);
  FillTokens(contents_(), std::min(prefix_.size(), input), input, o.vocab_size, &item->prompt_ids);
}

std::optional<WorkItem> Workload::Next() {
  if (next_ >= total_) return std::nullopt;
  WorkItem item;
  if (options_.lengths == WorkloadOptions::Lengths::kDataset) {
    const DatasetRow& row = options_.rows[next_];
    FillFromRow(row, &item);
    if (options_.trace_times) at_ = row.at * options_.time_scale;
  } else {
    FillDrawn(&item);
  }
  item.send_at = at_;
  if (!options_.trace_times) at_ += Gap();
  ++next_;
  return item;
}

}  // namespace switchyard
