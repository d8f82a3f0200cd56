#include "bench/compare.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/status_macros.h"

namespace switchyard {
namespace {

using nlohmann::ordered_json;
constexpr double kZ = 1.959963985;  // 97.5 % of the normal distribution
constexpr size_t kBatches = 20;
constexpr size_t kListMax = 100'000;

// Student's t at 97.5 %, by its expansion in 1/df (Abramowitz and Stegun, 26.7.5): 2 % at df = 4.
double StudentT(double df) {
  const double z2 = kZ * kZ;
  return kZ * (1 + (z2 + 1) / (4 * df) + (5 * z2 * z2 + 16 * z2 + 3) / (96 * df * df));
}

// A list of finite numbers of the report's "intervals".
absl::StatusOr<std::vector<double>> List(const ordered_json& report, const char* name) {
  const auto bad = [&] {
    return absl::InvalidArgumentError(
        absl::StrCat("intervals.", name, ": no list of numbers; not a result of `bench serve`"));
  };
  if (!report.is_object() || !report.contains("intervals")) return bad();
  const ordered_json& intervals = report["intervals"];
  if (!intervals.is_object() || !intervals.contains(name) || !intervals[name].is_array())
    return bad();
  if (intervals[name].size() > kListMax) return bad();
  std::vector<double> out;
  for (const auto& value : intervals[name]) {
    if (!value.is_number() || !std::isfinite(value.get<double>())) return bad();
    out.push_back(value.get<double>());
  }
  return out;
}

// sums[i]/counts[i] over at most kBatches equal runs of slices; without counts: per second.
absl::StatusOr<Estimate> BatchEstimate(const ordered_json& report, const char* sums_name,
                                       const char* counts_name) {
  ASSIGN_OR_RETURN(const std::vector<double> sums, List(report, sums_name));
  std::vector<double> counts(sums.size(), 0);
  if (counts_name != nullptr) {
    ASSIGN_OR_RETURN(counts, List(report, counts_name));
    if (counts.size() != sums.size()) {
      return absl::InvalidArgumentError("intervals: lists of different lengths");
    }
  } else {
    const ordered_json& seconds = report["intervals"]["seconds"];
    if (!seconds.is_number()) return absl::InvalidArgumentError("intervals.seconds: no number");
    std::fill(counts.begin(), counts.end(), seconds.get<double>());
  }
  std::vector<double> means;
  const size_t per = std::max<size_t>(1, sums.size() / kBatches);
  for (size_t i = 0; i + per <= sums.size(); i += per) {
    double sum = 0, count = 0;
    for (size_t j = i; j < i + per; ++j) sum += sums[j], count += counts[j];
    if (count > 0) means.push_back(sum / count);
  }
  return MeanEstimate(means);
}

ordered_json Row(const std::string& name, const Estimate& a, const Estimate& b) {
  const double change = b.value - a.value;
  const double below = std::hypot(b.value - b.low, a.high - a.value);
  const double above = std::hypot(b.high - b.value, a.value - a.low);
  const double scale = a.value > 0 ? 100 / a.value : 0;
  return {{"name", name},
          {"a", a.value},
          {"b", b.value},
          {"change_percent", change * scale},
          {"low_percent", (change - below) * scale},
          {"high_percent", (change + above) * scale},
          {"differs", change - below > 0 || change + above < 0}};
}

}  // namespace

Estimate MeanEstimate(const std::vector<double>& values) {
  const auto n = static_cast<double>(values.size());
  double sum = 0, squares = 0;
  for (double v : values) sum += v;
  const double mean = values.empty() ? 0 : sum / n;
  if (values.size() < 2) return {mean, mean, mean};
  for (double v : values) squares += (v - mean) * (v - mean);
  const double half = StudentT(n - 1) * std::sqrt(squares / (n - 1) / n);
  return {mean, mean - half, mean + half};
}

absl::StatusOr<Estimate> PercentileEstimate(const ordered_json& buckets, double percent) {
  const auto bad = [] {
    return absl::InvalidArgumentError("histograms_ms: no list of [value, count]");
  };
  if (!buckets.is_array() || buckets.size() > kListMax) return bad();
  double n = 0;
  for (const auto& b : buckets) {
    if (!b.is_array() || b.size() != 2 || !b[0].is_number() || !b[1].is_number()) return bad();
    n += b[1].get<double>();
  }
  const auto at_rank = [&](double rank) {
    double seen = 0;
    for (const auto& b : buckets) {
      seen += b[1].get<double>();
      if (seen > rank) return b[0].get<double>();
    }
    return buckets.empty() ? 0.0 : buckets.back()[0].get<double>();
  };
  const double p = percent / 100, rank = p * (n - 1), spread = kZ * std::sqrt(n * p * (1 - p));
  return Estimate{at_rank(rank), at_rank(std::max(0.0, rank - spread)),
                  at_rank(std::min(std::max(0.0, n - 1), rank + spread))};
}

absl::StatusOr<ordered_json> CompareReports(const ordered_json& a, const ordered_json& b) {
  ordered_json out = {{"metrics", ordered_json::array()}, {"notes", ordered_json::array()}};
  struct Batched {
    const char *name, *sums, *counts;
  };
  const Batched batched[] = {
      {"request_throughput", "completed", nullptr}, {"output_throughput", "output_tokens", nullptr},
      {"mean_ttft_ms", "ttft_ms_sum", "ttfts"},     {"mean_tpot_ms", "tpot_ms_sum", "tpots"},
      {"mean_itl_ms", "itl_ms_sum", "itls"},        {"mean_e2el_ms", "e2el_ms_sum", "completed"}};
  for (const auto& [name, sums, counts] : batched) {
    ASSIGN_OR_RETURN(const Estimate of_a, BatchEstimate(a, sums, counts));
    ASSIGN_OR_RETURN(const Estimate of_b, BatchEstimate(b, sums, counts));
    out["metrics"].push_back(Row(name, of_a, of_b));
  }
  for (const char* metric : {"ttft", "tpot", "itl", "e2el"}) {
    for (const double p : {50.0, 99.0}) {
      Estimate of[2];
      for (const auto& [report, estimate] : {std::pair(&a, &of[0]), std::pair(&b, &of[1])}) {
        if (!report->contains("histograms_ms") || !(*report)["histograms_ms"].contains(metric)) {
          return absl::InvalidArgumentError(absl::StrCat("histograms_ms.", metric, ": is missing"));
        }
        ASSIGN_OR_RETURN(*estimate, PercentileEstimate((*report)["histograms_ms"][metric], p));
      }
      out["metrics"].push_back(Row(absl::StrCat("p", p, "_", metric, "_ms"), of[0], of[1]));
    }
  }
  for (const char* key :
       {"model_id", "dataset_name", "request_rate", "max_concurrency", "burstiness"}) {
    if (a.value(key, ordered_json()) == b.value(key, ordered_json())) continue;
    out["notes"].push_back(absl::StrCat(key, " differs: ", a.value(key, ordered_json()).dump(),
                                        " and ", b.value(key, ordered_json()).dump()));
  }
  for (const auto& [name, report] : {std::pair("A", &a), std::pair("B", &b)}) {
    if (report->value("verdict", ordered_json()) == "INVALID") {
      out["notes"].push_back(
          absl::StrCat(name, " is INVALID: ", (*report)["verdict_reasons"].dump()));
    }
  }
  return out;
}

std::string CompareText(const ordered_json& comparison) {
  std::string text =
      absl::StrFormat("%-20s %12s %12s %10s  %s\n", "", "A", "B", "change", "95 % interval");
  for (const auto& m : comparison["metrics"]) {
    absl::StrAppendFormat(&text, "%-20s %12.2f %12.2f %+9.1f%%  [%+.1f%%, %+.1f%%] %s\n",
                          m["name"].get<std::string>(), m["a"].get<double>(), m["b"].get<double>(),
                          m["change_percent"].get<double>(), m["low_percent"].get<double>(),
                          m["high_percent"].get<double>(),
                          m["differs"].get<bool>() ? "differs" : "");
  }
  for (const auto& note : comparison["notes"]) {
    absl::StrAppend(&text, "note: ", note.get<std::string>(), "\n");
  }
  return text;
}

}  // namespace switchyard
