// switchyard bench kernels: every kernel as a share of what this machine allows.
#include <algorithm>
#include <iostream>
#include <thread>

#include "bench/kernel_bench.h"
#include "cli/command.h"

namespace switchyard {
namespace {

class BenchKernels final : public Command {
 public:
  std::string name() const override { return "bench kernels"; }
  std::string help() const override { return "kernels against this machine's ceilings"; }

  void AddFlags(CLI::App& app) override {
    app.add_option("--kernels", o_.kernels, "auto, avx2, avx512, avx512_vnni or avx512_bf16")
        ->capture_default_str();
    app.add_option("--threads", threads_, "thread counts; default: 1, and all")->delimiter(',');
    app.add_option("--filter", o_.filter, "only cases whose name holds this");
    app.add_option("--repeats", o_.repeats, "the median of so many measurements is reported")
        ->check(CLI::PositiveNumber)
        ->capture_default_str();
    app.add_flag("--json", json_, "print JSON");
  }

  absl::StatusOr<int> Run(const CLI::App&) override {
    o_.threads = threads_;
    if (threads_.empty()) {
      const int all = std::max(1u, std::thread::hardware_concurrency());
      o_.threads = all == 1 ? std::vector{1} : std::vector{1, all};
    }
    if (!json_) {
      o_.progress = [](const std::string& line) { std::cout << line << std::endl; };
    }
    auto report = RunBenchKernels(o_);
    if (!report.ok()) return report.status();
    if (json_) std::cout << report->dump(2) << "\n";
    return 0;
  }

 private:
  BenchKernelsOptions o_;
  std::vector<int> threads_;
  bool json_ = false;
};

}  // namespace

std::unique_ptr<Command> MakeBenchKernels() { return std::make_unique<BenchKernels>(); }

}  // namespace switchyard
