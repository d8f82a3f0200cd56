#include "bench/kernel_bench.h"

#include <gtest/gtest.h>

#include "bench/kernel_cases.h"
#include "kernels/cpu/cpu_kernels.h"

namespace switchyard {
namespace {

TEST(KernelBenchTest, SharesAreAgainstWhatLimitsTheCase) {
  if (!CpuPaths().front().supported) GTEST_SKIP() << "this CPU cannot run avx2";
  BenchKernelsOptions o;
  o.kernels = "avx2";
  o.threads = {1, 2};
  o.filter = "gemm/float32";
  o.repeats = 1;
  const auto report = RunBenchKernels(o);
  ASSERT_TRUE(report.ok()) << report.status();
  ASSERT_EQ((*report)["runs"].size(), 2u);
  for (const auto& run : (*report)["runs"]) {
    EXPECT_EQ(run["ceilings"].size(), 4u);  // avx2 has no dot product
    for (const auto& c : run["ceilings"]) EXPECT_GT(c["median"], 0.0) << c["name"];
    ASSERT_EQ(run["cases"].size(), 2u);
    EXPECT_EQ(run["cases"][1]["limit"], "float32_fma") << "512 rows compute";
    for (const auto& c : run["cases"]) {
      // One row reads its weights, but where arithmetic is slow (a sanitizer) that may limit it.
      EXPECT_TRUE(c["limit"] == "memory_read" || c["limit"] == "float32_fma") << c["limit"];
      EXPECT_GT(c["share"], 0.0);
    }
  }
}

TEST(KernelBenchTest, RefusesWhatHasNoCeiling) {
  BenchKernelsOptions reference, no_threads, no_repeats;
  reference.kernels = "reference";
  no_threads.threads = {0};
  no_repeats.repeats = 0;
  for (const auto& o : {reference, no_threads, no_repeats}) {
    EXPECT_TRUE(absl::IsInvalidArgument(RunBenchKernels(o).status()));
  }
}

TEST(KernelBenchTest, NamesDiffer) {
  std::vector<std::string> names;
  for (const auto& c : AllKernelCases()) names.push_back(c.name);
  std::sort(names.begin(), names.end());
  EXPECT_EQ(std::adjacent_find(names.begin(), names.end()), names.end());
}

}  // namespace
}  // namespace switchyard
