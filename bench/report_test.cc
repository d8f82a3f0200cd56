#include "bench/report.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>

#include "bench/compare.h"
#include "bench/html.h"
#include "bench/scraper.h"
#include "bench/sse.h"

namespace switchyard {
namespace {

// numpy's default.
double Exact(std::vector<double> values, double percent) {
  std::sort(values.begin(), values.end());
  const double at = percent / 100 * static_cast<double>(values.size() - 1);
  const auto low = static_cast<size_t>(at);
  const size_t high = std::min(low + 1, values.size() - 1);
  return values[low] + (values[high] - values[low]) * (at - static_cast<double>(low));
}

TEST(HistogramTest, PercentilesAreWithinOnePercentOfExactOnes) {
  std::mt19937_64 rng(7);
  for (const double sigma : {0.1, 1.0, 3.0}) {
    for (const size_t n : {1, 2, 10, 1000, 100000}) {
      LatencyHistogram h;
      std::vector<double> values;
      std::lognormal_distribution<double> draw(3, sigma);
      for (size_t i = 0; i < n; ++i) {
        values.push_back(draw(rng));
        h.Add(absl::Milliseconds(values.back()));
      }
      for (const double p : {0.0, 10.0, 50.0, 90.0, 99.0, 99.9, 100.0}) {
        const double exact = Exact(values, p);
        EXPECT_NEAR(h.PercentileMs(p), exact, exact * 0.005 + 1e-6) << "p" << p << " of " << n;
      }
    }
  }
}

TEST(HistogramTest, EdgesAreCounted) {
  LatencyHistogram h;
  EXPECT_EQ(h.PercentileMs(50), 0);
  h.Add(absl::ZeroDuration());
  h.Add(-absl::Seconds(1));
  h.Add(absl::Hours(24) * 365);
  h.Add(absl::InfiniteDuration());
  EXPECT_EQ(h.count(), 4u);
  EXPECT_EQ(h.PercentileMs(0), 0);
  EXPECT_GT(h.PercentileMs(100), 1e12);
  EXPECT_EQ(h.Buckets().front(), std::pair(0.0, uint64_t{2}));
}

RequestRecord Good() {
  RequestRecord good;
  good.prompt_tokens = 10;
  good.output_tokens = 3;
  good.ttft = absl::Milliseconds(20);
  good.e2e = absl::Milliseconds(60);
  good.itls = {absl::Milliseconds(10), absl::Milliseconds(30)};
  return good;
}

TEST(ReportTest, CountsAndKeysAreThoseOfVllm) {
  RequestRecord bad;
  bad.error = "14: gone";
  RequestRecord dropped = Good();
  dropped.dropped = dropped.cut = true;
  ReportOptions options;
  options.detailed = true;
  options.goodput = *ParseGoodput({"ttft:25", "tpot:19"});
  RunStatistics all(options);
  RequestRecord interrupted = Good();
  interrupted.interrupted = true;
  for (const RequestRecord& r : {Good(), bad, dropped, interrupted}) all.Add(r);
  const auto r = all.Report(absl::Seconds(2), {.wanted = 3});
  EXPECT_EQ(r["completed"], 1);
  EXPECT_EQ(r["failed"], 1);
  EXPECT_EQ(r["dropped"], 1);
  EXPECT_EQ(r["interrupted"], 1);
  EXPECT_EQ(r["goodput_missed"], nlohmann::ordered_json({{"tpot", 1}}));
  EXPECT_EQ(r["cut"], 1);
  EXPECT_NEAR(r["mean_ttft_ms"].get<double>(), 20, 1e-9);
  EXPECT_NEAR(r["median_tpot_ms"].get<double>(), 20, 1e-9);
  EXPECT_NEAR(r["mean_itl_ms"].get<double>(), 20, 1e-9);
  EXPECT_NEAR(r["p99_e2el_ms"].get<double>(), 60, 1e-9);
  EXPECT_EQ(r["output_throughput"], 1.5);
  EXPECT_EQ(r["request_goodput"], 0) << "TPOT is 20 ms, 19 ms were asked for";
  EXPECT_EQ(r["request_rate"], "inf");
  EXPECT_EQ(r["errors"][1], "14: gone");
  EXPECT_EQ(r["error_counts"]["14: gone"], 1);
  EXPECT_EQ(r["verdict"], "INVALID");
  for (const char* said :
       {"completed 1 of 4", "1 failed", "1 dropped", "1 cut to", "1 cut off", "ttft", "goodput",
        "INVALID: errors: 1 of 2 requests failed", "1 times: 14: gone"}) {
    EXPECT_NE(ReportText(r).find(said), std::string::npos) << said << "\n" << ReportText(r);
  }
  RunStatistics one({});
  one.Add(Good());
  const std::string calm = ReportText(one.Report(absl::Seconds(2), {}));
  EXPECT_EQ(calm.find("dropped"), std::string::npos) << calm;
  EXPECT_FALSE(ParseGoodput({"ttft"}).ok());
  EXPECT_FALSE(ParseGoodput({"itl:5"}).ok());
  EXPECT_FALSE(ParseGoodput({"tpot:-5"}).ok());
}

// One token has no time per output token: that is not 0 ms.
TEST(ReportTest, WhatHasNoSampleIsNothing) {
  RunStatistics s({});
  RequestRecord one = Good();
  one.output_tokens = 1;
  one.itls.clear();
  s.Add(one);
  const auto r = s.Report(absl::Seconds(1), {});
  EXPECT_TRUE(r["mean_tpot_ms"].is_null() && r["p99_itl_ms"].is_null());
  EXPECT_TRUE(r["mean_ttft_ms"].is_number());
  EXPECT_NE(ReportText(r, {"tpot"}).find("tpot                 -         -"), std::string::npos)
      << ReportText(r, {"tpot"});
  const auto c = *CompareReports(r, r);
  for (const auto& m : c["metrics"]) {
    const bool nothing = m["name"].get<std::string>().find("tpot") != std::string::npos ||
                         m["name"].get<std::string>().find("itl") != std::string::npos;
    EXPECT_EQ(m["a"].is_null(), nothing) << m;
    EXPECT_FALSE(m["differs"].get<bool>()) << m;
  }
  EXPECT_NE(CompareText(c).find(" -"), std::string::npos);
  EXPECT_EQ(HtmlReport(r).find("nan"), std::string::npos);
}

TEST(ReportTest, SlicesWidenAndLoseNothing) {
  RunStatistics s({});
  constexpr int kRequests = 5000;
  for (int i = 0; i < kRequests; ++i) {
    RequestRecord r = Good();
    r.intended = absl::Seconds(i);  // 5,000 s
    s.Add(r);
  }
  const auto r = s.Report(absl::Seconds(kRequests), {});
  const auto& slices = r["intervals"];
  EXPECT_LE(slices["sent"].size(), 400u);
  EXPECT_NEAR(slices["seconds"].get<double>(), 12.8, 1e-9);
  int sent = 0, completed = 0, itls = 0;
  for (size_t i = 0; i < slices["sent"].size(); ++i) {
    sent += slices["sent"][i].get<int>();
    completed += slices["completed"][i].get<int>();
    itls += slices["itls"][i].get<int>();
  }
  EXPECT_EQ(sent, kRequests);
  EXPECT_EQ(completed, kRequests);
  EXPECT_EQ(itls, 2 * kRequests);
}

nlohmann::ordered_json Sample(double mean_ms, uint64_t seed) {
  RunStatistics s({});
  std::mt19937_64 rng(seed);
  std::exponential_distribution<double> draw(1 / mean_ms);
  for (int i = 0; i < 4000; ++i) {
    RequestRecord r = Good();
    r.intended = absl::Milliseconds(10 * i);
    r.ttft = absl::Milliseconds(draw(rng));
    r.e2e = r.ttft + absl::Milliseconds(40);
    s.Add(r);
  }
  return s.Report(absl::Seconds(40), {.wanted = 4000});
}

const nlohmann::ordered_json& Metric(const nlohmann::ordered_json& c, const std::string& name) {
  for (const auto& m : c["metrics"]) {
    if (m["name"] == name) return m;
  }
  ADD_FAILURE() << name;
  return c;
}

TEST(CompareTest, FindsWhatDiffersAndNothingElse) {
  int false_alarms = 0;
  for (uint64_t seed = 0; seed < 20; ++seed) {
    const auto same = *CompareReports(Sample(50, 2 * seed), Sample(50, 2 * seed + 1));
    false_alarms += Metric(same, "mean_ttft_ms")["differs"].get<bool>();
    false_alarms += Metric(same, "p99_ttft_ms")["differs"].get<bool>();
  }
  EXPECT_LE(false_alarms, 6) << "of 40, at 95 %: 2 are to be expected";
  int found = 0, covered = 0;
  for (uint64_t seed = 0; seed < 20; ++seed) {
    const auto slower = *CompareReports(Sample(50, 2 * seed), Sample(60, 2 * seed + 1));
    const auto& ttft = Metric(slower, "mean_ttft_ms");
    found += ttft["differs"].get<bool>();
    covered += ttft["low_percent"].get<double>() < 20 && ttft["high_percent"].get<double>() > 20;
    EXPECT_NE(CompareText(slower).find("mean_ttft_ms"), std::string::npos);
  }
  EXPECT_EQ(found, 20);
  EXPECT_GE(covered, 16) << "of 20, at 95 %: 19 are to be expected";
}

TEST(CompareTest, IntervalsOfKnownSamples) {
  const Estimate e = RatioEstimate({1, 2, 3, 4, 5}, {1, 1, 1, 1, 1});  // t(4) = 2.776: 3 ± 1.963
  EXPECT_NEAR(e.low, 1.037, 0.05);
  EXPECT_NEAR(e.high, 4.963, 0.05);
  nlohmann::ordered_json buckets;
  for (int i = 0; i < 100; ++i) buckets.push_back({i, 1});
  const Estimate median = *PercentileEstimate(buckets, 50);
  EXPECT_EQ(median.value, 49);
  EXPECT_EQ(median.low, 39);
  EXPECT_EQ(median.high, 59);
}

// `n` requests, evenly over `load` seconds; those that end after it take longer.
nlohmann::ordered_json Drained(int n, double load, double factor = 1) {
  RunStatistics s({});
  absl::Duration end;
  for (int i = 0; i < n; ++i) {
    RequestRecord r = Good();
    r.intended = absl::Seconds(load * i / n);
    r.ttft = absl::Milliseconds(20 + i % 7) * factor;
    r.e2e = absl::Seconds(i % 10 == 0 ? 50 : 15 + i % 8) * factor;
    end = std::max(end, r.intended + r.e2e);
    s.Add(r);
  }
  return s.Report(end, {.wanted = n});
}

TEST(CompareTest, MeansAreThoseOfTheReports) {
  const auto a = Drained(5000, 100), b = Drained(301, 7.3);
  const auto c = *CompareReports(a, b);
  for (const char* name : {"request_throughput", "output_throughput", "mean_ttft_ms",
                           "mean_tpot_ms", "mean_itl_ms", "mean_e2el_ms", "p50_ttft_ms"}) {
    EXPECT_NEAR(Metric(c, name)["a"].get<double>() / a[name].get<double>(), 1, 1e-9) << name;
    EXPECT_NEAR(Metric(c, name)["b"].get<double>() / b[name].get<double>(), 1, 1e-9) << name;
  }
}

TEST(CompareTest, FewRequestsBoundNothing) {
  for (const int n : {1, 30, 100}) {
    const auto c = *CompareReports(Drained(n, 100), Drained(n, 100, 10));
    const auto& p99 = Metric(c, "p99_ttft_ms");
    EXPECT_TRUE(p99["low_percent"].is_null() && p99["high_percent"].is_null()) << n;
    EXPECT_FALSE(p99["differs"].get<bool>()) << n;
    const auto& p50 = Metric(c, "p50_ttft_ms");
    EXPECT_EQ(p50["differs"].get<bool>(), n > 1) << n;
    EXPECT_EQ(Metric(c, "mean_ttft_ms")["differs"].get<bool>(), n > 1) << n;
    EXPECT_FALSE(Metric(c, "p50_itl_ms")["differs"].get<bool>()) << n;
    EXPECT_NE(CompareText(c).find("[?, ?]"), std::string::npos);
  }
  EXPECT_TRUE(
      Metric(*CompareReports(Drained(2000, 100), Drained(2000, 100, 10)), "p99_ttft_ms")["differs"]
          .get<bool>());
}

TEST(CompareTest, NamesTheSettingsThatDiffer) {
  auto a = Sample(50, 1), b = a;
  const auto notes = [&] { return (*CompareReports(a, b))["notes"].dump(); };
  EXPECT_EQ(notes(), "[]");
  a["parameters"] = {{"seed", 0}, {"temperature", 0.5}};
  b["parameters"] = {{"seed", 1}, {"ignore_eos", true}};
  b["backend"] = "openai";
  EXPECT_EQ(notes(), R"(["backend differs: \"\" and \"openai\"","seed differs: 0 and 1",)"
                     R"("temperature differs: 0.5 and null","ignore_eos differs: null and true"])");
  b.erase("parameters");
  EXPECT_NE(notes().find("B has no parameters"), std::string::npos);
}

TEST(CompareTest, WhatIsNoResultIsRefused) {
  auto damaged = Sample(50, 1);
  damaged["verdict"] = "INVALID";
  damaged.erase("verdict_reasons");
  EXPECT_TRUE(CompareReports(damaged, damaged).ok());
  damaged["intervals"].erase("seconds");
  EXPECT_EQ(CompareReports(Sample(50, 1), damaged).status().message(), "seconds: no number");
  damaged = Sample(50, 1);
  damaged["histograms_ms"] = 1;
  EXPECT_FALSE(CompareReports(damaged, damaged).ok());
  for (const char* text : {"{}", "[]", "{\"intervals\":{\"completed\":[1]}}",
                           "{\"intervals\":{\"completed\":[\"x\"]}}",
                           "{\"intervals\":{\"completed\":[1],\"seconds\":\"x\"}}"}) {
    const auto a = nlohmann::ordered_json::parse(text);
    EXPECT_EQ(CompareReports(a, Sample(50, 1)).status().code(), absl::StatusCode::kInvalidArgument)
        << text;
  }
}

TEST(SseTest, EventsComeInAnyPieces) {
  const std::string text = "data: {\"a\":1}\r\n\ndata:x\n: comment\n\ndata: [DONE]\n\n";
  for (size_t size = 1; size <= text.size(); ++size) {
    SseReader reader;
    std::vector<std::string> events;
    for (size_t at = 0; at < text.size(); at += size) {
      EXPECT_TRUE(reader.Push(std::string_view(text).substr(at, size),
                              [&](std::string_view e) { events.emplace_back(e); }));
    }
    EXPECT_EQ(events, (std::vector<std::string>{"{\"a\":1}", "x", "[DONE]"}));
  }
  SseReader reader;
  const std::string endless(SseReader::kLineBytesMax / 2 + 1, 'x');
  EXPECT_TRUE(reader.Push(endless, [](std::string_view) {}));
  EXPECT_FALSE(reader.Push(endless, [](std::string_view) {}));
}

TEST(ScraperTest, SumsTheSeriesOfOneName) {
  const char* text = "# HELP a x\na{b=\"1\"} 2\na{b=\"2\"} 3.5\nab 100\na 1\na{b=\"3\"} oops";
  EXPECT_EQ(SumOfSeries(text, "a"), 6.5);
  EXPECT_EQ(SumOfSeries(text, "none"), std::nullopt);
}

TEST(HtmlTest, HasAPlotForEachFigureAndNoForeignText) {
  auto run = Sample(50, 1);
  run["error_counts"]["<script>alert(1)</script>"] = 1;
  run["server"] = {
      {"seconds", {0, 1}}, {"running", {1, 2}}, {"waiting", {0, 3}}, {"kv_usage", {0, 0.5}}};
  const std::string html = HtmlReport(run);
  EXPECT_EQ(html.find("<script"), std::string::npos);
  EXPECT_EQ(html.find("nan"), std::string::npos);
  EXPECT_EQ(html.find("http"), std::string::npos) << "something from elsewhere";
  for (const std::string plot :
       {"Time to first token", "Between tokens over time", "The server's queue"}) {
    EXPECT_NE(html.find("<title>" + plot + "</title>"), std::string::npos) << plot;
  }
  ReportOptions options;
  options.goodput = *ParseGoodput({"ttft:100"});
  RunStatistics one(options);
  one.Add(Good());
  nlohmann::ordered_json sweep = {{"max_rate", 4.0}, {"limit", "server"}, {"attainment", 0.99}};
  sweep["goodput"] = ToJson(options.goodput);
  const auto report = one.Report(absl::Seconds(1), {});
  sweep["trials"].push_back({{"rate", 4.0}, {"met", true}, {"why", ""}, {"report", report}});
  sweep["trials"].push_back({{"rate", 8.0}, {"met", false}, {"why", "a <b>"}, {"report", report}});
  const std::string swept = HtmlReport(sweep);
  for (const char* said :
       {"Throughput against rate", "99 % of requests with ttft &lt;= 100 ms", "4.000  100.0 %",
        "8.000  100.0 %", "not met: a &lt;b&gt;", "highest rate that met it: 4.000 requests/s"}) {
    EXPECT_NE(swept.find(said), std::string::npos) << said << "\n" << swept;
  }
  EXPECT_EQ(LinePlot("t", "x", "y", {{"empty", {}}}), "");
}

}  // namespace
}  // namespace switchyard
