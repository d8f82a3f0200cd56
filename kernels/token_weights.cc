#include "kernels/token_weights.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>

namespace switchyard {
namespace {

constexpr float kNone = -std::numeric_limits<float>::infinity();
constexpr size_t kLanes = 8;
typedef float Floats __attribute__((vector_size(kLanes * sizeof(float))));
typedef double Doubles __attribute__((vector_size(kLanes * sizeof(double))));
typedef uint64_t Words __attribute__((vector_size(kLanes * sizeof(uint64_t))));
typedef int64_t SignedWords __attribute__((vector_size(kLanes * sizeof(int64_t))));

struct Scale {
  double highest, inverse_temperature;
  int bits;
};

constexpr size_t kAtOnce = 4;  // vectors: one's sums wait for each other

// e^x = 2^n · e^r, n whole, |r| <= ln 2 ÷ 2, and e^r by its series up to r^12 ÷ 12!, whose rest is
// below a double's rounding.
[[gnu::always_inline]] inline void WeighSome(const float* logits, const Scale& scale,
                                             uint64_t* weights) {
  constexpr double kLog2E = 0x1.71547652b82fep+0, kLn2High = 0x1.62e42fee00000p-1,
                   kLn2Low = 0x1.a39ef35793c76p-33;
  constexpr double kRound = 0x1.8p52;  // a sum with it has the rounded number in its low bits
  constexpr double kLowest = -64;
  constexpr double kInverseFactorials[] = {1.0 / 479001600,
                                           1.0 / 39916800,
                                           1.0 / 3628800,
                                           1.0 / 362880,
                                           1.0 / 40320,
                                           1.0 / 5040,
                                           1.0 / 720,
                                           1.0 / 120,
                                           1.0 / 24,
                                           1.0 / 6,
                                           0.5,
                                           1,
                                           1};
  SignedWords counts[kAtOnce];  // all bits of a token that weighs anything, else none
  Doubles shifted[kAtOnce], r[kAtOnce], series[kAtOnce];
#pragma GCC unroll 4
  for (size_t j = 0; j < kAtOnce; ++j) {
    Floats given;
    std::memcpy(&given, logits + j * kLanes, sizeof(given));
    Doubles x =
        (__builtin_convertvector(given, Doubles) - scale.highest) * scale.inverse_temperature;
    counts[j] = x > kLowest;
    x = x > kLowest ? x : Doubles{} + kLowest;
    shifted[j] = x * kLog2E + kRound;
    const Doubles n = shifted[j] - kRound;
    r[j] = (x - n * kLn2High) - n * kLn2Low;
    series[j] = Doubles{};
  }
#pragma GCC unroll 16
  for (const double c : kInverseFactorials) {
#pragma GCC unroll 4
    for (size_t j = 0; j < kAtOnce; ++j) series[j] = series[j] * r[j] + c;
  }
#pragma GCC unroll 4
  for (size_t j = 0; j < kAtOnce; ++j) {
    Words exponent;
    std::memcpy(&exponent, &shifted[j], sizeof(exponent));
    exponent = (exponent + (1023 + scale.bits)) << 52;
    Doubles power;
    std::memcpy(&power, &exponent, sizeof(power));
    const SignedWords whole = __builtin_convertvector(series[j] * power, SignedWords) & counts[j];
    std::memcpy(weights + j * kLanes, &whole, sizeof(whole));
  }
}

[[gnu::always_inline]] inline void WeighAll(const float* logits, const Scale& scale,
                                            uint64_t* weights) {
  for (size_t i = 0; i < TokenWeights::kBlock; i += kAtOnce * kLanes) {
    WeighSome(logits + i, scale, weights + i);
  }
}

void WeighPlain(const float* logits, const Scale& scale, uint64_t* weights) {
  WeighAll(logits, scale, weights);
}
[[gnu::target("avx2")]] void WeighAvx2(const float* logits, const Scale& scale, uint64_t* weights) {
  WeighAll(logits, scale, weights);
}
[[gnu::target("avx512f,avx512dq")]] void WeighAvx512(const float* logits, const Scale& scale,
                                                     uint64_t* weights) {
  WeighAll(logits, scale, weights);
}

using WeighFunction = void (*)(const float*, const Scale&, uint64_t*);
const std::vector<WeighFunction>& WeighFunctions() {
  static const std::vector<WeighFunction> functions = [] {
    std::vector<WeighFunction> all = {WeighPlain};
    if (__builtin_cpu_supports("avx2")) all.push_back(WeighAvx2);
    const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq");
    if (avx512) all.push_back(WeighAvx512);
    return all;
  }();
  return functions;
}

// What is looked at in one turn, by vectors of four that every x86-64 has.
constexpr size_t kQuads = 8, kStride = kQuads * 4;

}  // namespace

bool AllFinite(std::span<const float> logits) {
  typedef uint32_t Quad __attribute__((vector_size(4 * sizeof(uint32_t))));
  constexpr uint32_t kExponent = 0x7f800000;
  Quad bad[kQuads] = {};
  size_t i = 0;
  for (; i + kStride <= logits.size(); i += kStride) {
    Quad bits[kQuads];
    std::memcpy(bits, &logits[i], sizeof(bits));
    for (size_t j = 0; j < kQuads; ++j) bad[j] |= (bits[j] & kExponent) == kExponent;
  }
  uint32_t any = 0;
  for (const Quad& b : bad) any |= b[0] | b[1] | b[2] | b[3];
  for (; i < logits.size(); ++i) any |= !std::isfinite(logits[i]);
  return any == 0;
}

float HighestLogit(std::span<const float> logits) {
  typedef float Quad __attribute__((vector_size(4 * sizeof(float))));
  Quad best[kQuads];
  for (Quad& b : best) b = Quad{} + kNone;
  size_t i = 0;
  for (; i + kStride <= logits.size(); i += kStride) {
    Quad x[kQuads];
    std::memcpy(x, &logits[i], sizeof(x));
    for (size_t j = 0; j < kQuads; ++j) best[j] = x[j] > best[j] ? x[j] : best[j];
  }
  float highest = kNone;
  for (const Quad& b : best) {
    for (size_t lane = 0; lane < 4; ++lane) highest = std::max(highest, b[lane]);
  }
  for (; i < logits.size(); ++i) highest = logits[i] > highest ? logits[i] : highest;
  return highest;
}

TokenWeights::TokenWeights(std::span<const float> logits, float temperature,
                           std::vector<float>& maxima)
    : logits_(logits), temperature_(temperature), bits_(62 - std::bit_width(logits.size())) {
  maxima.resize((logits.size() + kBlock - 1) / kBlock);
  for (size_t b = 0; b < maxima.size(); ++b) maxima[b] = HighestLogit(this->logits(b));
  maxima_ = maxima;
  highest_ = HighestLogit(maxima_);
}

int TokenWeights::widths() { return static_cast<int>(WeighFunctions().size()); }

void TokenWeights::Weigh(size_t block, std::span<uint64_t, kBlock> weights, int width) const {
  const WeighFunction weigh = WeighFunctions()[static_cast<size_t>(width)];
  const Scale scale{highest_, 1.0 / temperature_, bits_};
  const std::span<const float> given = logits(block);
  if (given.size() == kBlock) return weigh(given.data(), scale, weights.data());
  float whole[kBlock];
  std::fill(std::copy(given.begin(), given.end(), whole), std::end(whole), kNone);
  weigh(whole, scale, weights.data());
}

uint64_t TokenWeights::Sum(size_t block) const {
  uint64_t weights[kBlock];
  Weigh(block, weights);
  return std::accumulate(weights, std::end(weights), uint64_t{0});
}

}  // namespace switchyard
