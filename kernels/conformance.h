// kernels/conformance.h: what the conformance tests share: a kernel set and the reference, random
// data, and outputs that start as NaN.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/kernel_set.h"

namespace switchyard {

inline constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

// The sets that the linked library has tests for, and one of them; the CPU's (conformance_sets.cc)
// or CUDA's (kernels/cuda). Errors of ConformanceSet: kFailedPrecondition if this machine lacks
// what the set needs; its tests are then skipped by name.
std::vector<const char*> ConformanceNames();
absl::StatusOr<KernelSet> ConformanceSet(std::string_view name);

class Conformance : public testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    auto set = ConformanceSet(GetParam());
    if (absl::IsFailedPrecondition(set.status())) {
      GTEST_SKIP() << "skipped: this machine cannot run " << GetParam();
    }
    ASSERT_TRUE(set.ok()) << set.status();
    set_ = *std::move(set);
    reference_ = *SelectKernels("reference");
  }

  std::vector<float> Normal(size_t n, float scale = 1.0f) {
    std::normal_distribution<float> normal(0, scale);
    std::vector<float> v(n);
    for (float& f : v) f = normal(rng_);
    return v;
  }

  // A weight as a checkpoint has it.
  struct Weight {
    std::vector<float> floats;
    std::vector<Bf16> halves;
    size_t n, k;
    WeightView view() const {
      if (halves.empty()) return {floats.data(), DType::kFloat32, n, k};
      return {halves.data(), DType::kBfloat16, n, k};
    }
  };
  Weight MakeWeight(size_t n, size_t k, DType dtype) {
    Weight w{Normal(n * k, 1.0f / std::sqrt(static_cast<float>(k))), {}, n, k};
    if (dtype == DType::kBfloat16) {
      for (const float f : w.floats) w.halves.push_back(ToBf16(f));
    }
    return w;
  }

  KernelSet set_, reference_;
  std::mt19937 rng_{20240607};
};

// Rows further apart than they are wide, all NaN.
struct Poisoned {
  Poisoned(size_t rows, size_t cols)
      : data(rows * (cols + 5), kNan), matrix(data.data(), {rows, cols}, cols + 5) {}
  // Nothing was written between the rows.
  bool GapsAreUntouched() const {
    for (size_t r = 0; r < matrix.rows(); ++r) {
      for (size_t i = 0; i < 5; ++i) {
        if (!std::isnan(matrix.row(r)[matrix.cols() + i])) return false;
      }
    }
    return true;
  }
  std::vector<float> data;
  Matrix<float> matrix;
};

inline Matrix<const float> View(const std::vector<float>& v, size_t cols) {
  return {v.data(), {v.size() / cols, cols}};
}

inline bool SameBits(const float* a, const float* b, size_t n) {
  return n == 0 || std::memcmp(a, b, n * sizeof(float)) == 0;
}

// |a − b| <= relative · the greatest |b| everywhere; NaN is no match.
inline void ExpectNear(Matrix<const float> a, Matrix<const float> b, float relative) {
  float greatest = 0;
  for (size_t r = 0; r < b.rows(); ++r) {
    for (size_t c = 0; c < b.cols(); ++c) greatest = std::max(greatest, std::abs(b(r, c)));
  }
  for (size_t r = 0; r < b.rows(); ++r) {
    for (size_t c = 0; c < b.cols(); ++c) {
      ASSERT_LE(std::abs(a(r, c) - b(r, c)), relative * greatest)
          << "row " << r << " column " << c << ": " << a(r, c) << " for " << b(r, c);
    }
  }
}

inline constexpr DType kDTypes[] = {DType::kFloat32, DType::kBfloat16};
inline constexpr WeightFormat kFormats[] = {WeightFormat::kFloat32, WeightFormat::kBfloat16,
                                            WeightFormat::kInt8, WeightFormat::kInt4};

inline std::string NameOf(const testing::TestParamInfo<const char*>& info) { return info.param; }

}  // namespace switchyard
