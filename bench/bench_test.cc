#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "bench/report.h"
#include "bench/workload.h"

namespace switchyard {
namespace {

WorkloadOptions Options() {
  WorkloadOptions o;
  o.vocab_size = 100;
  o.tokens_max = 2048;
  return o;
}

TEST(WorkloadTest, IsAFunctionOfItsSeed) {
  WorkloadOptions o = Options();
  o.range_ratio = 0.5;
  o.request_rate = 10;
  const auto a = *MakeWorkload(o), b = *MakeWorkload(o);
  o.seed = 1;
  const auto c = *MakeWorkload(o);
  EXPECT_EQ(a[7].prompt_ids, b[7].prompt_ids);
  EXPECT_EQ(a[7].send_at, b[7].send_at);
  EXPECT_NE(a[7].prompt_ids, c[7].prompt_ids);
}

TEST(WorkloadTest, ArrivalsHaveTheAskedRateAndBurstiness) {
  WorkloadOptions o = Options();
  o.prompts = 20000;
  o.input_len = o.output_len = 1;
  o.request_rate = 50;
  for (double burstiness : {0.5, 1.0, 4.0}) {
    o.burstiness = burstiness;
    const auto items = *MakeWorkload(o);
    double sum = 0, squares = 0;
    for (size_t i = 1; i < items.size(); ++i) {
      const double gap = absl::ToDoubleSeconds(items[i].send_at - items[i - 1].send_at);
      ASSERT_GE(gap, 0);
      sum += gap;
      squares += gap * gap;
    }
    const double n = static_cast<double>(items.size() - 1), mean = sum / n;
    EXPECT_NEAR(mean, 1.0 / 50, 0.001);
    // A gamma distribution of shape b: variance / mean² = 1/b.
    EXPECT_NEAR((squares / n - mean * mean) / (mean * mean), 1 / burstiness, 0.15 / burstiness);
  }
}

TEST(WorkloadTest, OnlyWhatDoesNotFitIsCut) {
  WorkloadOptions o = Options();
  o.prompts = 1;
  o.input_len = 200;
  o.output_len = 100;
  o.tokens_max = 300;
  EXPECT_FALSE(MakeWorkload(o)->front().cut);
  o.prefix_len = 1;
  const WorkItem item = MakeWorkload(o)->front();
  EXPECT_TRUE(item.cut);
  EXPECT_EQ(item.prompt_ids.size(), 200u);
}

TEST(WorkloadTest, RespectsLengthsAndLimits) {
  WorkloadOptions o = Options();
  o.lengths = WorkloadOptions::Lengths::kShareGpt;
  o.prompts = 3000;
  o.tokens_max = 300;
  const auto items = *MakeWorkload(o);
  for (const WorkItem& item : items) {
    ASSERT_GE(item.prompt_ids.size(), 1u);
    ASSERT_GE(item.output_len, 1);
    ASSERT_LE(item.prompt_ids.size() + item.output_len, 300u);
    for (TokenId t : item.prompt_ids) ASSERT_LT(t, 100);
    ASSERT_TRUE(!item.cut || item.prompt_ids.size() + item.output_len == 300u);
  }
  EXPECT_TRUE(std::any_of(items.begin(), items.end(), [](const WorkItem& i) { return i.cut; }));
  o.prompts = 0;
  EXPECT_EQ(MakeWorkload(o).status().code(), absl::StatusCode::kInvalidArgument);
  o = Options();
  o.request_rate = std::nan("");
  EXPECT_FALSE(MakeWorkload(o).ok());
}

TEST(ReportTest, PercentilesInterpolate) {
  EXPECT_EQ(Percentile({}, 50), 0);
  EXPECT_EQ(Percentile({1, 2, 3, 4}, 50), 2.5);
  EXPECT_EQ(Percentile({1, 2, 3, 4}, 100), 4);
  EXPECT_DOUBLE_EQ(Percentile({0, 10}, 99), 9.9);
}

TEST(ReportTest, CountsAndKeysAreThoseOfVllm) {
  RequestRecord good;
  good.prompt_tokens = 10;
  good.output_tokens = 3;
  good.ttft = absl::Milliseconds(20);
  good.e2e = absl::Milliseconds(60);
  good.itls = {absl::Milliseconds(10), absl::Milliseconds(30)};
  RequestRecord bad;
  bad.error = "14: gone";
  RequestRecord dropped = good;
  dropped.dropped = dropped.cut = true;
  ReportOptions options;
  options.detailed = true;
  const auto r = MakeReport(options, {good, bad, dropped}, absl::Seconds(2));
  EXPECT_EQ(r["completed"], 1);
  EXPECT_EQ(r["failed"], 1);
  EXPECT_EQ(r["dropped"], 1);
  EXPECT_EQ(r["cut"], 1);
  EXPECT_EQ(r["mean_ttft_ms"], 20.0);
  EXPECT_EQ(r["median_tpot_ms"], 20.0);
  EXPECT_EQ(r["mean_itl_ms"], 20.0);
  EXPECT_EQ(r["p99_e2el_ms"], 60.0);
  EXPECT_EQ(r["output_throughput"], 1.5);
  EXPECT_EQ(r["request_rate"], "inf");
  EXPECT_EQ(r["errors"][1], "14: gone");
  for (const char* said : {"completed 1 of 3", "1 failed", "1 dropped", "1 cut", "ttft"}) {
    EXPECT_NE(ReportText(r).find(said), std::string::npos) << said << "\n" << ReportText(r);
  }
  const std::string calm = ReportText(MakeReport(options, {good}, absl::Seconds(2)));
  EXPECT_EQ(calm.find("dropped"), std::string::npos) << calm;
}

}  // namespace
}  // namespace switchyard
