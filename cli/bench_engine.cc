// switchyard bench engine: tokens per second of one engine in this process.
#include <cstdio>
#include <iostream>

#include "bench/engine_bench.h"
#include "cli/command.h"
#include "cli/flags.h"

namespace switchyard {
namespace {

class BenchEngine final : public Command {
 public:
  std::string name() const override { return "bench engine"; }
  std::string help() const override { return "prefill and decode speed in this process"; }

  void AddFlags(CLI::App& app) override {
    AddModelFlag(app, &o_.model_dir);
    app.add_option("--prefill-tokens", o_.prefill_tokens, "prompt lengths")
        ->delimiter(',')
        ->capture_default_str();
    app.add_option("--prefill-context", o_.prefill_context,
                   "tokens of the prompts before those, not timed: whole steps of --prefill-chunk")
        ->check(CLI::NonNegativeNumber)
        ->capture_default_str();
    app.add_option("--decode-batches", o_.decode_batches, "sequences decoded at once")
        ->delimiter(',')
        ->capture_default_str();
    app.add_option("--decode-context", o_.decode_context, "tokens in the cache at the start")
        ->check(CLI::PositiveNumber)
        ->capture_default_str();
    app.add_option("--decode-steps", o_.decode_steps, "tokens of each sequence")
        ->check(CLI::PositiveNumber)
        ->capture_default_str();
    app.add_option("--repeats", o_.repeats, "the median of so many runs is reported")
        ->check(CLI::PositiveNumber)
        ->capture_default_str();
    app.add_flag("--json", json_, "print JSON");
    engine_.AddTo(app);
  }

  absl::Status CheckFlags() const override { return CheckModelGiven(o_.model_dir); }

  absl::StatusOr<int> Run(const CLI::App&) override {
    o_.model = engine_.Model();
    o_.engine = engine_.engine;
    if (!json_) {
      o_.progress = [](const std::string& line) { std::cout << line << std::endl; };
    }
    auto report = RunBenchEngine(o_);
    if (!report.ok()) return report.status();
    if (json_) std::cout << report->dump(2) << "\n";
    return 0;
  }

 private:
  BenchEngineOptions o_;
  EngineFlags engine_;
  bool json_ = false;
};

}  // namespace

std::unique_ptr<Command> MakeBenchEngine() { return std::make_unique<BenchEngine>(); }

}  // namespace switchyard
