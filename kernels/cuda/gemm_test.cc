// The products against sums in double, for every format, grouping and epilogue. A row's bits must
// not depend on the other rows, on its group's size, or on the order of threads.
#include "kernels/cuda/gemm.h"

#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <random>

#include "kernels/cuda/rows.h"
#include "kernels/cuda/testing.h"
#include "kernels/int8.h"

namespace switchyard::cuda {
namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

constexpr DeviceFormat kFormats[] = {DeviceFormat::kFloat32, DeviceFormat::kBfloat16,
                                     DeviceFormat::kInt8, DeviceFormat::kInt4, DeviceFormat::kFp8};

// Weights and rows of one format, and what they are as numbers.
class Product {
 public:
  Product(DeviceFormat format, int groups, int n, int k, int rows, std::mt19937_64& rng)
      : format(format), groups(groups), n(n), k(k), rows(rows) {
    std::normal_distribution<float> normal;
    const auto random = [&](size_t count, float scale) {
      std::vector<float> v(count);
      for (float& f : v) f = normal(rng) * scale;
      return v;
    };
    x = random(static_cast<size_t>(rows) * k, 1.0f);
    w = random(static_cast<size_t>(groups) * n * k, 1.0f / std::sqrt(static_cast<float>(k)));
    data.resize(groups * WeightBytes(format, n, k));
    scales.resize(groups * WeightScales(format, n, k) + 1);
    for (int g = 0; g < groups; ++g) {
      float* numbers = &w[static_cast<size_t>(g) * n * k];
      std::byte* to = data.data() + g * WeightBytes(format, n, k);
      float* to_scales = scales.data() + g * WeightScales(format, n, k);
      if (format == DeviceFormat::kFp8) {
        PackBlocks(numbers, rng, to, to_scales);
      } else {
        PackWeight({numbers, DType::kFloat32, static_cast<size_t>(n), static_cast<size_t>(k)},
                   format, to, to_scales);
        RoundWeights(numbers);
      }
    }
  }

  DeviceFormat format;
  int groups, n, k, rows;
  std::vector<float> x, w;  // w becomes what the packed weight says
  std::vector<std::byte> data;
  std::vector<float> scales;

 private:
  void PackBlocks(float* numbers, std::mt19937_64& rng, std::byte* to, float* to_scales) {
    std::vector<uint8_t> values(static_cast<size_t>(n) * k);
    std::vector<float> blocks(WeightScales(format, n, k));
    for (float& b : blocks) b = std::ldexp(1.0f + static_cast<float>(rng() % 64) / 64, -9);
    for (size_t i = 0; i < values.size(); ++i) {
      do values[i] = static_cast<uint8_t>(rng());
      while ((values[i] & 0x7f) >= 0x60);
      const int exponent = values[i] >> 3 & 15, mantissa = values[i] & 7;
      float v = exponent == 0 ? std::ldexp(static_cast<float>(mantissa), -9)
                              : std::ldexp(static_cast<float>(8 + mantissa), exponent - 10);
      if (values[i] & 0x80) v = -v;
      numbers[i] = v * blocks[i / k / 128 * QuantGroups(k) + i % k / 128];
    }
    PackFp8(values.data(), blocks.data(), n, k, to, to_scales);
  }
  void RoundWeights(float* numbers) {
    if (format == DeviceFormat::kFloat32) return;
    for (int row = 0; row < n; ++row) {
      float* v = numbers + static_cast<size_t>(row) * k;
      if (format == DeviceFormat::kBfloat16) {
        for (int i = 0; i < k; ++i) v[i] = RoundToBf16(v[i]);
        continue;
      }
      for (int i = 0; i < k; i += 128) {
        const int count = std::min(128, k - i);
        int8_t q[128];
        const float scale = switchyard::QuantizeInt8(
            v + i, count, q, format == DeviceFormat::kInt4 ? kInt4Most : kInt8Most);
        for (int j = 0; j < count; ++j) v[i + j] = scale * q[j];
      }
    }
  }
};

class GemmTest : public testing::Test {
 protected:
  void SetUp() override {
    if (const std::string why = NoDevice(); !why.empty()) GTEST_SKIP() << "skipped: " << why;
  }

  // x as the format wants it, in device memory, and as numbers.
  struct Left {
    std::unique_ptr<DeviceArray<float>> floats, scales;
    std::unique_ptr<DeviceArray<Bf16>> halves;
    std::unique_ptr<DeviceArray<uint8_t>> values;
    GemmInput input;
  };
  Left MakeLeft(const Product& p, const std::vector<float>& x, int rows) {
    Left left;
    left.floats = std::make_unique<DeviceArray<float>>(x);
    const DeviceMatrix<float> floats(left.floats->data(), rows, p.k);
    if (p.format == DeviceFormat::kFloat32) {
      left.input = DeviceRows(floats);
    } else if (p.format == DeviceFormat::kBfloat16) {
      const int stride = static_cast<int>(PaddedCols(p.k)) + 8;
      left.halves =
          std::make_unique<DeviceArray<Bf16>>(static_cast<size_t>(rows) * stride, Bf16{0xffff});
      const DeviceMatrix<Bf16> halves(left.halves->data(), rows, p.k, stride);
      EXPECT_TRUE(GatherRows(nullptr, floats, nullptr, halves).ok());
      left.input = DeviceRows(halves);
    } else {
      const int groups = QuantGroups(p.k);
      left.values = std::make_unique<DeviceArray<uint8_t>>(static_cast<size_t>(rows) * groups * 128,
                                                           uint8_t{0xee});
      left.scales = std::make_unique<DeviceArray<float>>(static_cast<size_t>(rows) * groups, kNan);
      const QuantizedRows q{left.values->data(), left.scales->data(), rows, p.k};
      EXPECT_TRUE((p.format == DeviceFormat::kFp8 ? QuantizeFp8(nullptr, floats, q)
                                                  : QuantizeInt8(nullptr, floats, q))
                      .ok());
      left.input = q;
    }
    return left;
  }

  // y [rows, cols], gaps and unwritten rows NaN.
  std::vector<float> Multiply(const Product& p, GemmPath path, const std::vector<float>& x,
                              int rows, const RowGroups& groups, Epilogue epilogue) {
    const Left left = MakeLeft(p, x, rows);
    const DeviceArray<std::byte> data(p.data);
    const DeviceArray<float> scales(p.scales);
    const int cols = epilogue == Epilogue::kSiluMul ? p.n / 2 : p.n;
    DeviceArray<float> y(static_cast<size_t>(rows) * cols + 1, kNan);
    const absl::Status status =
        Gemm(nullptr, path, left.input, {p.format, p.groups, p.n, p.k, data.data(), scales.data()},
             groups, epilogue, DeviceMatrix<float>(y.data(), rows, cols));
    EXPECT_TRUE(status.ok()) << status;
    std::vector<float> got = y.Get();
    EXPECT_TRUE(std::isnan(got.back()));
    got.pop_back();
    return got;
  }

  // Of row r of x and weight g, in double, with x as it is multiplied.
  static std::vector<double> Expected(const Product& p, int r, int g) {
    std::vector<float> row(&p.x[static_cast<size_t>(r) * p.k],
                           &p.x[static_cast<size_t>(r + 1) * p.k]);
    if (p.format == DeviceFormat::kBfloat16) {
      for (float& f : row) f = RoundToBf16(f);
    } else if (p.format == DeviceFormat::kInt8 || p.format == DeviceFormat::kInt4) {
      for (int i = 0; i < p.k; i += 128) {
        int8_t q[128];
        const int count = std::min(128, p.k - i);
        const float scale = switchyard::QuantizeInt8(&row[i], count, q);
        for (int j = 0; j < count; ++j) row[i + j] = scale * q[j];
      }
    }
    std::vector<double> y(p.n, 0.0);
    for (int n = 0; n < p.n; ++n) {
      const float* w = &p.w[(static_cast<size_t>(g) * p.n + n) * p.k];
      for (int i = 0; i < p.k; ++i) y[n] += static_cast<double>(row[i]) * w[i];
    }
    return y;
  }
  // What rounding x to E4M3 may cost; else sums in another order.
  static double Tolerance(DeviceFormat f) { return f == DeviceFormat::kFp8 ? 0.15 : 2e-5; }

  std::mt19937_64 rng_{11};
};

TEST_F(GemmTest, DenseIsTheSumAndARowIsItsOwn) {
  const int shapes[][3] = {{1, 1, 1}, {3, 10, 7}, {65, 130, 100}, {70, 24, 200}, {5, 257, 129}};
  for (const auto& [rows, n, k] : shapes) {
    for (const DeviceFormat format : kFormats) {
      SCOPED_TRACE(testing::Message() << rows << " " << n << " " << k << " " << int(format));
      Product p(format, 1, n, k, rows, rng_);
      for (const GemmPath path : TestedPaths()) {
        std::vector<float> first;
        for (const uint64_t seed : TestedOrders()) {
          SetTestedOrder(seed);
          const auto y = Multiply(p, path, p.x, rows, {}, Epilogue::kStore);
          if (first.empty()) first = y;
          ASSERT_EQ(std::memcmp(first.data(), y.data(), y.size() * 4), 0) << "order " << seed;
          if (rows > 3) break;  // the small ones in every order
        }
        SetTestedOrder(0);
        for (const int r : {0, rows / 2, rows - 1}) {
          const auto expected = Expected(p, r, 0);
          for (int i = 0; i < n; ++i) {
            ASSERT_NEAR(first[static_cast<size_t>(r) * n + i], expected[i], 4 * Tolerance(format));
          }
          const std::vector<float> row(&p.x[static_cast<size_t>(r) * k],
                                       &p.x[static_cast<size_t>(r + 1) * k]);
          const auto alone = Multiply(p, path, row, 1, {}, Epilogue::kStore);
          ASSERT_EQ(std::memcmp(alone.data(), &first[static_cast<size_t>(r) * n], n * 4), 0) << r;
        }
      }
    }
  }
}

TEST_F(GemmTest, GroupsTakeTheirRowsWhateverTheirSizes) {
  const int groups = 37, n = 20, k = 72;
  std::vector<int32_t> offsets = {0};
  for (int g = 0; g < groups; ++g) {
    offsets.push_back(offsets.back() + (g == 5 ? 70 : g == 33 ? 3 : g % 9 == 0 ? 1 : 0));
  }
  const int used = offsets.back(), rows = used + 3;  // the last belong to nobody
  for (const DeviceFormat format : kFormats) {
    SCOPED_TRACE(static_cast<int>(format));
    Product p(format, groups, n, k, rows, rng_);
    const DeviceArray<int32_t> bounds(offsets);
    for (const GemmPath path : TestedPaths()) {
      const auto y = Multiply(p, path, p.x, rows, {.offsets = bounds.data()}, Epilogue::kStore);
      for (int g = 0; g < groups; ++g) {
        for (int r = offsets[g]; r < offsets[g + 1]; r += 23) {
          const auto expected = Expected(p, r, g);
          for (int i = 0; i < n; ++i) {
            ASSERT_NEAR(y[r * n + i], expected[i], 4 * Tolerance(format)) << g << " " << r;
          }
        }
      }
      for (int i = used * n; i < rows * n; ++i) ASSERT_TRUE(std::isnan(y[i]));
      // The same rows in fixed places: masked.
      const int each = 70;
      std::vector<float> spread(static_cast<size_t>(groups) * each * k, kNan);
      std::vector<int32_t> counts;
      for (int g = 0; g < groups; ++g) {
        counts.push_back(offsets[g + 1] - offsets[g]);
        std::copy(&p.x[static_cast<size_t>(offsets[g]) * k],
                  &p.x[static_cast<size_t>(offsets[g + 1]) * k],
                  &spread[static_cast<size_t>(g) * each * k]);
      }
      const DeviceArray<int32_t> sizes(counts);
      const auto masked =
          Multiply(p, path, spread, groups * each, {.counts = sizes.data(), .rows_per_group = each},
                   Epilogue::kStore);
      for (int g = 0; g < groups; ++g) {
        for (int r = 0; r < each; ++r) {
          const float* row = &masked[(static_cast<size_t>(g) * each + r) * n];
          if (r < counts[g]) {
            ASSERT_EQ(std::memcmp(row, &y[(offsets[g] + r) * n], n * 4), 0) << g << " " << r;
          } else {
            ASSERT_TRUE(std::isnan(row[0]));
          }
        }
      }
    }
  }
}

// Small whole numbers: sums of 128 products are exact however a tensor core adds them, so that y is
// one chain of fma over groups of k, to the bit.
TEST_F(GemmTest, Fp8AddsScaledGroupsInAscendingOrderWhateverTheRowsBeside) {
  constexpr int kRows = 135, kN = 130, kK = 300, kStride = 384, kGroups = 3, kExperts = 2;
  const std::vector<int32_t> offsets = {0, 3, kRows};
  const auto numbers = [&](size_t n) {
    std::vector<int> v(n);
    for (int& i : v) i = static_cast<int>(rng_() % 5) - 2;
    return v;
  };
  const auto encoded = [](const std::vector<int>& v) {
    constexpr uint8_t kOf[] = {0xc0, 0xb8, 0x00, 0x38, 0x40};  // -2 … 2
    std::vector<uint8_t> bytes;
    for (const int i : v) bytes.push_back(kOf[i + 2]);
    return bytes;
  };
  const auto scales = [&](size_t n) {
    std::uniform_real_distribution<float> some(0.1f, 2.0f);
    std::vector<float> v(n);
    for (float& f : v) f = some(rng_);
    return v;
  };
  const auto x = numbers(kRows * kStride), w = numbers(kExperts * kN * kK);
  const auto sx = scales(kRows * kGroups), sw = scales(kExperts * 2 * kGroups);
  std::vector<std::byte> packed(kExperts * WeightBytes(DeviceFormat::kFp8, kN, kK));
  std::vector<float> packed_scales(sw.size());
  const std::vector<uint8_t> values = encoded(w);
  for (int g = 0; g < kExperts; ++g) {
    PackFp8(&values[g * kN * kK], &sw[g * 2 * kGroups], kN, kK, &packed[g * kN * kStride],
            &packed_scales[g * 2 * kGroups]);
  }
  const DeviceArray<uint8_t> dx(encoded(x));
  const DeviceArray<float> dsx(sx), dsw(packed_scales);
  const DeviceArray<std::byte> dw(packed);
  const DeviceArray<int32_t> bounds(offsets);
  for (const GemmPath path : TestedPaths()) {
    DeviceArray<float> y(kRows * kN, kNan);
    ASSERT_TRUE(Gemm(nullptr, path, QuantizedRows{dx.data(), dsx.data(), kRows, kK},
                     {DeviceFormat::kFp8, kExperts, kN, kK, dw.data(), dsw.data()},
                     {.offsets = bounds.data()}, Epilogue::kStore,
                     DeviceMatrix<float>(y.data(), kRows, kN))
                    .ok());
    const std::vector<float> got = y.Get();
    for (int r = 0; r < kRows; ++r) {
      const int g = r < offsets[1] ? 0 : 1;
      for (int n = 0; n < kN; ++n) {
        float sum = 0;
        for (int q = 0; q < kGroups; ++q) {
          int part = 0;
          for (int k = q * 128; k < std::min(kK, (q + 1) * 128); ++k) {
            part += x[r * kStride + k] * w[(g * kN + n) * kK + k];
          }
          const float scale = sx[r * kGroups + q] * sw[(g * 2 + n / 128) * kGroups + q];
          sum = std::fmaf(static_cast<float>(part), scale, sum);
        }
        ASSERT_EQ(got[r * kN + n], sum) << r << " " << n << " path " << static_cast<int>(path);
      }
    }
  }
}

TEST_F(GemmTest, SiluTakesPairsOfColumns) {
  const int rows = 4, n = 34, k = 90;
  for (const DeviceFormat format : kFormats) {
    Product p(format, 1, n, k, rows, rng_);
    for (const GemmPath path : TestedPaths()) {
      const auto pairs = Multiply(p, path, p.x, rows, {}, Epilogue::kStore);
      const auto y = Multiply(p, path, p.x, rows, {}, Epilogue::kSiluMul);
      for (int i = 0; i < rows * n / 2; ++i) {
        const float gate = pairs[2 * i], up = pairs[2 * i + 1];
        ASSERT_NEAR(y[i], gate / (1 + std::exp(-gate)) * up, 1e-5 * (1 + std::abs(gate * up)));
      }
    }
  }
}

}  // namespace
}  // namespace switchyard::cuda
