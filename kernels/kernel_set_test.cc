#include "kernels/kernel_set.h"

#include <gtest/gtest.h>

namespace switchyard {
namespace {

// What `auto` takes is part of numerics_id: the maker's name decides, nothing that is measured.
TEST(KernelSetTest, IntelsCoresWidenForFmas) {
  const auto dot = SelectKernels("avx512_bf16");
  if (!dot.ok()) GTEST_SKIP() << dot.status();
  EXPECT_EQ(SelectKernels("auto")->name, __builtin_cpu_is("intel") ? "avx512_vnni" : "avx512_bf16");
}

TEST(KernelSetTest, NamesAreKnownAvailableOrMissing) {
  std::vector<std::string> names = MissingKernels();
  const std::vector<KernelSet> available = AvailableKernels();
  EXPECT_EQ(available.front().name, "reference");
  EXPECT_EQ(SelectKernels("auto")->name, available.back().name);
  for (const KernelSet& set : available) {
    EXPECT_EQ(SelectKernels(set.name)->name, set.name);
    names.push_back(set.name);
  }
  for (const std::string& missing : MissingKernels()) {
    const absl::Status status = SelectKernels(missing).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
    EXPECT_NE(std::string(status.message()).find("reference"), std::string::npos);
  }
  EXPECT_EQ(names.size(), 5u /* reference, avx2, avx512, avx512_vnni, avx512_bf16 */);
  const absl::Status unknown = SelectKernels("mmx").status();
  EXPECT_EQ(unknown.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_NE(std::string(unknown.message()).find("mmx"), std::string::npos);
  EXPECT_NE(std::string(unknown.message()).find("auto, reference"), std::string::npos);
}

}  // namespace
}  // namespace switchyard
