#include "bench/tokenizer_bench.h"

#include <gtest/gtest.h>

#include <map>
#include <vector>

#include "common/file.h"

namespace switchyard {
namespace {

BenchTokenizerOptions Options(const std::string& text) {
  const std::string file = testing::TempDir() + "/text";
  EXPECT_TRUE(WriteFileAtomically(file, text).ok());
  return {.tokenizer = "models/fables-7m",
          .text_file = file,
          .word_bytes_max = 1 << 19,
          .repeats = 3,
          .progress = nullptr};
}

TEST(TokenizerBenchTest, OneWordTakesTimeInProportionToItsLength) {
  const auto report = RunBenchTokenizer(Options("The fox saw the owl.\nÄ crow came.\n"));
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_EQ((*report)["tokens"], 4096);
  EXPECT_GT((*report)["load_ms"], 0.0);
  EXPECT_GT((*report)["text"]["megabytes_per_second"], 0.0);
  std::map<std::string, std::vector<double>> rates;
  for (const auto& word : (*report)["words"]) {
    rates[word["kind"]].push_back(word["megabytes_per_second"]);
  }
  ASSERT_EQ(rates.size(), 3u);
  for (const auto& [kind, all] : rates) {
    ASSERT_EQ(all.size(), 4u);
    // Eight times the length: a quadratic would fall to an eighth.
    EXPECT_GT(all.back(), all.front() / 4) << kind;
  }
}

TEST(TokenizerBenchTest, RefusesNothingToMeasure) {
  EXPECT_TRUE(absl::IsInvalidArgument(RunBenchTokenizer(Options("")).status()));
  BenchTokenizerOptions none = Options("a");
  none.repeats = 0;
  EXPECT_TRUE(absl::IsInvalidArgument(RunBenchTokenizer(none).status()));
}

}  // namespace
}  // namespace switchyard
