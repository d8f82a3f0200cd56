#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "bench/compare.h"
#include "bench/report.h"

namespace switchyard {
namespace {

// Counts that matter only if there are any.
void AppendCounts(const nlohmann::ordered_json& r, std::string* text) {
  const std::pair<const char*, const char*> counts[] = {
      {"failed", "failed"},
      {"dropped", "dropped midway on purpose"},
      {"interrupted", "cut off when the test was interrupted"},
      {"cut", "cut to the model's context"},
      {"sent_late", "sent more than 10 ms late"},
  };
  for (const auto& [key, what] : counts) {
    if (const int64_t n = r[key].get<int64_t>(); n > 0)
      absl::StrAppendFormat(text, "%d %s\n", n, what);
  }
  for (const auto& [error, count] : r["error_counts"].items()) {
    absl::StrAppendFormat(text, "  %d times: %s\n", count.get<int64_t>(), error);
  }
}

// "-" of nothing.
std::string MsText(const nlohmann::ordered_json& ms) {
  return ms.is_number() ? absl::StrFormat("%.2f", ms.get<double>()) : "-";
}

// Of the histogram: a report's own percentiles are those that were asked for.
std::string P99Text(const nlohmann::ordered_json& report, const char* metric) {
  const auto p99 = PercentileEstimate(report["histograms_ms"][metric], 99);
  return p99.ok() && !std::isnan(p99->value) ? MsText(p99->value) : "-";
}

// "99 % of requests with ttft <= 500 ms, tpot <= 50 ms"
std::string PromiseText(const nlohmann::ordered_json& sweep) {
  std::string text =
      absl::StrFormat("%g %% of requests with", 100 * sweep["attainment"].get<double>());
  const char* separator = " ";
  for (const auto& [name, ms] : sweep["goodput"].items()) {
    absl::StrAppendFormat(&text, "%s%s <= %g ms", std::exchange(separator, ", "), name,
                          ms.get<double>());
  }
  return text;
}

}  // namespace

std::string ReportText(const nlohmann::ordered_json& r, const std::vector<std::string>& metrics) {
  std::string text = absl::StrFormat(
      "completed %d of %d in %.2f s: %.2f requests/s, %.1f output tokens/s, %.1f tokens/s in all\n",
      r["completed"].get<int64_t>(), r["num_prompts"].get<int64_t>(), r["duration"].get<double>(),
      r["request_throughput"].get<double>(), r["output_throughput"].get<double>(),
      r["total_token_throughput"].get<double>());
  if (r.contains("request_goodput")) {
    absl::StrAppendFormat(&text, "goodput %.2f requests/s (%.1f %% of all)\n",
                          r["request_goodput"].get<double>(),
                          100 * r["goodput_share"].get<double>());
  }
  AppendCounts(r, &text);
  absl::StrAppendFormat(&text, "%-12s", "ms");
  std::vector<std::string> columns;
  for (const auto& [key, value] : r.items()) {
    if (key.ends_with("_ttft_ms")) columns.push_back(key.substr(0, key.size() - 8));
  }
  for (const std::string& c : columns) absl::StrAppendFormat(&text, "%10s", c);
  for (const std::string& m : metrics) {
    absl::StrAppendFormat(&text, "\n%-12s", m);
    for (const std::string& c : columns) {
      absl::StrAppendFormat(&text, "%10s", MsText(r[absl::StrCat(c, "_", m, "_ms")]));
    }
  }
  absl::StrAppend(&text, "\n", r["verdict"].get<std::string>());
  const char* separator = ": ";
  for (const auto& why : r["verdict_reasons"]) {
    absl::StrAppend(&text, std::exchange(separator, "; "), why.get<std::string>());
  }
  for (const auto& note : r["notes"]) absl::StrAppend(&text, "\nnote: ", note.get<std::string>());
  return text + "\n";
}

std::string SweepText(const nlohmann::ordered_json& sweep) {
  std::vector<const nlohmann::ordered_json*> trials;
  for (const auto& trial : sweep["trials"]) trials.push_back(&trial);
  std::sort(trials.begin(), trials.end(), [](const auto* a, const auto* b) {
    return (*a)["rate"].template get<double>() < (*b)["rate"].template get<double>();
  });
  std::string text =
      absl::StrFormat("%12s %8s %14s %14s\n", "requests/s", "good", "p99 TTFT, ms", "p99 TPOT, ms");
  for (const auto* trial : trials) {
    const nlohmann::ordered_json& r = (*trial)["report"];
    const std::string why = (*trial)["why"];
    absl::StrAppendFormat(&text, "%12.3f %6.1f %% %14s %14s  %s%s\n",
                          (*trial)["rate"].get<double>(), 100 * r["goodput_share"].get<double>(),
                          P99Text(r, "ttft"), P99Text(r, "tpot"),
                          why.empty() ? "met" : "not met: ", why);
  }
  absl::StrAppend(&text, "wanted: ", PromiseText(sweep), "\n");
  const double best = sweep["max_rate"];
  text += best > 0 ? absl::StrFormat("highest rate that met it: %.3f requests/s", best)
                   : "none of these rates met it";
  const std::string limit = sweep["limit"];
  const std::pair<const char*, const char*> limits[] = {
      {"server", "; the server kept it at none that is higher"},
      {"driver", "; this driver could not send faster"},
      {"rate_max", "; no higher one was to be tried"},
      {"interrupted", "; interrupted"}};
  for (const auto& [name, what] : limits) {
    if (limit == name) absl::StrAppend(&text, what);
  }
  return text + "\n";
}

}  // namespace switchyard
