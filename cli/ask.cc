// switchyard ask: one request to a running router, by gRPC.
#include <cstdio>
#include <iostream>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "cli/api_key.h"
#include "cli/command.h"
#include "cli/flags.h"
#include "cluster/grpc_server.h"
#include "common/clock.h"
#include "common/status_macros.h"
#include "proto/inference.grpc.pb.h"

namespace switchyard {
namespace {

class AskCommand final : public Command {
 public:
  std::string name() const override { return "ask"; }
  std::string help() const override { return "sends one prompt to a running router by gRPC"; }

  void AddFlags(CLI::App& app) override {
    app.footer(kApiKeyHelp);
    app.add_option("--grpc", address_, "the router")->check(IsAddress())->capture_default_str();
    app.add_option("--timeout", timeout_seconds_, "seconds")
        ->check(CLI::Range(0.001, 86400.0))
        ->capture_default_str();
    sampling_.AddTo(app);
  }
  absl::Status CheckFlags() const override {
    if (sampling_.Given() == 1) return absl::OkStatus();
    return absl::InvalidArgumentError("one of --prompt and --prompt-ids is wanted");
  }

  absl::StatusOr<int> Run(const CLI::App& app) override {
    const auto stub = v1::Router::NewStub(DialChannel(address_));
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() +
                         absl::ToChronoMilliseconds(absl::Seconds(timeout_seconds_)));
    context.set_wait_for_ready(false);
    SendApiKey(&context);
    const MonotonicClock clock;
    const auto stream = stub->Generate(&context, Request(app));
    v1::GenerateResponse response;
    absl::Time first, last;
    int tokens = 0;
    bool answered = false;
    while (stream->Read(&response)) {
      if (!answered) std::cout << sampling_.prompt.value_or("");
      answered = true;
      last = clock.Now();
      if (tokens == 0) first = last;
      tokens += response.token_ids_size();
      std::cout << response.text() << std::flush;
      if (!sampling_.prompt.has_value() && response.text().empty()) {
        for (const int id : response.token_ids()) std::cout << id << ' ';
      }
    }
    if (answered) std::cout << std::endl;
    RETURN_IF_ERROR(Outcome(stream->Finish()));
    Report(response, tokens, last - first);
    return 0;
  }

 private:
  absl::Status Outcome(const grpc::Status& status) const {
    if (status.error_code() != grpc::StatusCode::DEADLINE_EXCEEDED) return FromGrpc(status);
    return absl::DeadlineExceededError(
        absl::StrCat("no whole answer within the --timeout of ", timeout_seconds_, " s"));
  }

  v1::GenerateRequest Request(const CLI::App& app) const {
    v1::GenerateRequest request;
    if (!sampling_.prompt_ids.empty()) {
      request.mutable_tokens()->mutable_ids()->Add(sampling_.prompt_ids.begin(),
                                                   sampling_.prompt_ids.end());
    } else {
      request.set_text(*sampling_.prompt);
    }
    request.set_max_tokens(sampling_.max_tokens);
    const SamplingParams& sampling = sampling_.sampling;
    v1::Sampling* out = request.mutable_sampling();
    out->set_temperature(sampling.temperature);
    out->set_top_k(sampling.top_k);
    out->set_top_p(sampling.top_p);
    out->set_min_p(sampling.min_p);
    out->set_presence_penalty(sampling.presence_penalty);
    out->set_frequency_penalty(sampling.frequency_penalty);
    out->set_repetition_penalty(sampling.repetition_penalty);
    if (app.count("--seed") > 0) out->set_seed(sampling.seed);
    request.set_min_tokens(sampling_.min_tokens);
    request.mutable_stop_token_ids()->Add(sampling_.stop_token_ids.begin(),
                                          sampling_.stop_token_ids.end());
    request.set_ignore_eos(sampling_.ignore_eos);
    return request;
  }

  // `response`: the last one.
  static void Report(const v1::GenerateResponse& response, int tokens, absl::Duration decoding) {
    const v1::RequestMetrics& m = response.metrics();
    const double tpot_ms = tokens > 1 ? absl::ToDoubleMilliseconds(decoding) / (tokens - 1) : 0;
    const std::string kv = m.kv_lane().empty()
                               ? "no KV moved"
                               : absl::StrCat("KV moved ", m.kv_bytes_moved(), " bytes over the ",
                                              m.kv_lane(), " lane");
    std::cerr << absl::StrFormat("\nTTFT %.1f ms, TPOT %.2f ms, %d tokens, %s\n",
                                 m.ttft_seconds() * 1e3, tpot_ms, tokens, kv);
  }

  std::string address_ = "127.0.0.1:50051";
  double timeout_seconds_ = 600;
  SamplingFlags sampling_;
};

}  // namespace

std::unique_ptr<Command> MakeAsk() { return std::make_unique<AskCommand>(); }

}  // namespace switchyard
