// cos and sin for every position, with YaRN's interpolation where the model asks for it: Peng et
// al. 2023, section 3.2 ("NTK-by-parts").
#include <algorithm>
#include <cmath>
#include <numbers>

#include "model/config.h"

namespace switchyard {
namespace {

// The dimension whose wave turns `rotations` times within `positions`.
double CorrectionDim(double rotations, int dim, double theta, int positions) {
  return dim * std::log(positions / (rotations * 2 * std::numbers::pi)) / (2 * std::log(theta));
}

// Blends each frequency between extrapolated (kept) and interpolated (divided by the factor).
void Interpolate(const YarnScaling& yarn, int dim, double theta, std::vector<float>& frequencies) {
  const int positions = yarn.original_max_position_embeddings;
  double low = CorrectionDim(yarn.beta_fast, dim, theta, positions);
  double high = CorrectionDim(yarn.beta_slow, dim, theta, positions);
  if (yarn.truncate) {
    low = std::floor(low);
    high = std::ceil(high);
  }
  low = std::max(low, 0.0);
  high = std::min(high, dim - 1.0);
  if (low == high) high += 0.001;  // no division by zero
  const float width = static_cast<float>(high - low);
  for (size_t i = 0; i < frequencies.size(); ++i) {
    const float ramp =
        std::clamp((static_cast<float>(i) - static_cast<float>(low)) / width, 0.0f, 1.0f);
    const float kept = 1 - ramp;
    const float interpolated = frequencies[i] / static_cast<float>(yarn.factor);
    frequencies[i] = interpolated * (1 - kept) + frequencies[i] * kept;
  }
}

}  // namespace

RopeTable ModelConfig::MakeRopeTable(int positions) const {
  const int dim = RopeDim();
  const size_t half = dim / 2;
  std::vector<float> frequencies(half);
  for (size_t i = 0; i < half; ++i) {
    const double exponent = static_cast<float>(2 * i) / static_cast<float>(dim);
    frequencies[i] = 1.0f / static_cast<float>(std::pow(rope_theta, exponent));
  }
  if (yarn) Interpolate(*yarn, dim, rope_theta, frequencies);
  const float factor = yarn ? static_cast<float>(yarn->attention_factor) : 1.0f;

  RopeTable table{dim, positions, {}, {}};
  table.cos.resize(positions * half);
  table.sin.resize(positions * half);
  for (int p = 0; p < positions; ++p) {
    for (size_t i = 0; i < half; ++i) {
      // The angle is an FP32 product, as in the reference implementations; the functions are
      // computed in double so that the C library's FP32 ones cannot decide bits.
      const double angle = static_cast<float>(p) * frequencies[i];
      table.cos[p * half + i] = static_cast<float>(std::cos(angle)) * factor;
      table.sin[p * half + i] = static_cast<float>(std::sin(angle)) * factor;
    }
  }
  return table;
}

}  // namespace switchyard
