#include "bench/workload.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "common/file.h"

namespace switchyard {
namespace {

WorkloadOptions Options() {
  WorkloadOptions o;
  o.vocab_size = 100;
  o.tokens_max = 2048;
  return o;
}

std::vector<WorkItem> Make(const WorkloadOptions& options) {
  auto workload = Workload::Create(options);
  EXPECT_TRUE(workload.ok()) << workload.status();
  std::vector<WorkItem> items;
  while (auto item = workload->Next()) items.push_back(*std::move(item));
  EXPECT_EQ(static_cast<int>(items.size()), workload->total());
  return items;
}

TEST(WorkloadTest, IsAFunctionOfItsSeed) {
  WorkloadOptions o = Options();
  o.range_ratio = 0.5;
  o.request_rate = 10;
  const auto a = Make(o), b = Make(o);
  o.request_rate = 20;
  const auto faster = Make(o);
  o.seed = 1;
  const auto c = Make(o);
  EXPECT_EQ(a[7].prompt_ids, b[7].prompt_ids);
  EXPECT_EQ(a[7].send_at, b[7].send_at);
  EXPECT_EQ(a[7].prompt_ids, faster[7].prompt_ids) << "a rate must not change what is sent";
  EXPECT_NE(a[7].prompt_ids, c[7].prompt_ids);
}

TEST(WorkloadTest, ArrivalsHaveTheAskedRateAndBurstiness) {
  WorkloadOptions o = Options();
  o.prompts = 20000;
  o.input_len = o.output_len = 1;
  o.request_rate = 50;
  for (double burstiness : {0.5, 1.0, 4.0}) {
    o.burstiness = burstiness;
    const auto items = Make(o);
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

TEST(WorkloadTest, ARampGoesFromOneRateToTheOther) {
  WorkloadOptions o = Options();
  o.prompts = 20000;
  o.input_len = o.output_len = 1;
  o.ramp_start_rps = 10;
  o.ramp_end_rps = 1000;
  for (const auto ramp :
       {WorkloadOptions::RampUp::kLinear, WorkloadOptions::RampUp::kExponential}) {
    o.ramp_up = ramp;
    const auto items = Make(o);
    const auto rate = [&](size_t begin, size_t end) {
      return static_cast<double>(end - begin) /
             absl::ToDoubleSeconds(items[end].send_at - items[begin].send_at);
    };
    EXPECT_NEAR(rate(19000, 19999), ramp == WorkloadOptions::RampUp::kLinear ? 975 : 890, 90);
    const double middle = rate(9500, 10500);
    EXPECT_NEAR(middle, ramp == WorkloadOptions::RampUp::kLinear ? 505 : 100, middle / 8);
  }
  o.ramp_start_rps = 0;
  EXPECT_EQ(Workload::Create(o).status().message(), "--ramp-up-start-rps is 0, must be positive");
}

TEST(WorkloadTest, OnlyWhatDoesNotFitIsCut) {
  WorkloadOptions o = Options();
  o.prompts = 1;
  o.input_len = 200;
  o.output_len = 100;
  o.tokens_max = 300;
  EXPECT_FALSE(Make(o).front().cut);
  o.prefix_len = 1;
  const WorkItem item = Make(o).front();
  EXPECT_TRUE(item.cut);
  EXPECT_EQ(item.prompt_ids.size(), 200u);
}

TEST(WorkloadTest, RespectsLengthsAndLimits) {
  WorkloadOptions o = Options();
  o.lengths = WorkloadOptions::Lengths::kShareGpt;
  o.prompts = 3000;
  o.tokens_max = 300;
  const auto items = Make(o);
  for (const WorkItem& item : items) {
    ASSERT_GE(item.prompt_ids.size(), 1u);
    ASSERT_GE(item.output_len, 1);
    ASSERT_LE(item.prompt_ids.size() + item.output_len, 300u);
    for (TokenId t : item.prompt_ids) ASSERT_LT(t, 100);
    ASSERT_TRUE(!item.cut || item.prompt_ids.size() + item.output_len == 300u);
  }
  EXPECT_TRUE(std::any_of(items.begin(), items.end(), [](const WorkItem& i) { return i.cut; }));
  o.prompts = 0;
  EXPECT_EQ(Workload::Create(o).status().code(), absl::StatusCode::kInvalidArgument);
  o = Options();
  o.request_rate = std::nan("");
  EXPECT_FALSE(Workload::Create(o).ok());
}

TEST(DatasetTest, MooncakeBlocksBecomeSharedPrefixes) {
  const auto text = ReadFile("bench/testdata/mooncake.jsonl", 1 << 20);
  ASSERT_TRUE(text.ok()) << text.status();
  WorkloadOptions o = Options();
  o.lengths = WorkloadOptions::Lengths::kDataset;
  const auto rows = ParseTrace(*text, 1000);
  ASSERT_TRUE(rows.ok()) << rows.status();
  ASSERT_EQ(rows->size(), 60u);
  // Of the sample: these two begin with the same blocks, row 41 with others.
  ASSERT_EQ((*rows)[42].block_ids[3], (*rows)[49].block_ids[3]);
  size_t blocks = 0;
  while ((*rows)[42].block_ids[blocks] == (*rows)[49].block_ids[blocks]) ++blocks;
  o.rows = *rows;
  o.trace_times = true;
  o.time_scale = 0.5;
  o.length_scale = 1.0 / 64;  // a block of 512 becomes one of 8
  const auto items = Make(o);
  EXPECT_EQ(items[5].send_at, (*rows)[5].at / 2);
  EXPECT_EQ(items[42].prompt_ids.size(),
            static_cast<size_t>(std::lround((*rows)[42].input_len / 64.0)));
  const auto& a = items[42].prompt_ids;
  const auto& b = items[49].prompt_ids;
  const size_t shared = std::mismatch(a.begin(), a.end(), b.begin(), b.end()).first - a.begin();
  EXPECT_GE(shared, std::min({blocks * 8, a.size(), b.size()}));
  EXPECT_LT(shared, blocks * 8 + 8);
  const auto& c = items[41].prompt_ids;
  EXPECT_LT(std::mismatch(a.begin(), a.end(), c.begin(), c.end()).first - a.begin(), 8);
}

TEST(DatasetTest, AzureRowsKeepTheirTimes) {
  const auto text = ReadFile("bench/testdata/azure.csv", 1 << 20);
  ASSERT_TRUE(text.ok()) << text.status();
  const auto rows = ParseTrace(*text, 50);
  ASSERT_TRUE(rows.ok()) << rows.status();
  ASSERT_EQ(rows->size(), 50u);
  EXPECT_EQ(rows->front().at, absl::ZeroDuration());
  EXPECT_EQ((*rows)[0].input_len, 4808);
  EXPECT_EQ((*rows)[0].output_len, 10);
  EXPECT_EQ((*rows)[1].at, absl::Milliseconds(52));
}

TEST(DatasetTest, AzureTimesMayHaveAZone) {
  const auto rows = ParseTrace(
      "\xef\xbb\xbfTIMESTAMP,ContextTokens,GeneratedTokens\r\n"
      "2024-05-10 00:00:00.009930+00:00,1,2\r\n2024-05-10T00:00:01.009930Z,1,2\n"
      "2024-05-10 02:00:02.009930+02:00,1,2\n2024-05-10 00:00:03.00993,1,2\n",
      10);
  ASSERT_TRUE(rows.ok()) << rows.status();
  ASSERT_EQ(rows->size(), 4u);
  for (int i = 0; i < 4; ++i) EXPECT_EQ((*rows)[i].at, absl::Seconds(i)) << i;
  EXPECT_TRUE(
      ParseTrace("\xef\xbb\xbf{\"timestamp\":0,\"input_length\":1,\"output_length\":1}", 10).ok());
}

TEST(DatasetTest, WhatIsNoTraceIsNamed) {
  const std::pair<const char*, const char*> cases[] = {
      {"", "has no rows"},
      {"{\"timestamp\":0}\n", "line 1: input_length"},
      {"{\"timestamp\":0,\"input_length\":1,\"output_length\":1}\nx",
       "line 2: is not a JSON object"},
      {"{\"timestamp\":-1,\"input_length\":1,\"output_length\":1}", "a timestamp"},
      {"{\"timestamp\":0,\"input_length\":99999999999,\"output_length\":1}", "input_length"},
      {"{\"timestamp\":0,\"input_length\":1,\"output_length\":1,\"hash_ids\":[-1]}", "hash_ids"},
      {"TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:17:03.9,1\n", "line 2: a time"},
      {"TIMESTAMP,ContextTokens,GeneratedTokens\nyesterday,1,2\n", "line 2: a time"},
  };
  for (const auto& [text, said] : cases) {
    const auto rows = ParseTrace(text, 10);
    EXPECT_EQ(rows.status().code(), absl::StatusCode::kInvalidArgument) << text;
    EXPECT_NE(rows.status().message().find(said), absl::string_view::npos) << rows.status();
  }
}

TEST(DatasetTest, ShareGptTakesFirstQuestionsAndAnswers) {
  const auto all = ParseShareGpt(
      R"([{"conversations":[{"from":"human","value":"Why?"},{"from":"gpt","value":"So."},{"value":"x"}]},
          {"conversations":[{"value":"alone"}]}, {"id":"none"},
          {"conversations":[{"value":"A"},{"value":"B"}]}])",
      10);
  ASSERT_TRUE(all.ok()) << all.status();
  ASSERT_EQ(all->size(), 2u);
  EXPECT_EQ((*all)[0].prompt, "Why?");
  EXPECT_EQ((*all)[1].answer, "B");
  EXPECT_FALSE(ParseShareGpt("{}", 10).ok());
  EXPECT_FALSE(ParseShareGpt("[]", 10).ok());
  EXPECT_FALSE(ParseShareGpt("[1]", 10).ok());
}

}  // namespace
}  // namespace switchyard
