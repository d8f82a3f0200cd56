// model/verify.h: compares a model with stored reference logits: the library behind
// `switchyard verify`. The golden file's tensors are described in tests/data/goldens/README.md.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "model/model.h"

namespace switchyard {

// |Δlogit| against the FP32 reference. "Median over positions" is of a position's mean |Δ|.
struct LogitError {
  double max = 0, mean = 0, median = 0;
  std::vector<double> position_means;  // [T]
};

struct VerifyCase {
  int index = 0, tokens = 0;
  LogitError ours;
  LogitError bf16;  // of the reference's own BF16 run: the size of honest rounding noise
  // Share of positions whose best token is the reference's; mean over positions of the divergence
  // KL(reference ‖ other) in nats: what changed numbers cost. Ours, and the BF16 run's.
  double top1_agreement = 0, top1_bf16 = 0;
  double kl = 0, kl_bf16 = 0;
};

struct VerifyReport {
  std::string architecture, numerics_id, dtype;
  std::optional<WeightFormat> quantization;
  std::vector<VerifyCase> cases;
  // Greedy tokens continuing case 1, up to the first whose margin between the two best logits is at
  // most 1e-3 (EOS ignored), and how many of them are ours, before the first that is not.
  int greedy_compared = 0, greedy_equal = 0;
  // Cases 1 and 2 pooled: median of position means; share of positions above 5 · bf16's median.
  double pooled_median = 0, pooled_median_bf16 = 0;
  double pooled_outliers = 0, pooled_outliers_bf16 = 0;
  bool passed = false;
  std::vector<std::string> failures;  // what is past which tolerance; empty if passed
};

// Tolerances. float32: max |Δ| <= 1e-3 and every compared greedy token equal. bfloat16: the pooled
// median <= 1.25 times bf16's, and the outliers' share at most bf16's plus 5 points. Weights of
// 8 or 4 bits: the pooled median <= 16 or 64 times bf16's, which tells what is rounded from what
// is wrong and no more. Errors: the golden file lacks a tensor, or does not fit the model.
absl::StatusOr<VerifyReport> Verify(Model& model, const std::string& golden_path);

std::string VerifyReportText(const VerifyReport& report);
std::string VerifyReportJson(const VerifyReport& report);

}  // namespace switchyard
