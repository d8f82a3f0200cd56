// switchyard bench serve: load-tests a running server, compares two results, searches a rate.
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <csignal>
#include <cstdio>
#include <iostream>
#include <memory>
#include <string>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "bench/compare.h"
#include "bench/html.h"
#include "bench/serve.h"
#include "bench/sweep.h"
#include "cli/api_key.h"
#include "cli/command.h"
#include "cli/flags.h"
#include "common/file.h"
#include "common/status_macros.h"
#include "text/tokenizer.h"

namespace switchyard {
namespace {

constexpr size_t kDatasetBytesMax = size_t{2} << 30, kResultBytesMax = size_t{2} << 30;
constexpr char kGrpc[] = "switchyard-grpc";

// Texts of servers may be in it, which may be no UTF-8.
std::string JsonText(const nlohmann::ordered_json& json) {
  return json.dump(2, ' ', false, nlohmann::ordered_json::error_handler_t::replace);
}

// Set by SIGINT: the test ends early and reports what it has. A second one ends the process, and so
// does the first if nothing has been sent yet. A signal handler can reach nothing else.
std::atomic<bool> interrupted{false}, sending{false};
void OnInterrupt(int) {
  interrupted = true;
  std::signal(SIGINT, SIG_DFL);
  if (!sending) std::raise(SIGINT);
}

struct Flags {
  BenchServeOptions bench;
  SweepOptions sweep;
  std::string mode, backend = "switchyard-grpc", base_url, host = "127.0.0.1";
  std::string grpc = "127.0.0.1:50051";
  int port = 8000;
  std::string dataset = "random", dataset_path, tokenizer, request_rate = "inf", ramp_up;
  std::vector<std::string> goodput, compare, metrics = {"ttft", "tpot", "itl", "e2el", "sent_late"};
  std::string result_dir, result_file, html_file;
  double timeout_seconds = 1800, ready_seconds = 10;
  bool json = false, save_result = false;
};

absl::Status InFile(const std::string& path, const absl::Status& s) {
  return absl::Status(s.code(), absl::StrCat(path, ": ", s.message()));
}

absl::Status ApplyConversations(const std::string& text, Flags& f) {
  if (f.tokenizer.empty()) {
    return absl::InvalidArgumentError("--dataset-name sharegpt with a file: --tokenizer is wanted");
  }
  WorkloadOptions& w = f.bench.workload;
  ASSIGN_OR_RETURN(const std::unique_ptr<Tokenizer> tokenizer, Tokenizer::Load(f.tokenizer));
  const auto all = ParseShareGpt(text, w.prompts);
  if (!all.ok()) return InFile(f.dataset_path, all.status());
  for (const Conversation& c : *all) {
    DatasetRow row;
    ASSIGN_OR_RETURN(row.prompt_ids, tokenizer->Encode(c.prompt, true));
    ASSIGN_OR_RETURN(const std::vector<TokenId> answer, tokenizer->Encode(c.answer, false));
    row.output_len = std::max(1, static_cast<int>(answer.size()));
    if (!row.prompt_ids.empty()) w.rows.push_back(std::move(row));
  }
  return absl::OkStatus();
}

absl::Status ApplyDataset(Flags& f) {
  WorkloadOptions& w = f.bench.workload;
  f.bench.report.dataset = f.dataset;
  if (f.dataset_path.empty()) {
    if (f.dataset == "trace") {
      return absl::InvalidArgumentError("--dataset-name trace: --dataset-path is wanted");
    }
    if (f.dataset == "sharegpt") w.lengths = WorkloadOptions::Lengths::kShareGpt;
    return absl::OkStatus();
  }
  if (f.dataset == "random") {
    return absl::InvalidArgumentError("--dataset-path: for trace and sharegpt, not for random");
  }
  f.bench.report.parameters["dataset_path"] = f.dataset_path;
  ASSIGN_OR_RETURN(const std::string text, ReadFile(f.dataset_path, kDatasetBytesMax));
  w.lengths = WorkloadOptions::Lengths::kDataset;
  if (f.dataset == "sharegpt") return ApplyConversations(text, f);
  auto rows = ParseTrace(text, w.prompts);
  if (!rows.ok()) return InFile(f.dataset_path, rows.status());
  w.rows = *std::move(rows);
  w.trace_times = w.request_rate == 0 && w.ramp_up == WorkloadOptions::RampUp::kNone;
  return absl::OkStatus();
}

// host:port of the OpenAI server.
absl::StatusOr<std::string> HttpAddress(const Flags& f) {
  if (f.base_url.empty()) return absl::StrCat(f.host, ":", f.port);
  const auto bad = [&](const char* what) {
    return absl::InvalidArgumentError(absl::StrCat("--base-url is ", f.base_url, "; ", what));
  };
  std::string url = f.base_url;
  if (url.starts_with("https://")) return bad("the driver speaks HTTP in clear only");
  if (url.starts_with("http://")) url = url.substr(7);
  while (url.ends_with('/')) url.pop_back();
  if (url.find('/') != std::string::npos) return bad("a path belongs into --endpoint");
  if (!IsAddress()(url).empty()) return bad("http://HOST:PORT is wanted");
  return url;
}

absl::Status Apply(Flags& f) {
  BenchServeOptions& b = f.bench;
  double rate = 0;
  if (f.request_rate != "inf" && (!absl::SimpleAtod(f.request_rate, &rate) || !(rate > 0))) {
    return absl::InvalidArgumentError(
        absl::StrCat("--request-rate is ", f.request_rate, ", must be inf or a positive number"));
  }
  b.workload.request_rate = rate;
  if (f.ramp_up == "linear") b.workload.ramp_up = WorkloadOptions::RampUp::kLinear;
  if (f.ramp_up == "exponential") b.workload.ramp_up = WorkloadOptions::RampUp::kExponential;
  RETURN_IF_ERROR(ApplyDataset(f));
  ASSIGN_OR_RETURN(b.report.goodput, ParseGoodput(f.goodput));
  b.openai = f.backend != kGrpc;
  b.backend.address = f.grpc;
  if (b.openai) {
    ASSIGN_OR_RETURN(b.backend.address, HttpAddress(f));
  }
  b.backend.timeout = absl::Seconds(f.timeout_seconds);
  b.ready_limit = absl::Seconds(f.ready_seconds);
  return absl::OkStatus();
}

void ShowProgress(const BenchProgress& p) {
  std::fprintf(stderr,
               "\r\033[K%lld of %lld, %d open, %lld failed; %.1f requests/s, %.0f tokens/s, median "
               "TTFT %.1f ms",
               static_cast<long long>(p.ended), static_cast<long long>(p.total), p.in_flight,
               static_cast<long long>(p.failed), p.requests_per_second, p.tokens_per_second,
               p.median_ttft_ms);
}

// Takes the progress away; a file has none.
const char* ClearedLine() { return isatty(STDERR_FILENO) ? "\r\033[K" : ""; }

void ShowTrial(const nlohmann::ordered_json& trial) {
  const std::string why = trial["why"];
  std::fprintf(stderr, "%s%10.3f requests/s: %s%s\n", ClearedLine(), trial["rate"].get<double>(),
               why.empty() ? "met" : "not met: ", why.c_str());
}

class BenchServe final : public Command {
 public:
  std::string name() const override { return "bench serve"; }
  std::string help() const override { return "load-tests a running server by gRPC or OpenAI HTTP"; }

  void AddFlags(CLI::App& app) override {
    app.add_option("mode", f_.mode, "sweep: find the highest rate that keeps --goodput")
        ->check(CLI::IsMember({"sweep"}));
    AddServerFlags(app);
    AddWorkloadFlags(app);
    AddPaceFlags(app);
    AddOutputFlags(app);
    AddSweepFlags(app);
  }

  absl::StatusOr<int> Run(const CLI::App& app) override {
    if (!f_.compare.empty()) return Compare();
    for (const char* flag : {"--base-url", "--host", "--port"}) {
      if (f_.backend != kGrpc || app.count(flag) == 0) continue;
      return absl::InvalidArgumentError(absl::StrCat(
          flag, " is for --backend openai and vllm; --grpc names the server of ", f_.backend));
    }
    RETURN_IF_ERROR(Apply(f_));
    if (f_.bench.report.detailed && !f_.json && ResultPath("result.json").empty()) {
      return absl::InvalidArgumentError(
          "--save-detailed adds to a result: --save-result, --result-filename or --json is wanted");
    }
    if (std::string path = ResultPath("result.json"); !path.empty()) {
      const std::string complaint = IsWritableFile()(path);
      if (!complaint.empty()) return absl::InvalidArgumentError("--result-filename: " + complaint);
    }
    f_.bench.backend.api_key = ApiKeyOfEnvironment();
    f_.bench.warn = [this](const std::string& what) {  // once, not for each rate of a sweep
      if (!warned_.exchange(true)) {
        std::fprintf(stderr, "%s%s\n", ClearedLine(), what.c_str());
      }
    };
    std::signal(SIGINT, OnInterrupt);
    f_.bench.stop = [] {
      sending = true;  // who asks has begun
      return interrupted.load();
    };
    if (isatty(STDERR_FILENO)) f_.bench.progress = ShowProgress;
    return f_.mode == "sweep" ? Sweep() : Once();
  }

 private:
  void AddServerFlags(CLI::App& app) {
    BackendOptions& b = f_.bench.backend;
    app.footer(kApiKeyHelp);
    app.add_option("--backend", f_.backend, "switchyard-grpc; openai or vllm: any server's HTTP")
        ->check(CLI::IsMember({kGrpc, "openai", "vllm"}))
        ->capture_default_str();
    app.add_option("--grpc", f_.grpc, "The router's gRPC address")
        ->check(IsAddress())
        ->capture_default_str();
    app.add_option("--host", f_.host, "openai: the server")->capture_default_str();
    app.add_option("--port", f_.port, "openai: its port")
        ->check(CLI::Range(1, 65535))
        ->capture_default_str();
    app.add_option("--base-url", f_.base_url, "openai: http://HOST:PORT in place of these two");
    app.add_option("--endpoint", b.endpoint, "openai: path of completions")->capture_default_str();
    app.add_option("--model", b.model, "openai: if not the first that is served");
    app.add_option("--connections", b.connections, "gRPC: HTTP/2 connections")
        ->check(CLI::Range(1, 64))
        ->capture_default_str();
    app.add_option("--vocab-size", f_.bench.workload.vocab_size,
                   "Tokens to draw from; 0: the server's, or 1000 if it does not say")
        ->check(CLI::Range(0, 1 << 24));
    app.add_option("--max-model-len", f_.bench.workload.tokens_max,
                   "Longer requests are cut; 0: the server's, or 2048")
        ->check(CLI::Range(0, 1 << 24));
    app.add_option("--temperature", b.temperature, "0 is greedy")
        ->check(CLI::Range(0.0, double{kTemperatureMax}))
        ->capture_default_str();
    app.add_flag("--ignore-eos,!--no-ignore-eos", b.ignore_eos,
                 "Go on past the end of the text, so that output lengths are as drawn; on unless "
                 "told otherwise");
    app.add_option("--timeout", f_.timeout_seconds, "Seconds a request may take")
        ->check(CLI::PositiveNumber)
        ->capture_default_str();
    app.add_option("--ready-check-timeout-sec", f_.ready_seconds, "Waits so long for the server")
        ->check(CLI::NonNegativeNumber)
        ->capture_default_str();
    app.add_option("--metrics-address", f_.bench.metrics_address,
                   "HOST:PORT whose /metrics is read once a second, for queue depths")
        ->check(IsAddress());
  }
  void AddWorkloadFlags(CLI::App& app) {
    WorkloadOptions& w = f_.bench.workload;
    app.add_option("--dataset-name", f_.dataset,
                   "random; sharegpt (lengths like its, or its file); trace (Mooncake, Azure)")
        ->check(CLI::IsMember({"random", "sharegpt", "trace"}))
        ->capture_default_str();
    app.add_option("--dataset-path", f_.dataset_path, "The data set's file")
        ->check(CLI::ExistingFile);
    app.add_option("--tokenizer", f_.tokenizer, "sharegpt's file: a checkpoint's directory");
    app.add_option("--num-prompts", w.prompts, "Requests to send")->capture_default_str();
    app.add_option("--random-input-len", w.input_len, "Mean prompt tokens")->capture_default_str();
    app.add_option("--random-output-len", w.output_len, "Mean output tokens")
        ->capture_default_str();
    app.add_option("--random-range-ratio", w.range_ratio, "Lengths vary by this share, [0, 1)")
        ->capture_default_str();
    app.add_option("--random-prefix-len", w.prefix_len, "Tokens that all prompts begin with")
        ->capture_default_str();
    app.add_option("--trace-time-scale", w.time_scale, "Of its times; 0.5: twice as fast")
        ->capture_default_str();
    app.add_option("--trace-length-scale", w.length_scale, "Of its lengths, (0, 1]")
        ->capture_default_str();
    app.add_option("--seed", w.seed, "Of lengths, tokens and arrivals")->capture_default_str();
    app.add_option("--drop-share", f_.bench.drop_share, "Streams cancelled midway, [0, 1]")
        ->capture_default_str();
    app.add_option("--num-warmups", f_.bench.warmups, "Requests before the test")
        ->capture_default_str();
  }
  void AddPaceFlags(CLI::App& app) {
    WorkloadOptions& w = f_.bench.workload;
    app.add_option("--request-rate", f_.request_rate,
                   "Per second, or inf: all at once (a trace: at its own times)")
        ->capture_default_str();
    app.add_option("--burstiness", w.burstiness, "1: Poisson arrivals; below: burstier")
        ->capture_default_str();
    CLI::Option* const ramp =
        app.add_option("--ramp-up-strategy", f_.ramp_up, "The rate rises over the requests")
            ->check(CLI::IsMember({"linear", "exponential"}));
    app.add_option("--ramp-up-start-rps", w.ramp_start_rps, "First rate of the ramp")->needs(ramp);
    app.add_option("--ramp-up-end-rps", w.ramp_end_rps, "Last rate of the ramp")->needs(ramp);
    app.add_option("--max-concurrency", f_.bench.max_concurrency, "Streams at once; 0: 16384")
        ->capture_default_str();
  }
  void AddOutputFlags(CLI::App& app) {
    ReportOptions& r = f_.bench.report;
    app.add_option("--goodput", f_.goodput,
                   "What a request must keep, ms: ttft:500 tpot:50 e2el:…");
    app.add_option("--percentile-metrics", f_.metrics, "What to print: ttft,tpot,itl,e2el")
        ->delimiter(',')
        ->check(CLI::IsMember({"ttft", "tpot", "itl", "e2el", "sent_late"}))
        ->capture_default_str();
    app.add_option("--metric-percentiles", r.percentiles, "Percentiles of each")
        ->delimiter(',')
        ->capture_default_str();
    app.add_flag("--json", f_.json, "Print JSON, with the keys of `vllm bench serve`");
    app.add_flag("--save-result", f_.save_result, "Write the JSON, under a name of its own");
    app.add_flag("--save-detailed", r.detailed, "Each request's figures too");
    app.add_option("--result-dir", f_.result_dir, "Where to")->check(CLI::ExistingDirectory);
    app.add_option("--result-filename", f_.result_file, "Write the JSON to this file");
    CLI::Option* const html =
        app.add_option("--html", f_.html_file, "Write a report with plots to this file")
            ->check(IsWritableFile());
    app.add_option("--compare", f_.compare, "Compares two results, A and B; sends nothing")
        ->expected(2)
        ->check(CLI::ExistingFile)
        ->excludes(html);
  }
  void AddSweepFlags(CLI::App& app) {
    SweepOptions& s = f_.sweep;
    app.add_option("--sweep-start-rate", s.start_rate, "First rate")->capture_default_str();
    app.add_option("--sweep-max-rate", s.rate_max, "Highest rate to try")->capture_default_str();
    app.add_option("--sweep-seconds", s.seconds, "Of each rate")->capture_default_str();
    app.add_option("--sweep-resolution", s.resolution, "The answer's, as a share")
        ->capture_default_str();
    app.add_option("--sweep-attainment", s.attainment, "Share of requests that must be good")
        ->capture_default_str();
  }

  absl::StatusOr<int> Once() {
    auto report = RunBenchServe(f_.bench);
    std::fputs(ClearedLine(), stderr);
    RETURN_IF_ERROR(report.status());
    std::cout << (f_.json ? JsonText(*report) + "\n" : ReportText(*report, f_.metrics));
    RETURN_IF_ERROR(Write(*report, absl::StrCat(f_.backend, "-", f_.request_rate, "qps-",
                                                report->value("date", ""), ".json")));
    return (*report)["failed"] == 0 ? 0 : 1;
  }
  absl::StatusOr<int> Sweep() {
    f_.sweep.trial_done = ShowTrial;
    ASSIGN_OR_RETURN(const nlohmann::ordered_json result, RunSweep(f_.bench, f_.sweep));
    std::cout << (f_.json ? JsonText(result) + "\n" : SweepText(result));
    RETURN_IF_ERROR(Write(result, absl::StrCat(f_.backend, "-sweep.json")));
    return result["max_rate"] > 0 ? 0 : 1;
  }
  absl::StatusOr<int> Compare() {
    nlohmann::ordered_json of[2];
    for (int i = 0; i < 2; ++i) {
      ASSIGN_OR_RETURN(const std::string text, ReadFile(f_.compare[i], kResultBytesMax));
      of[i] = nlohmann::ordered_json::parse(text, nullptr, /*allow_exceptions=*/false);
      if (!of[i].is_object()) {
        return absl::InvalidArgumentError(absl::StrCat(f_.compare[i], ": is not a JSON object"));
      }
    }
    ASSIGN_OR_RETURN(const nlohmann::ordered_json comparison, CompareReports(of[0], of[1]));
    std::cout << (f_.json ? JsonText(comparison) + "\n" : CompareText(comparison));
    return 0;
  }

  // Where the JSON goes; "": nowhere.
  std::string ResultPath(const std::string& default_name) const {
    if (f_.result_file.empty() && !f_.save_result) return "";
    const std::string& name = f_.result_file.empty() ? default_name : f_.result_file;
    return f_.result_dir.empty() ? name : absl::StrCat(f_.result_dir, "/", name);
  }
  // A file that cannot be written does not keep the other from it.
  absl::Status Write(const nlohmann::ordered_json& result, const std::string& default_name) const {
    absl::Status status;
    if (const std::string path = ResultPath(default_name); !path.empty()) {
      status.Update(WriteFileAtomically(path, JsonText(result)));
    }
    if (!f_.html_file.empty()) {
      status.Update(WriteFileAtomically(f_.html_file, HtmlReport(result)));
    }
    return status;
  }

  Flags f_;
  std::atomic<bool> warned_{false};
};

}  // namespace

std::unique_ptr<Command> MakeBenchServe() { return std::make_unique<BenchServe>(); }

}  // namespace switchyard
