#include "bench/kernel_bench.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "bench/ceilings.h"
#include "bench/kernel_cases.h"
#include "bench/spread.h"
#include "common/status_macros.h"
#include "kernels/cpu/cpu_kernels.h"

namespace switchyard {
namespace {
using nlohmann::ordered_json;

constexpr double kSampleSeconds = 0.010;  // a measurement at least

// Seconds of one call.
double Time(const KernelCase& c, KernelContext& ctx) {
  const double start = BenchSeconds(ctx.pool);
  int calls = 0;
  double taken = 0;
  do {
    c.call(ctx);
    ++calls;
    taken = BenchSeconds(ctx.pool) - start;
  } while (taken < kSampleSeconds);
  return taken / calls;
}

ordered_json MeasureCeilings(Ceilings& ceilings, const BenchKernelsOptions& o) {
  ordered_json rows = ordered_json::array();
  for (const Ceiling c : ceilings.all()) {
    std::vector<double> rates;
    for (int i = 0; i < o.repeats; ++i) rates.push_back(ceilings.Measure(c) / 1e9);
    const Spread s = Summarise(std::move(rates));
    rows.push_back({{"name", Name(c)},
                    {"unit", IsArithmetic(c) ? "GFLOP/s" : "GB/s"},
                    {"median", s.median},
                    {"lowest", s.lowest},
                    {"highest", s.highest}});
    if (o.progress) {
      o.progress(absl::StrFormat("%-58s %8.1f %s (%.1f to %.1f)", Name(c), s.median,
                                 IsArithmetic(c) ? "GFLOP/s" : "GB/s", s.lowest, s.highest));
    }
  }
  return rows;
}

ordered_json MeasureCase(const KernelCase& c, Ceilings& ceilings, KernelContext& ctx,
                         const BenchKernelsOptions& o) {
  c.call(ctx);  // takes its scratch memory
  std::vector<double> shares, seconds;
  int bound_by_memory = 0;
  for (int i = 0; i < o.repeats; ++i) {
    const double computing = c.operations / ceilings.Measure(c.arithmetic);
    const double taken = Time(c, ctx);
    const double reading = c.bytes / ceilings.Measure(Ceiling::kMemoryRead);
    bound_by_memory += reading > computing;
    shares.push_back(std::max(computing, reading) / taken);
    seconds.push_back(taken);
  }
  const bool memory = 2 * bound_by_memory > o.repeats;
  const char* limit = Name(memory ? Ceiling::kMemoryRead : c.arithmetic);
  const double median = Summarise(std::move(seconds)).median;
  const Spread share = Summarise(std::move(shares));
  if (o.progress) {
    o.progress(absl::StrFormat("%-20s %-37s %5.2f of %-11s (%.2f to %.2f) %8.1f GFLOP/s %6.1f GB/s",
                               c.kernel, c.shape, share.median, limit, share.lowest, share.highest,
                               c.operations / median / 1e9, c.bytes / median / 1e9));
  }
  return {{"kernel", c.kernel},
          {"shape", c.shape},
          {"limit", limit},
          {"share", share.median},
          {"lowest", share.lowest},
          {"highest", share.highest},
          {"gflops", c.operations / median / 1e9},
          {"gigabytes_per_second", c.bytes / median / 1e9}};
}

}  // namespace

absl::StatusOr<ordered_json> RunBenchKernels(const BenchKernelsOptions& o) {
  ASSIGN_OR_RETURN(const CpuPath path, FindCpuPath(o.kernels));
  if (o.repeats < 1) return absl::InvalidArgumentError("--repeats must be at least 1");
  ordered_json out;
  out["kernels"] = path.set.name;
  out["runs"] = ordered_json::array();
  for (const int threads : o.threads) {
    if (threads < 1) return absl::InvalidArgumentError("--threads must be at least 1");
    KernelContext ctx(threads);
    Ceilings ceilings(*path.isa, ctx.pool);
    if (o.progress) o.progress(absl::StrCat(path.set.name, ", ", threads, " thread(s)"));
    ordered_json run;
    run["threads"] = threads;
    run["ceilings"] = MeasureCeilings(ceilings, o);
    run["cases"] = ordered_json::array();
    for (const KernelCaseFactory& factory : AllKernelCases()) {
      if (factory.name.find(o.filter) == std::string::npos) continue;
      const KernelCase c = factory.make(path.set, *path.isa);
      run["cases"].push_back(MeasureCase(c, ceilings, ctx, o));
    }
    out["runs"].push_back(std::move(run));
  }
  return out;
}

}  // namespace switchyard
