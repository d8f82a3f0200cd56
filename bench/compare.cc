#include "bench/compare.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/status_macros.h"

namespace switchyard {
namespace {

using nlohmann::ordered_json;
constexpr double kZ = 1.959963985;  // 97.5 % of the normal distribution
constexpr size_t kBatches = 20;
constexpr size_t kListMax = 100'000;
constexpr double kUnbounded = std::numeric_limits<double>::infinity();
constexpr double kNothing = std::numeric_limits<double>::quiet_NaN();

// Student's t at 97.5 %, by its expansion in 1/df (Abramowitz and Stegun, 26.7.5): 2 % at df = 4.
double StudentT(double df) {
  const double z2 = kZ * kZ;
  return kZ * (1 + (z2 + 1) / (4 * df) + (5 * z2 * z2 + 16 * z2 + 3) / (96 * df * df));
}

// Texts of servers may be in it, which may be no UTF-8.
std::string Dump(const ordered_json& json) {
  return json.dump(-1, ' ', false, ordered_json::error_handler_t::replace);
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

// Sums of kBatches runs of slices of about the same length; of each slice, if there are fewer.
std::vector<double> Batches(const std::vector<double>& slices) {
  std::vector<double> out(std::min(kBatches, slices.size()));
  for (size_t i = 0; i < slices.size(); ++i) out[i * out.size() / slices.size()] += slices[i];
  return out;
}

// A number of the report; kInvalidArgument: it has none of this name.
absl::StatusOr<double> Number(const ordered_json& object, const char* name) {
  const auto it = object.find(name);
  if (it == object.end() || !it->is_number() || !std::isfinite(it->get<double>())) {
    return absl::InvalidArgumentError(absl::StrCat(name, ": no number"));
  }
  return it->get<double>();
}

// The report's own throughput; the interval is of batches, the last slice as long as it was.
absl::StatusOr<Estimate> ThroughputEstimate(const ordered_json& report, const char* key,
                                            const char* sums_name) {
  ASSIGN_OR_RETURN(const double value, Number(report, key));
  ASSIGN_OR_RETURN(const std::vector<double> sums, List(report, sums_name));
  ASSIGN_OR_RETURN(const double width, Number(report["intervals"], "seconds"));
  ASSIGN_OR_RETURN(const double duration, Number(report, "duration"));
  std::vector<double> seconds(sums.size(), width);
  if (!seconds.empty()) {
    const double before = width * static_cast<double>(sums.size() - 1);
    seconds.back() = std::clamp(duration - before, 0.0, width);
  }
  Estimate e = RatioEstimate(Batches(sums), Batches(seconds));
  e.low += value - e.value;
  e.high += value - e.value;
  e.value = value;
  return e;
}

absl::StatusOr<Estimate> MeanOf(const ordered_json& report, const char* sums_name,
                                const char* counts_name) {
  ASSIGN_OR_RETURN(const std::vector<double> sums, List(report, sums_name));
  ASSIGN_OR_RETURN(const std::vector<double> counts, List(report, counts_name));
  if (counts.size() != sums.size()) {
    return absl::InvalidArgumentError("intervals: lists of different lengths");
  }
  return RatioEstimate(Batches(sums), Batches(counts));
}

ordered_json Row(const std::string& name, const Estimate& a, const Estimate& b) {
  const double change = b.value - a.value;
  const double below = std::hypot(b.value - b.low, a.high - a.value);
  const double above = std::hypot(b.high - b.value, a.value - a.low);
  const double scale = a.value > 0 ? 100 / a.value : 0;
  const auto number = [](double v) { return std::isfinite(v) ? ordered_json(v) : ordered_json(); };
  return {{"name", name},
          {"a", number(a.value)},
          {"b", number(b.value)},
          {"change_percent", number(change * scale)},
          {"low_percent", number((change - below) * scale)},
          {"high_percent", number((change + above) * scale)},
          {"differs", change - below > 0 || change + above < 0}};
}

// Of their settings: two results are of one test only if there are none.
void AddDifferences(const ordered_json& a, const ordered_json& b, ordered_json& notes) {
  const auto compare = [&](const ordered_json& x, const ordered_json& y, const std::string& key) {
    const ordered_json in_x = x.value(key, ordered_json()), in_y = y.value(key, ordered_json());
    if (in_x == in_y) return;
    notes.push_back(
        absl::StrCat(absl::CEscape(key), " differs: ", Dump(in_x), " and ", Dump(in_y)));
  };
  for (const char* key :
       {"backend", "model_id", "dataset_name", "request_rate", "max_concurrency", "burstiness"}) {
    compare(a, b, key);
  }
  const ordered_json of_a = a.value("parameters", ordered_json());
  const ordered_json of_b = b.value("parameters", ordered_json());
  if (!of_a.is_object() || !of_b.is_object()) {
    notes.push_back(absl::StrCat(of_a.is_object() ? "B" : "A",
                                 " has no parameters: what else differs is not known"));
    return;
  }
  ordered_json all = of_a;
  all.update(of_b);
  for (const auto& [key, value] : all.items()) compare(of_a, of_b, key);
}

}  // namespace

Estimate RatioEstimate(const std::vector<double>& sums, const std::vector<double>& counts) {
  double sum = 0, count = 0, batches = 0, squares = 0;
  for (size_t i = 0; i < sums.size(); ++i) {
    sum += sums[i], count += counts[i];
    batches += counts[i] > 0;
  }
  const double value = count > 0 ? sum / count : kNothing;
  if (batches < 2) return {value, -kUnbounded, kUnbounded};
  for (size_t i = 0; i < sums.size(); ++i) {
    const double residual = sums[i] - value * counts[i];
    squares += residual * residual;
  }
  const double half = StudentT(batches - 1) * std::sqrt(squares * batches / (batches - 1)) / count;
  return {value, value - half, value + half};
}

absl::StatusOr<Estimate> PercentileEstimate(const ordered_json& buckets, double percent) {
  const auto bad = [] {
    return absl::InvalidArgumentError("histograms_ms: no list of [value, count]");
  };
  if (!buckets.is_array() || buckets.size() > kListMax) return bad();
  double n = 0;
  for (const auto& b : buckets) {
    if (!b.is_array() || b.size() != 2 || !b[0].is_number() || !b[1].is_number()) return bad();
    if (b[1].get<double>() < 0) return bad();
    n += b[1].get<double>();
  }
  const auto at_rank = [&](double rank) {
    double seen = 0;
    for (const auto& b : buckets) {
      seen += b[1].get<double>();
      if (seen > rank) return b[0].get<double>();
    }
    return buckets.back()[0].get<double>();
  };
  if (n == 0) return Estimate{kNothing, -kUnbounded, kUnbounded};
  const double p = percent / 100, rank = p * (n - 1), spread = kZ * std::sqrt(n * p * (1 - p));
  // Beyond the sample nothing is known.
  return Estimate{at_rank(rank), rank < spread ? -kUnbounded : at_rank(rank - spread),
                  rank + spread > n - 1 ? kUnbounded : at_rank(rank + spread)};
}

absl::StatusOr<ordered_json> CompareReports(const ordered_json& a, const ordered_json& b) {
  ordered_json out = {{"metrics", ordered_json::array()}, {"notes", ordered_json::array()}};
  struct Batched {
    const char *name, *sums, *counts;  // no counts: a throughput
  };
  const Batched batched[] = {
      {"request_throughput", "completed", nullptr}, {"output_throughput", "output_tokens", nullptr},
      {"mean_ttft_ms", "ttft_ms_sum", "ttfts"},     {"mean_tpot_ms", "tpot_ms_sum", "tpots"},
      {"mean_itl_ms", "itl_ms_sum", "itls"},        {"mean_e2el_ms", "e2el_ms_sum", "completed"}};
  for (const auto& [name, sums, counts] : batched) {
    Estimate of[2];
    for (const auto& [report, estimate] : {std::pair(&a, &of[0]), std::pair(&b, &of[1])}) {
      if (counts == nullptr) {
        ASSIGN_OR_RETURN(*estimate, ThroughputEstimate(*report, name, sums));
      } else {
        ASSIGN_OR_RETURN(*estimate, MeanOf(*report, sums, counts));
      }
    }
    out["metrics"].push_back(Row(name, of[0], of[1]));
  }
  for (const char* metric : {"ttft", "tpot", "itl", "e2el"}) {
    for (const double p : {50.0, 99.0}) {
      Estimate of[2];
      for (const auto& [report, estimate] : {std::pair(&a, &of[0]), std::pair(&b, &of[1])}) {
        const ordered_json histograms = report->value("histograms_ms", ordered_json());
        if (!histograms.is_object() || !histograms.contains(metric)) {
          return absl::InvalidArgumentError(absl::StrCat("histograms_ms.", metric, ": is missing"));
        }
        ASSIGN_OR_RETURN(*estimate, PercentileEstimate(histograms[metric], p));
        // One step of an engine makes the gaps of all its streams: far from independent.
        if (metric == absl::string_view("itl"))
          *estimate = {estimate->value, -kUnbounded, kUnbounded};
      }
      out["metrics"].push_back(Row(absl::StrCat("p", p, "_", metric, "_ms"), of[0], of[1]));
    }
  }
  AddDifferences(a, b, out["notes"]);
  for (const auto& [name, report] : {std::pair("A", &a), std::pair("B", &b)}) {
    if (report->value("verdict", ordered_json()) == "INVALID") {
      out["notes"].push_back(absl::StrCat(
          name, " is INVALID: ", Dump(report->value("verdict_reasons", ordered_json()))));
    }
  }
  return out;
}

std::string CompareText(const ordered_json& comparison) {
  std::string text =
      absl::StrFormat("%-20s %12s %12s %10s  %s\n", "", "A", "B", "change", "95 % interval");
  const auto value = [](const ordered_json& v) {
    return v.is_null() ? "-" : absl::StrFormat("%.2f", v.get<double>());
  };
  const auto bound = [](const ordered_json& percent) {
    return percent.is_null() ? "?" : absl::StrFormat("%+.1f%%", percent.get<double>());
  };
  for (const auto& m : comparison["metrics"]) {
    absl::StrAppendFormat(&text, "%-20s %12s %12s %10s  [%s, %s] %s\n",
                          m["name"].get<std::string>(), value(m["a"]), value(m["b"]),
                          m["change_percent"].is_null() ? "-" : bound(m["change_percent"]),
                          bound(m["low_percent"]), bound(m["high_percent"]),
                          m["differs"].get<bool>() ? "differs" : "");
  }
  for (const auto& note : comparison["notes"]) {
    absl::StrAppend(&text, "note: ", note.get<std::string>(), "\n");
  }
  return text;
}

}  // namespace switchyard
