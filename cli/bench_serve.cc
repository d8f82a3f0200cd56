#include <unistd.h>

#include <atomic>
#include <csignal>
#include <cstdio>
#include <iostream>
#include <memory>
#include <string>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "bench/serve.h"
#include "cli/api_key.h"
#include "cli/command.h"
#include "cli/flags.h"
#include "common/file.h"

namespace switchyard {
namespace {

// Set by SIGINT: the test ends early and reports what it has. A signal handler can reach nothing
// else.
std::atomic<bool> interrupted{false};

struct Flags {
  BenchServeOptions bench;
  std::string dataset = "random", request_rate = "inf", result_file;
  double timeout_seconds = 1800;
  bool json = false;
};

absl::Status Apply(Flags& f) {
  if (f.dataset == "sharegpt") {
    f.bench.workload.lengths = WorkloadOptions::Lengths::kShareGpt;
  } else if (f.dataset != "random") {
    return absl::InvalidArgumentError(
        absl::StrCat("--dataset-name is ", f.dataset, ", supported: random, sharegpt"));
  }
  f.bench.report.dataset = f.dataset;
  double rate = 0;
  if (f.request_rate != "inf" && (!absl::SimpleAtod(f.request_rate, &rate) || !(rate > 0))) {
    return absl::InvalidArgumentError(
        absl::StrCat("--request-rate is ", f.request_rate, ", must be inf or a positive number"));
  }
  f.bench.workload.request_rate = rate;
  f.bench.timeout = absl::Seconds(f.timeout_seconds);
  return absl::OkStatus();
}

class BenchServe final : public Command {
 public:
  std::string name() const override { return "bench serve"; }
  std::string help() const override { return "load-tests a running router over gRPC"; }

  void AddFlags(CLI::App& app) override {
    WorkloadOptions& w = f_.bench.workload;
    app.add_option("--grpc", f_.bench.address, "The router's gRPC address")
        ->check(IsAddress())
        ->capture_default_str();
    app.add_option("--dataset-name", f_.dataset, "Lengths: random or sharegpt (log-normal)")
        ->capture_default_str();
    app.add_option("--num-prompts", w.prompts, "Requests to send")->capture_default_str();
    app.add_option("--random-input-len", w.input_len, "Mean prompt tokens")->capture_default_str();
    app.add_option("--random-output-len", w.output_len, "Mean output tokens")
        ->capture_default_str();
    app.add_option("--random-range-ratio", w.range_ratio, "Lengths vary by this share, [0, 1)")
        ->capture_default_str();
    app.add_option("--random-prefix-len", w.prefix_len, "Tokens that all prompts begin with")
        ->capture_default_str();
    app.add_option("--request-rate", f_.request_rate, "Requests per second, or inf: all at once")
        ->capture_default_str();
    app.add_option("--burstiness", w.burstiness, "1: Poisson arrivals; below: burstier")
        ->capture_default_str();
    app.add_option("--max-concurrency", f_.bench.max_concurrency, "Streams at once; 0: no limit")
        ->capture_default_str();
    app.add_option("--seed", w.seed, "Of lengths, tokens and arrivals")->capture_default_str();
    app.add_option("--temperature", f_.bench.temperature, "0 is greedy")
        ->check(CLI::Range(0.0, double{kTemperatureMax}))
        ->capture_default_str();
    app.add_option("--drop-share", f_.bench.drop_share, "Streams cancelled midway, [0, 1]")
        ->capture_default_str();
    app.add_option("--timeout", f_.timeout_seconds, "Seconds a request may take")
        ->capture_default_str();
    app.add_flag("--json", f_.json, "Print JSON, with the keys of `vllm bench serve`");
    app.add_flag("--save-detailed", f_.bench.report.detailed, "Each request's figures too");
    app.add_option("--result-filename", f_.result_file, "Write the JSON to this file as well")
        ->check(IsWritableFile());
  }

  absl::StatusOr<int> Run(const CLI::App&) override {
    if (absl::Status s = Apply(f_); !s.ok()) return s;
    f_.bench.api_key = ApiKeyOfEnvironment();
    std::signal(SIGINT, [](int) { interrupted = true; });
    f_.bench.stop = [] { return interrupted.load(); };
    if (isatty(STDERR_FILENO)) {
      f_.bench.progress = [](int done, int total) {
        std::fprintf(stderr, "\r%d of %d requests", done, total);
      };
    }
    auto report = RunBenchServe(f_.bench);
    if (f_.bench.progress) std::fprintf(stderr, "\r\033[K");
    if (!report.ok()) return report.status();
    std::cout << (f_.json ? report->dump(2) + "\n" : ReportText(*report));
    if (!f_.result_file.empty()) {
      if (absl::Status s = WriteFileAtomically(f_.result_file, report->dump(2)); !s.ok()) return s;
    }
    return (*report)["failed"] == 0 ? 0 : 1;
  }

 private:
  Flags f_;
};

}  // namespace

std::unique_ptr<Command> MakeBenchServe() { return std::make_unique<BenchServe>(); }

}  // namespace switchyard
