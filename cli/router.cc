// switchyard router: the cluster's front: gRPC and OpenAI HTTP.
#include "router/router.h"

#include <thread>

#include "cli/api_key.h"
#include "cli/command.h"
#include "cli/flags.h"
#include "cli/ports.h"
#include "cli/role_process.h"
#include "cli/tls_files.h"
#include "cli/trace_flags.h"
#include "common/clock.h"
#include "common/status_macros.h"

namespace switchyard {
namespace {

class RouterCommand final : public Command {
 public:
  std::string name() const override { return "router"; }
  std::string help() const override { return "the cluster's front: gRPC and OpenAI HTTP"; }

  void AddFlags(CLI::App& app) override {
    AddModelFlag(app, &options_.model_dir);
    AddConfigFlag(app);
    AddRouterFlags(app, &front_);
    app.add_option("--prefill-address", options_.prefill_addresses, "a prefill rank")
        ->check(IsWorkerAddress())
        ->delimiter(',');
    app.add_option("--decode-address", options_.decode_addresses, "a decode rank")
        ->check(IsWorkerAddress())
        ->delimiter(',');
    app.add_option(
           "--metrics-port", options_.metrics_port,
           "HTTP in clear, for probes and scrapers behind mTLS: /metrics, /health, /readyz; "
           "0: any; -1: none")
        ->check(CLI::Range(-1, 65535))
        ->capture_default_str();
    AddMaxModelLenFlag(app, &options_.max_model_len);
    worker_tls_.AddTo(app);
    trace_.AddTo(app);
    log_.AddTo(app);
    child_.AddTo(app);
  }
  absl::Status CheckFlags() const override {
    RETURN_IF_ERROR(CheckModelGiven(options_.model_dir));
    if (options_.decode_addresses.empty()) {
      return absl::InvalidArgumentError("decode-address: at least one is wanted");
    }
    return absl::OkStatus();
  }

  absl::StatusOr<int> Run(const CLI::App& app) override {
    ASSIGN_OR_RETURN(std::unique_ptr<Starting> starting, PrepareRole(child_));
    const std::unique_ptr<Logger> log = log_.Make("router");
    options_.log = log.get();
    RETURN_IF_ERROR(ChoosePorts(app, &front_));
    options_.host = front_.host;
    options_.http_port = front_.port;
    options_.grpc_port = front_.grpc_port;
    options_.served_model_name = front_.served_model_name;
    ASSIGN_OR_RETURN(options_.api_keys, LoadApiKeys(front_.api_key_file));
    ASSIGN_OR_RETURN(options_.admin_keys, LoadKeyFile(front_.admin_key_file));
    options_.stream_interval = front_.stream_interval;
    options_.allowed_origins = front_.allowed_origins;
    ASSIGN_OR_RETURN(options_.tls,
                     LoadTls(front_.ssl_certfile, front_.ssl_keyfile, front_.ssl_ca_certs));
    options_.limits.queue_wait = absl::Seconds(front_.max_queue_seconds);
    WarnIfOpen(*log);
    ASSIGN_OR_RETURN(options_.worker_tls, worker_tls_.Load());
    const std::string name = absl::StrCat("router-", child_.rank);
    ASSIGN_OR_RETURN(const std::unique_ptr<SpanExport> spans,
                     trace_.Make("router", name, &clock_, log.get()));
    options_.spans = spans.get();
    options_.disaggregate = ParseDisaggregate(front_.disaggregate);
    ASSIGN_OR_RETURN(const std::unique_ptr<RouterProcess> router, RouterProcess::Create(options_));
    if (child_.ready_fd >= 0) AwaitWorkers(router->core());
    log->Info("ready", {{"http_port", router->http_port()}, {"grpc_port", router->grpc_port()}});
    starting.reset();
    return RunRole(child_,
                   {.role = "router",
                    .port = router->http_port(),
                    .grpc_port = router->grpc_port(),
                    .drain = [&](absl::Duration notice) { router->Drain(notice); },
                    .health = [] { return absl::OkStatus(); }},
                   *log);
  }

 private:
  void WarnIfOpen(Logger& log) const {
    if (IsLoopback(options_.host)) return;
    if (options_.api_keys.empty() && options_.tls.client_ca.empty()) {
      log.Warning("whoever reaches this address may use the model: there is no API key",
                  {{"host", options_.host}, {"flag", "--api-key-file"}});
    }
    if (!options_.tls.enabled()) {
      log.Warning("prompts, answers and keys can be read on their way: there is no TLS",
                  {{"host", options_.host}, {"flag", "--ssl-certfile"}});
    }
  }
  // The launcher's users want to be answered as soon as it says "ready". Its workers are up, so
  // this takes milliseconds; if one has just died, the router still answers, with a reason.
  static void AwaitWorkers(const RouterCore& core) {
    for (int i = 0; i < 1000 && !core.status().ready; ++i) {
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
  }
  static Disaggregate ParseDisaggregate(const std::string& name) {
    if (name == "always") return Disaggregate::kAlways;
    return name == "never" ? Disaggregate::kNever : Disaggregate::kAuto;
  }

  const MonotonicClock clock_;
  RouterOptions options_;
  FrontFlags front_;
  WorkerTlsFlags worker_tls_;
  TraceFlags trace_;
  LogFlags log_;
  ChildFlags child_;
};

}  // namespace

std::unique_ptr<Command> MakeRouter() { return std::make_unique<RouterCommand>(); }

}  // namespace switchyard
