// switchyard bench ep: dispatch and combine between processes, against what the bare lane can do;
// with a model, its whole steps, with one micro-batch and with two.
#include <iostream>

#include "bench/ep_bench.h"
#include "bench/ep_skew.h"
#include "bench/ep_step_bench.h"
#include "cli/command.h"

namespace switchyard {
namespace {

class BenchEp final : public Command {
 public:
  std::string name() const override { return "bench ep"; }
  std::string help() const override { return "dispatch and combine between processes"; }

  void AddFlags(CLI::App& app) override {
    app.add_option("--ranks", o_.ranks, "processes")
        ->check(CLI::Range(2, 64))
        ->capture_default_str();
    app.add_option("--experts", o_.experts, "")
        ->check(CLI::Range(2, 1 << 16))
        ->capture_default_str();
    app.add_option("--top-k", o_.top_k, "")->check(CLI::Range(1, 255))->capture_default_str();
    app.add_option("--lanes", o_.lanes, "shm, tcp")
        ->delimiter(',')
        ->check(CLI::IsMember({"shm", "tcp"}))
        ->capture_default_str();
    app.add_option("--hidden", o_.hidden, "widths")
        ->delimiter(',')
        ->check(CLI::Range(1, 1 << 16))
        ->capture_default_str();
    app.add_option("--tokens", o_.tokens, "of each rank")
        ->delimiter(',')
        ->check(CLI::Range(1, 1 << 16))
        ->capture_default_str();
    app.add_option("--model", steps_.model_dir,
                   "whole steps of this config.json, with one micro-batch and with two; --experts, "
                   "--top-k and --hidden are the model's")
        ->check(CLI::ExistingDirectory);
    app.add_option(
           "--context", steps_.context,
           "with --model: tokens before each, which are sequences of their own; 0: a prompt")
        ->check(CLI::Range(0, 1 << 16))
        ->capture_default_str();
    app.add_option("--threads", steps_.threads, "with --model: of each rank")
        ->check(CLI::Range(1, 1024))
        ->capture_default_str();
    app.add_option("--net-namespaces", steps_.namespaces,
                   "with --model: of /run/netns, one for each rank")
        ->delimiter(',')
        ->needs("--model");
    app.add_option("--net-devices", steps_.net_devices, "with --model: of the tcp lane")
        ->needs("--model")
        ->capture_default_str();
    app.add_option("--low-latency-tokens", o_.low_latency_tokens, "up to so many take that path")
        ->check(CLI::Range(0, 1 << 12))
        ->capture_default_str();
    app.add_option("--seconds", o_.seconds, "of each measurement")
        ->check(CLI::Range(0.01, 60.0))
        ->capture_default_str();
    app.add_option("--zipf", skew_.zipf,
                   "time experts instead, the n-th of them chosen in proportion to n^-zipf: even "
                   "and balanced placements, in an account of each rank's CPU time; of --hidden "
                   "the first")
        ->check(CLI::Range(0.0, 10.0));
    app.add_option("--redundant", skew_.redundant, "with --zipf: replicas")
        ->check(CLI::Range(0, 1 << 16))
        ->capture_default_str();
    app.add_option("--intermediate", skew_.intermediate, "with --zipf: width of an expert")
        ->check(CLI::Range(1, 1 << 16))
        ->capture_default_str();
    app.add_option("--layers", skew_.layers, "with --zipf: each with an order of its own")
        ->check(CLI::Range(1, 1024))
        ->capture_default_str();
    app.add_flag("--json", json_, "print JSON");
  }

  absl::StatusOr<int> Run(const CLI::App& app) override {
    if (!json_) {
      o_.progress = [](const std::string& line) { std::cout << line << std::endl; };
    }
    steps_.ranks = o_.ranks;
    steps_.lanes = o_.lanes;
    steps_.tokens = o_.tokens;
    steps_.low_latency_tokens = o_.low_latency_tokens;
    steps_.seconds = o_.seconds;
    steps_.progress = o_.progress;
    auto report = app.count("--zipf") > 0    ? RunSkew()
                  : steps_.model_dir.empty() ? RunBenchEp(o_)
                                             : RunBenchEpSteps(steps_);
    if (!report.ok()) return report.status();
    if (json_) std::cout << report->dump(2) << "\n";
    return 0;
  }

 private:
  absl::StatusOr<nlohmann::ordered_json> RunSkew() {
    skew_.ranks = o_.ranks;
    skew_.experts = o_.experts;
    skew_.top_k = o_.top_k;
    skew_.hidden = o_.hidden.front();
    skew_.tokens = o_.tokens;
    skew_.progress = o_.progress;
    return RunBenchEpSkew(skew_);
  }

  BenchEpOptions o_;
  BenchEpSkewOptions skew_;
  BenchEpStepOptions steps_;
  bool json_ = false;
};

}  // namespace

std::unique_ptr<Command> MakeBenchEp() { return std::make_unique<BenchEp>(); }

}  // namespace switchyard
