#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "bench/report.h"

namespace switchyard {
namespace {

// Counts that matter only if there are any.
void AppendCounts(const nlohmann::ordered_json& r, std::string* text) {
  const std::pair<const char*, const char*> counts[] = {
      {"failed", "failed"},
      {"dropped", "dropped midway on purpose"},
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
      absl::StrAppendFormat(&text, "%10.2f", r[absl::StrCat(c, "_", m, "_ms")].get<double>());
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

}  // namespace switchyard
