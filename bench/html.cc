#include "bench/html.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_replace.h"
#include "bench/compare.h"
#include "bench/report.h"

namespace switchyard {
namespace {

using nlohmann::ordered_json;
constexpr double kWidth = 640, kHeight = 300, kLeft = 64, kRight = 16, kTop = 32, kBottom = 56;
constexpr const char* kColours[] = {"#1f6f8b", "#c8553d", "#588157", "#6d597a"};

std::string Escaped(const std::string& text) {
  return absl::StrReplaceAll(text,
                             {{"&", "&amp;"}, {"<", "&lt;"}, {">", "&gt;"}, {"\"", "&quot;"}});
}

// 1, 2 or 5 times a power of ten, not below `value`.
double RoundAbove(double value) {
  if (!(value > 0)) return 1;
  const double power = std::pow(10, std::floor(std::log10(value)));
  for (const double step : {1.0, 2.0, 5.0}) {
    if (step * power >= value) return step * power;
  }
  return 10 * power;
}

std::vector<double> Numbers(const ordered_json& list) {
  std::vector<double> out;
  for (const auto& v : list) out.push_back(v.get<double>());
  return out;
}

std::vector<std::pair<double, double>> Cdf(const ordered_json& buckets) {
  double total = 0, seen = 0;
  for (const auto& b : buckets) total += b[1].get<double>();
  std::vector<std::pair<double, double>> points;
  for (const auto& b : buckets) {
    seen += b[1].get<double>();
    points.emplace_back(b[0].get<double>(), 100 * seen / total);
  }
  return points;
}

// sums[i] / counts[i] at the middle of slice i; slices without a count are left out.
std::vector<std::pair<double, double>> Means(const ordered_json& intervals, const char* sums,
                                             const char* counts) {
  const double seconds = intervals["seconds"].get<double>();
  const std::vector<double> sum = Numbers(intervals[sums]);
  const std::vector<double> count =
      counts != nullptr ? Numbers(intervals[counts]) : std::vector<double>(sum.size(), seconds);
  std::vector<std::pair<double, double>> points;
  for (size_t i = 0; i < sum.size(); ++i) {
    if (count[i] > 0)
      points.emplace_back((static_cast<double>(i) + 0.5) * seconds, sum[i] / count[i]);
  }
  return points;
}

std::vector<std::pair<double, double>> Zip(const ordered_json& x, const ordered_json& y) {
  std::vector<std::pair<double, double>> points;
  for (size_t i = 0; i < x.size(); ++i) points.emplace_back(x[i].get<double>(), y[i].get<double>());
  return points;
}

std::string RunPlots(const ordered_json& r) {
  const ordered_json& t = r["intervals"];
  const ordered_json& h = r["histograms_ms"];
  std::string out =
      LinePlot("Time to first token", "ms", "% of requests", {{"TTFT", Cdf(h["ttft"])}});
  out += LinePlot("Between tokens", "ms", "% of gaps",
                  {{"ITL", Cdf(h["itl"])}, {"TPOT", Cdf(h["tpot"])}});
  out += LinePlot("Between tokens over time", "seconds", "ms",
                  {{"mean", Means(t, "itl_ms_sum", "itls")}});
  out += LinePlot("Time to first token over time", "seconds", "ms",
                  {{"mean", Means(t, "ttft_ms_sum", "ttfts")}});
  out += LinePlot(
      "Requests over time", "seconds", "per second",
      {{"sent", Means(t, "sent", nullptr)}, {"completed", Means(t, "completed", nullptr)}});
  out += LinePlot("Output tokens over time", "seconds", "per second",
                  {{"tokens of requests that ended", Means(t, "output_tokens", nullptr)}});
  if (r.contains("server")) {
    const ordered_json& s = r["server"];
    out += LinePlot("The server's queue", "seconds", "requests",
                    {{"running", Zip(s["seconds"], s["running"])},
                     {"waiting", Zip(s["seconds"], s["waiting"])}});
    out += LinePlot("KV blocks in use", "seconds", "share",
                    {{"used", Zip(s["seconds"], s["kv_usage"])}});
  }
  return out;
}

// No point without a sample.
void AddP99(const ordered_json& report, const char* metric, double rate, PlotSeries* to) {
  const auto p99 = PercentileEstimate(report["histograms_ms"][metric], 99);
  if (p99.ok() && !std::isnan(p99->value)) to->points.emplace_back(rate, p99->value);
}

std::string SweepPlots(const ordered_json& sweep) {
  PlotSeries throughput{"completed", {}}, good{"good", {}}, ttft{"p99 TTFT", {}},
      tpot{"p99 TPOT", {}};
  std::vector<const ordered_json*> trials;
  for (const auto& trial : sweep["trials"]) trials.push_back(&trial);
  std::sort(trials.begin(), trials.end(), [](const ordered_json* a, const ordered_json* b) {
    return (*a)["rate"].get<double>() < (*b)["rate"].get<double>();
  });
  for (const ordered_json* trial : trials) {
    const double rate = (*trial)["rate"].get<double>();
    const ordered_json& r = (*trial)["report"];
    throughput.points.emplace_back(rate, r["request_throughput"].get<double>());
    good.points.emplace_back(rate, r["request_goodput"].get<double>());
    AddP99(r, "ttft", rate, &ttft);
    AddP99(r, "tpot", rate, &tpot);
  }
  return LinePlot("Throughput against rate", "requests per second sent", "requests per second",
                  {throughput, good}) +
         LinePlot("First token against rate", "requests per second sent", "ms", {ttft}) +
         LinePlot("Token after token against rate", "requests per second sent", "ms", {tpot});
}

}  // namespace

std::string LinePlot(const std::string& title, const std::string& x_label,
                     const std::string& y_label, const std::vector<PlotSeries>& series) {
  double x_max = 0, y_max = 0;
  bool any = false;
  for (const PlotSeries& s : series) {
    for (const auto& [x, y] : s.points) x_max = std::max(x_max, x), y_max = std::max(y_max, y);
    any = any || !s.points.empty();
  }
  if (!any) return "";
  x_max = RoundAbove(x_max);
  y_max = RoundAbove(y_max);
  const auto px = [&](double x) { return kLeft + x / x_max * (kWidth - kLeft - kRight); };
  const auto py = [&](double y) {
    return kHeight - kBottom - y / y_max * (kHeight - kTop - kBottom);
  };
  std::string svg = absl::StrFormat(
      "<svg viewBox=\"0 0 %g %g\" role=\"img\"><title>%s</title><text class=\"t\" x=\"%g\" "
      "y=\"18\">%s</text>",
      kWidth, kHeight, Escaped(title), kLeft, Escaped(title));
  for (int i = 0; i <= 4; ++i) {
    const double x = x_max * i / 4, y = y_max * i / 4;
    absl::StrAppendFormat(&svg,
                          "<path class=\"g\" d=\"M%.1f %.1fH%.1f\"/><text class=\"y\" x=\"%.1f\" "
                          "y=\"%.1f\">%g</text><text class=\"x\" x=\"%.1f\" y=\"%.1f\">%g</text>",
                          kLeft, py(y), kWidth - kRight, kLeft - 6, py(y) + 4, y, px(x),
                          kHeight - kBottom + 16, x);
  }
  absl::StrAppendFormat(&svg, "<text class=\"x\" x=\"%g\" y=\"%g\">%s (y: %s)</text>",
                        (kLeft + kWidth - kRight) / 2, kHeight - kBottom + 32, Escaped(x_label),
                        Escaped(y_label));
  size_t colour = 0;
  double legend = kLeft;
  for (const PlotSeries& s : series) {
    if (s.points.empty()) continue;
    const char* stroke = kColours[colour++ % std::size(kColours)];
    absl::StrAppend(&svg, "<polyline fill=\"none\" stroke=\"", stroke, "\" points=\"");
    for (const auto& [x, y] : s.points) absl::StrAppendFormat(&svg, "%.1f,%.1f ", px(x), py(y));
    absl::StrAppendFormat(&svg, "\"/><text style=\"fill:%s\" x=\"%g\" y=\"%g\">%s</text>", stroke,
                          legend, kHeight - 6, Escaped(s.name));
    legend += 24 + 8 * static_cast<double>(s.name.size());
  }
  return svg + "</svg>\n";
}

std::string HtmlReport(const ordered_json& report) {
  const bool sweep = report.contains("trials");
  const std::string text = sweep ? SweepText(report) : ReportText(report);
  return absl::StrCat(
      "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>switchyard bench "
      "serve</title>"
      "<style>body{font:14px sans-serif;max-width:1340px;margin:2em auto;padding:0 1em}"
      "svg{width:640px;max-width:100%;margin:4px}text{font:12px sans-serif;fill:#333}"
      ".t{font-weight:bold;font-size:14px}.x{text-anchor:middle}.y{text-anchor:end}"
      ".g{stroke:#ddd}polyline{stroke-width:1.5}pre{overflow:auto}</style>"
      "<h1>switchyard bench serve</h1><pre>",
      Escaped(text), "</pre>\n", sweep ? SweepPlots(report) : RunPlots(report), "</html>\n");
}

}  // namespace switchyard
