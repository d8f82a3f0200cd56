#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "model/verify.h"

namespace switchyard {
namespace {

nlohmann::ordered_json ErrorJson(const LogitError& e) {
  return {{"max", e.max}, {"mean", e.mean}, {"median", e.median}};
}

}  // namespace

std::string VerifyReportText(const VerifyReport& r) {
  std::string out = absl::StrCat(r.architecture, "  ", r.numerics_id, "\n");
  absl::StrAppendFormat(&out, "%4s %6s  %-32s  %-32s  %-14s  %s\n", "case", "tokens",
                        "|delta| max / mean / median", "reference in bfloat16", "top-1",
                        "KL in nats");
  for (const VerifyCase& c : r.cases) {
    absl::StrAppendFormat(
        &out,
        "%4d %6d  %-9.3e / %-9.3e / %-9.3e %-9.3e / %-9.3e / %-9.3e  %.3f (%.3f)  %.2e (%.2e)\n",
        c.index, c.tokens, c.ours.max, c.ours.mean, c.ours.median, c.bf16.max, c.bf16.mean,
        c.bf16.median, c.top1_agreement, c.top1_bf16, c.kl, c.kl_bf16);
  }
  absl::StrAppendFormat(&out, "greedy: %d of %d tokens equal\n", r.greedy_equal, r.greedy_compared);
  absl::StrAppendFormat(
      &out, "cases 1 and 2: median %.3e (bfloat16 reference %.3e), outliers %.1f %% (%.1f %%)\n",
      r.pooled_median, r.pooled_median_bf16, 100 * r.pooled_outliers, 100 * r.pooled_outliers_bf16);
  for (const std::string& f : r.failures) absl::StrAppend(&out, "past tolerance: ", f, "\n");
  absl::StrAppend(&out, r.passed ? "PASSED\n" : "FAILED\n");
  return out;
}

std::string VerifyReportJson(const VerifyReport& r) {
  nlohmann::ordered_json cases = nlohmann::ordered_json::array();
  for (const VerifyCase& c : r.cases) {
    nlohmann::ordered_json j = {{"case", c.index}, {"tokens", c.tokens}};
    j.update(ErrorJson(c.ours));
    j["logits_bf16"] = ErrorJson(c.bf16);
    j["logits_bf16"].update({{"top1_agreement", c.top1_bf16}, {"kl", c.kl_bf16}});
    j["top1_agreement"] = c.top1_agreement;
    j["kl"] = c.kl;
    cases.push_back(std::move(j));
  }
  const nlohmann::ordered_json report = {
      {"architecture", r.architecture},
      {"numerics_id", r.numerics_id},
      {"dtype", r.dtype},
      {"quantization", r.quantization ? Name(*r.quantization) : "none"},
      {"cases", std::move(cases)},
      {"greedy", {{"compared", r.greedy_compared}, {"equal", r.greedy_equal}}},
      {"pooled",
       {{"median", r.pooled_median},
        {"median_bf16", r.pooled_median_bf16},
        {"outliers", r.pooled_outliers},
        {"outliers_bf16", r.pooled_outliers_bf16}}},
      {"failures", r.failures},
      {"passed", r.passed},
  };
  return report.dump(2, ' ', true, nlohmann::json::error_handler_t::replace);
}

}  // namespace switchyard
