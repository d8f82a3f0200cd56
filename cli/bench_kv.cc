// switchyard bench kv: KV blocks from one process's cache into another's, against what the machine
// can do.
#include <iostream>

#include "bench/kv_bench.h"
#include "cli/command.h"

namespace switchyard {
namespace {

class BenchKv final : public Command {
 public:
  std::string name() const override { return "bench kv"; }
  std::string help() const override { return "KV blocks between processes"; }

  void AddFlags(CLI::App& app) override {
    app.add_option("--block-bytes", o_.block_bytes, "of one layer's block; multiples of 64")
        ->delimiter(',')
        ->check(CLI::Range(64, 1 << 24))
        ->capture_default_str();
    app.add_option("--layers", o_.layers, "")->check(CLI::Range(1, 1024))->capture_default_str();
    app.add_option("--mib", o_.mib, "moved each time; memory: eight times as much")
        ->check(CLI::Range(1, 1 << 16))
        ->capture_default_str();
    app.add_option("--turns", o_.turns, "of all ways")
        ->check(CLI::Range(1, 1000))
        ->capture_default_str();
    app.add_flag("--json", json_, "print JSON");
  }

  absl::StatusOr<int> Run(const CLI::App&) override {
    if (!json_) {
      o_.progress = [](const std::string& line) { std::cout << line << std::endl; };
    }
    auto report = RunBenchKv(o_);
    if (!report.ok()) return report.status();
    if (json_) std::cout << report->dump(2) << "\n";
    return 0;
  }

 private:
  BenchKvOptions o_;
  bool json_ = false;
};

}  // namespace

std::unique_ptr<Command> MakeBenchKv() { return std::make_unique<BenchKv>(); }

}  // namespace switchyard
