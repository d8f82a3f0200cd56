#include "bench/report.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"

namespace switchyard {
namespace {

using nlohmann::ordered_json;
constexpr size_t kIntervalsMax = 400;  // even: they are merged in pairs
constexpr size_t kErrorsMax = 8;
constexpr size_t kDriftBatches = 16;

double Ms(absl::Duration d) { return absl::ToDoubleMilliseconds(d); }

// mean, median, std and pXX of one metric under vLLM's key names.
void AddMetric(const ReportOptions& o, const std::string& name, const LatencyHistogram& h,
               ordered_json& out) {
  const auto add = [&](const std::string& figure, double ms) {
    out[absl::StrCat(figure, "_", name, "_ms")] = h.count() > 0 ? ordered_json(ms) : nullptr;
  };
  add("mean", h.mean_ms());
  add("median", h.PercentileMs(50));
  add("std", h.std_ms());
  for (double p : o.percentiles) add(absl::StrCat("p", p), h.PercentileMs(p));
}

double MeanOr0(double sum, int64_t n) { return n == 0 ? 0 : sum / static_cast<double>(n); }

// Means of at most `batches` equal runs of intervals; runs without a sample are left out.
std::vector<double> BatchMeans(const std::vector<Interval>& intervals, size_t batches,
                               double Interval::*sum, int64_t Interval::*count) {
  std::vector<double> out;
  const size_t per = std::max<size_t>(1, intervals.size() / batches);
  for (size_t i = 0; i + per <= intervals.size(); i += per) {
    Interval all;
    for (size_t j = i; j < i + per; ++j) all += intervals[j];
    if (all.*count > 0) out.push_back(MeanOr0(all.*sum, all.*count));
  }
  return out;
}

}  // namespace

absl::StatusOr<Goodput> ParseGoodput(const std::vector<std::string>& items) {
  Goodput goodput;
  const std::pair<const char*, std::optional<absl::Duration>*> names[] = {
      {"ttft:", &goodput.ttft}, {"tpot:", &goodput.tpot}, {"e2el:", &goodput.e2el}};
  for (const std::string& item : items) {
    bool known = false;
    for (const auto& [name, value] : names) {
      double ms = 0;
      if (!item.starts_with(name) || !absl::SimpleAtod(item.substr(5), &ms) || !(ms > 0)) continue;
      *value = absl::Milliseconds(ms);
      known = true;
    }
    if (!known) {
      return absl::InvalidArgumentError(
          absl::StrCat("--goodput is \"", item,
                       "\", must be ttft:MS, tpot:MS or e2el:MS with a positive number"));
    }
  }
  return goodput;
}

ordered_json ToJson(const Goodput& g) {
  ordered_json out = ordered_json::object();
  for (const auto& [name, limit] :
       {std::pair("ttft", &g.ttft), std::pair("tpot", &g.tpot), std::pair("e2el", &g.e2el)}) {
    if (*limit) out[name] = Ms(**limit);
  }
  return out;
}

void Interval::operator+=(const Interval& o) {
  for (auto field :
       {&Interval::sent, &Interval::completed, &Interval::failed, &Interval::output_tokens,
        &Interval::tpots, &Interval::ttfts, &Interval::itls}) {
    this->*field += o.*field;
  }
  for (auto field :
       {&Interval::ttft_ms, &Interval::tpot_ms, &Interval::itl_ms, &Interval::e2el_ms}) {
    this->*field += o.*field;
  }
  itl_max_ms = std::max(itl_max_ms, o.itl_max_ms);
}

Interval& RunStatistics::At(absl::Duration moment) {
  moment = std::max(moment, absl::ZeroDuration());
  while (moment / width_ >= static_cast<double>(kIntervalsMax)) {
    intervals_.resize((intervals_.size() + 1) / 2 * 2);
    for (size_t i = 0; i < intervals_.size() / 2; ++i) {
      Interval both = intervals_[2 * i];
      both += intervals_[2 * i + 1];
      intervals_[i] = both;
    }
    intervals_.resize(intervals_.size() / 2);
    width_ *= 2;
  }
  const auto index = static_cast<size_t>(moment / width_);
  if (index >= intervals_.size()) intervals_.resize(index + 1);
  return intervals_[index];
}

bool RunStatistics::Good(const RequestRecord& r) {
  const Goodput& g = options_.goodput;
  bool good = true;
  const auto judge = [&](const std::optional<absl::Duration>& limit, absl::Duration d,
                         int64_t* missed) {
    if (!limit || d <= *limit) return;
    ++*missed;
    good = false;
  };
  const absl::Duration tpot =
      r.output_tokens > 1 ? (r.e2e - r.ttft) / (r.output_tokens - 1) : absl::ZeroDuration();
  judge(g.ttft, r.ttft, &missed_ttft_);
  judge(g.tpot, tpot, &missed_tpot_);
  judge(g.e2el, r.e2e, &missed_e2el_);
  return good;
}

void RunStatistics::Add(RequestRecord r) {
  ++ended_;
  cut_ += r.cut;
  dropped_ += r.dropped;
  interrupted_ += r.interrupted;
  late_count_ += r.sent_late > kLateAfter;
  own_late_count_ += r.sent_late - r.held_back > kLateAfter;
  held_back_ += r.held_back > absl::ZeroDuration();
  late_.Add(r.sent_late);
  ++At(r.intended + r.sent_late).sent;
  if (!r.error.empty()) {
    ++failed_;
    ++At(r.intended + r.e2e).failed;
    // A server's words: nothing in them shall move a terminal's cursor.
    std::replace_if(
        r.error.begin(), r.error.end(), [](char c) { return absl::ascii_iscntrl(c); }, ' ');
    const auto known = std::find_if(errors_.begin(), errors_.end(),
                                    [&](const auto& e) { return e.first == r.error; });
    if (known != errors_.end()) {
      ++known->second;
    } else if (errors_.size() < kErrorsMax) {
      errors_.emplace_back(r.error, 1);
    }
  } else if (!r.dropped && !r.interrupted) {
    AddCompleted(r);
  }
  if (options_.detailed) AddDetails(std::move(r));
}

void RunStatistics::AddCompleted(const RequestRecord& r) {
  ++completed_;
  input_ += r.prompt_tokens;
  output_ += r.output_tokens;
  kv_bytes_ += r.kv_bytes_moved;
  good_ += Good(r);
  ttft_.Add(r.ttft);
  e2e_.Add(r.e2e);
  absl::Duration moment = r.intended + r.ttft;
  Interval& first = At(moment);
  ++first.ttfts;
  first.ttft_ms += Ms(r.ttft);
  for (absl::Duration gap : r.itls) {
    itl_.Add(gap);
    Interval& then = At(moment += gap);
    ++then.itls;
    then.itl_ms += Ms(gap);
    then.itl_max_ms = std::max(then.itl_max_ms, Ms(gap));
  }
  Interval& last = At(r.intended + r.e2e);
  ++last.completed;
  last.output_tokens += r.output_tokens;
  last.e2el_ms += Ms(r.e2e);
  if (r.output_tokens > 1) {
    const absl::Duration tpot = (r.e2e - r.ttft) / (r.output_tokens - 1);
    tpot_.Add(tpot);
    ++last.tpots;
    last.tpot_ms += Ms(tpot);
  }
}

void RunStatistics::AddDetails(RequestRecord r) {
  details_["input_lens"].push_back(r.prompt_tokens);
  details_["output_lens"].push_back(r.output_tokens);
  details_["ttfts"].push_back(absl::ToDoubleSeconds(r.ttft));
  ordered_json itls = ordered_json::array();
  for (absl::Duration d : r.itls) itls.push_back(absl::ToDoubleSeconds(d));
  details_["itls"].push_back(std::move(itls));
  details_["errors"].push_back(std::move(r.error));
}

Verdict RunStatistics::Judge(absl::Duration duration, const RunFacts& run) const {
  VerdictInput in;
  in.run = run;
  in.paced = options_.paced;
  in.completed = completed_;
  in.failed = failed_;
  in.late = own_late_count_;
  in.held_back = held_back_;
  in.percentile_max = *std::max_element(options_.percentiles.begin(), options_.percentiles.end());
  in.duration = duration;
  in.ttft_means_ms = BatchMeans(intervals_, kDriftBatches, &Interval::ttft_ms, &Interval::ttfts);
  in.tpot_means_ms = BatchMeans(intervals_, kDriftBatches, &Interval::tpot_ms, &Interval::tpots);
  return switchyard::Judge(in);
}

ordered_json RunStatistics::Series() const {
  ordered_json out = {{"seconds", absl::ToDoubleSeconds(width_)}};
  const std::pair<const char*, int64_t Interval::*> counts[] = {
      {"sent", &Interval::sent},     {"completed", &Interval::completed},
      {"failed", &Interval::failed}, {"output_tokens", &Interval::output_tokens},
      {"ttfts", &Interval::ttfts},   {"tpots", &Interval::tpots},
      {"itls", &Interval::itls}};
  const std::pair<const char*, double Interval::*> sums[] = {{"ttft_ms_sum", &Interval::ttft_ms},
                                                             {"tpot_ms_sum", &Interval::tpot_ms},
                                                             {"itl_ms_sum", &Interval::itl_ms},
                                                             {"e2el_ms_sum", &Interval::e2el_ms},
                                                             {"itl_ms_max", &Interval::itl_max_ms}};
  for (const auto& [name, field] : counts) {
    for (const Interval& i : intervals_) out[name].push_back(i.*field);
  }
  for (const auto& [name, field] : sums) {
    for (const Interval& i : intervals_) out[name].push_back(i.*field);
  }
  return out;
}

ordered_json RunStatistics::Report(absl::Duration duration, const RunFacts& run) const {
  const double seconds = std::max(1e-9, absl::ToDoubleSeconds(duration));
  const ReportOptions& o = options_;
  ordered_json out;
  out["date"] = absl::FormatTime("%Y%m%d-%H%M%S", absl::Now(), absl::UTCTimeZone());
  out["backend"] = o.backend;
  out["model_id"] = o.model_id;
  out["dataset_name"] = o.dataset;
  out["num_prompts"] = ended_;
  out["request_rate"] = o.request_rate > 0 ? ordered_json(o.request_rate) : ordered_json("inf");
  out["burstiness"] = o.burstiness;
  out["max_concurrency"] = o.max_concurrency > 0 ? ordered_json(o.max_concurrency) : nullptr;
  out["parameters"] = o.parameters;
  const Verdict verdict = Judge(duration, run);
  out["verdict"] = verdict.invalid.empty() ? "VALID" : "INVALID";
  out["verdict_reasons"] = verdict.invalid;
  out["notes"] = verdict.notes;
  out["duration"] = seconds;
  out["completed"] = completed_;
  out["failed"] = failed_;
  out["dropped"] = dropped_;
  out["interrupted"] = interrupted_;
  out["cut"] = cut_;
  out["sent_late"] = late_count_;
  out["driver_late"] = own_late_count_;
  out["held_back"] = held_back_;
  out["total_input_tokens"] = input_;
  out["total_output_tokens"] = output_;
  out["request_throughput"] = static_cast<double>(completed_) / seconds;
  out["output_throughput"] = static_cast<double>(output_) / seconds;
  out["total_token_throughput"] = static_cast<double>(input_ + output_) / seconds;
  if (o.goodput.asked()) {
    out["request_goodput"] = static_cast<double>(good_) / seconds;
    out["goodput_share"] =
        static_cast<double>(good_) / std::max<double>(1, static_cast<double>(completed_ + failed_));
    const std::pair<const char*, int64_t> missed[] = {
        {"ttft", missed_ttft_}, {"tpot", missed_tpot_}, {"e2el", missed_e2el_}};
    for (const auto& [name, count] : missed) {
      if (count > 0) out["goodput_missed"][name] = count;
    }
  }
  out["kv_bytes_moved"] = kv_bytes_;
  out["error_counts"] = ordered_json::object();
  for (const auto& [error, count] : errors_) out["error_counts"][error] = count;
  const std::pair<const char*, const LatencyHistogram*> metrics[] = {
      {"ttft", &ttft_}, {"tpot", &tpot_}, {"itl", &itl_}, {"e2el", &e2e_}, {"sent_late", &late_}};
  for (const auto& [name, histogram] : metrics) AddMetric(o, name, *histogram, out);
  out["intervals"] = Series();
  for (const auto& [name, histogram] : metrics) {
    out["histograms_ms"][name] = histogram->Buckets();  // [[middle, count], …]
  }
  for (const auto& [key, value] : details_.items()) out[key] = value;
  return out;
}

}  // namespace switchyard
