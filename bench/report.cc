#include "bench/report.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"

namespace switchyard {
namespace {
using nlohmann::ordered_json;

double Ms(absl::Duration d) { return absl::ToDoubleMilliseconds(d); }

// mean, median, std and pXX of one metric under vLLM's key names.
void AddMetric(const ReportOptions& o, const std::string& name, std::vector<double> values,
               ordered_json& out) {
  std::sort(values.begin(), values.end());
  const double n = std::max<size_t>(1, values.size());
  const double mean = std::accumulate(values.begin(), values.end(), 0.0) / n;
  double squares = 0;
  for (double v : values) squares += (v - mean) * (v - mean);
  out[absl::StrCat("mean_", name, "_ms")] = mean;
  out[absl::StrCat("median_", name, "_ms")] = Percentile(values, 50);
  out[absl::StrCat("std_", name, "_ms")] = std::sqrt(squares / n);
  for (double p : o.percentiles) {
    out[absl::StrCat("p", p, "_", name, "_ms")] = Percentile(values, p);
  }
}

void AddDetails(const std::vector<RequestRecord>& records, ordered_json& out) {
  for (const char* key : {"input_lens", "output_lens", "ttfts", "itls", "errors"}) {
    out[key] = ordered_json::array();
  }
  for (const RequestRecord& r : records) {
    out["input_lens"].push_back(r.prompt_tokens);
    out["output_lens"].push_back(r.output_tokens);
    out["ttfts"].push_back(absl::ToDoubleSeconds(r.ttft));
    ordered_json itls = ordered_json::array();
    for (absl::Duration d : r.itls) itls.push_back(absl::ToDoubleSeconds(d));
    out["itls"].push_back(std::move(itls));
    out["errors"].push_back(r.error);
  }
}

}  // namespace

double Percentile(const std::vector<double>& sorted, double percent) {
  if (sorted.empty()) return 0;
  const double at = percent / 100 * static_cast<double>(sorted.size() - 1);
  const size_t low = static_cast<size_t>(at);
  const size_t high = std::min(low + 1, sorted.size() - 1);
  return sorted[low] + (sorted[high] - sorted[low]) * (at - static_cast<double>(low));
}

ordered_json MakeReport(const ReportOptions& o, const std::vector<RequestRecord>& records,
                        absl::Duration duration) {
  std::vector<double> ttft, tpot, itl, e2e, late;
  int64_t input = 0, output = 0, completed = 0, dropped = 0, cut = 0;
  uint64_t kv_bytes = 0;
  for (const RequestRecord& r : records) {
    late.push_back(Ms(r.sent_late));
    dropped += r.dropped;
    cut += r.cut;
    if (r.dropped || !r.error.empty()) continue;
    ++completed;
    input += r.prompt_tokens;
    output += r.output_tokens;
    kv_bytes += r.kv_bytes_moved;
    ttft.push_back(Ms(r.ttft));
    e2e.push_back(Ms(r.e2e));
    if (r.output_tokens > 1) tpot.push_back(Ms(r.e2e - r.ttft) / (r.output_tokens - 1));
    for (absl::Duration d : r.itls) itl.push_back(Ms(d));
  }
  const double seconds = std::max(1e-9, absl::ToDoubleSeconds(duration));
  ordered_json out;
  out["date"] = absl::FormatTime("%Y%m%d-%H%M%S", absl::Now(), absl::UTCTimeZone());
  out["backend"] = o.backend;
  out["model_id"] = o.model_id;
  out["dataset_name"] = o.dataset;
  out["num_prompts"] = records.size();
  out["request_rate"] = o.request_rate > 0 ? ordered_json(o.request_rate) : ordered_json("inf");
  out["burstiness"] = o.burstiness;
  out["max_concurrency"] = o.max_concurrency > 0 ? ordered_json(o.max_concurrency) : nullptr;
  out["duration"] = seconds;
  out["completed"] = completed;
  out["failed"] = static_cast<int64_t>(records.size()) - completed - dropped;
  out["dropped"] = dropped;
  out["cut"] = cut;
  out["total_input_tokens"] = input;
  out["total_output_tokens"] = output;
  out["request_throughput"] = static_cast<double>(completed) / seconds;
  out["output_throughput"] = static_cast<double>(output) / seconds;
  out["total_token_throughput"] = static_cast<double>(input + output) / seconds;
  out["kv_bytes_moved"] = kv_bytes;
  AddMetric(o, "ttft", std::move(ttft), out);
  AddMetric(o, "tpot", std::move(tpot), out);
  AddMetric(o, "itl", std::move(itl), out);
  AddMetric(o, "e2el", std::move(e2e), out);
  AddMetric(o, "sent_late", std::move(late), out);
  if (o.detailed) AddDetails(records, out);
  return out;
}

std::string ReportText(const ordered_json& r) {
  std::string text = absl::StrFormat(
      "completed %d of %d in %.2f s: %.2f requests/s, %.1f output tokens/s, %.1f tokens/s in all\n",
      r["completed"].get<int64_t>(), r["num_prompts"].get<int64_t>(), r["duration"].get<double>(),
      r["request_throughput"].get<double>(), r["output_throughput"].get<double>(),
      r["total_token_throughput"].get<double>());
  const std::pair<const char*, const char*> counts[] = {
      {"failed", "failed"},
      {"dropped", "dropped midway on purpose"},
      {"cut", "cut to the model's context"},
  };
  for (const auto& [key, what] : counts) {
    if (const int64_t n = r[key].get<int64_t>(); n > 0) {
      absl::StrAppendFormat(&text, "%d %s\n", n, what);
    }
  }
  absl::StrAppendFormat(&text, "%-12s", "ms");
  const char* metrics[] = {"ttft", "tpot", "itl", "e2el", "sent_late"};
  std::vector<std::string> columns;
  for (const auto& [key, value] : r.items()) {
    if (key.ends_with("_ttft_ms")) columns.push_back(key.substr(0, key.size() - 8));
  }
  for (const std::string& c : columns) absl::StrAppendFormat(&text, "%10s", c);
  for (const char* m : metrics) {
    absl::StrAppendFormat(&text, "\n%-12s", m);
    for (const std::string& c : columns) {
      absl::StrAppendFormat(&text, "%10.2f", r[absl::StrCat(c, "_", m, "_ms")].get<double>());
    }
  }
  return text + "\n";
}

}  // namespace switchyard
