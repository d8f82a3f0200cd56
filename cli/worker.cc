// switchyard prefill, switchyard decode: one rank of a pool.
#include <sys/resource.h>

#include <cerrno>
#include <cstring>

#include "cli/api_key.h"
#include "cli/command.h"
#include "cli/ep_flags.h"
#include "cli/flags.h"
#include "cli/role_process.h"
#include "cli/tls_files.h"
#include "cli/trace_flags.h"
#include "cluster/grpc_server.h"
#include "common/status_macros.h"
#include "decode/decode_worker.h"
#include "prefill/prefill_worker.h"

namespace switchyard {
namespace {

// `Worker`: PrefillWorker or DecodeWorker.
template <typename Worker>
class WorkerCommand final : public Command {
 public:
  WorkerCommand(std::string name, std::string help)
      : name_(std::move(name)), help_(std::move(help)) {}
  std::string name() const override { return name_; }
  std::string help() const override { return help_; }

  void AddFlags(CLI::App& app) override {
    AddModelFlag(app, &model_);
    AddConfigFlag(app);
    app.add_option("--host", host_, "address to listen on")->capture_default_str();
    app.add_option("--port", port_, "gRPC; 0: any")
        ->check(CLI::Range(0, 65535))
        ->capture_default_str();
    app.add_option("--metrics-port", options_.metrics_port,
                   "HTTP: /metrics, /health, /readyz; 0: any; -1: none")
        ->check(CLI::Range(-1, 65535))
        ->capture_default_str();
    app.add_option("--nice", nice_,
                   "gives way to other processes of the machine: 0 not at all, 19 to all of them")
        ->check(CLI::Range(0, 19))
        ->capture_default_str();
    app.add_option("--metrics-host", options_.metrics_host, "its address, if it is not --host");
    app.add_option("--peak-gflops", peak_gflops_,
                   "what the rank's threads can do, as `bench kernels` measures it; for mfu")
        ->check(CLI::NonNegativeNumber);
    app.add_option("--peak-read-gbps", peak_read_gbps_,
                   "GB/s that they can read; for memory_bandwidth_share")
        ->check(CLI::NonNegativeNumber);
    app.add_option("--advertise-host", options_.advertise_host,
                   "where other ranks reach this one, if not at --host");
    app.add_option("--kv-net-devices", options_.kv_net_devices, "interfaces of the KV's tcp lane")
        ->capture_default_str();
    AddKvLaneFlag(app, &lane_);
    engine_.AddTo(app);
    ep_.AddTo(app);
    ep_.AddRankTo(app);
    // KV comes to a decode rank from outside, and to none of its neighbours.
    if constexpr (std::is_same_v<Worker, PrefillWorker>) ep_.AddTensorRanksTo(app);
    tls_.AddTo(app);
    trace_.AddTo(app);
    log_.AddTo(app);
    child_.AddTo(app);
  }
  absl::Status CheckFlags() const override {
    RETURN_IF_ERROR(CheckModelGiven(model_));
    RETURN_IF_ERROR(ep_.CheckFor(engine_.device == "cuda"));
    if (!ep_.ep.alone() && ep_.ep.rank >= ep_.ep.world()) {
      return absl::InvalidArgumentError(
          absl::StrCat("ep-rank is ", ep_.ep.rank, "; ep-peers names ", ep_.ep.world(), " ranks"));
    }
    if (std::max(1, ep_.ep.world()) % ep_.ep.tensor_ranks != 0) {
      return absl::InvalidArgumentError(
          absl::StrCat("tp is ", ep_.ep.tensor_ranks, "; it must divide the ",
                       std::max(1, ep_.ep.world()), " ranks that ep-peers names"));
    }
    return absl::OkStatus();
  }

  absl::StatusOr<int> Run(const CLI::App&) override {
    // Not a flag's own mistake: in pods the file has the host, and the command line the address.
    if (name_ == "decode" && IsWildcard(host_) && options_.advertise_host.empty()) {
      return absl::InvalidArgumentError(
          absl::StrCat("host ", host_,
                       " is all addresses of this machine: advertise-host is wanted, the one that "
                       "prefill ranks reach it by"));
    }
    // Before there is any other thread: those to come inherit it.
    if (nice_ > 0 && setpriority(PRIO_PROCESS, 0, nice_) != 0) {
      return absl::InternalError(absl::StrCat("nice ", nice_, ": ", std::strerror(errno)));
    }
    ASSIGN_OR_RETURN(std::unique_ptr<Starting> starting, PrepareRole(child_));
    options_.name = absl::StrCat(name_, "-", child_.rank);
    const std::unique_ptr<Logger> log = log_.Make(options_.name);
    options_.model_dir = model_;
    options_.model = engine_.Model();
    options_.model.progress = LoadProgress(options_.name, log_.IfJson(log));
    options_.engine = engine_.engine;
    options_.ep = ep_.Options();
    options_.peak = {.flops = peak_gflops_ * 1e9, .read_bytes = peak_read_gbps_ * 1e9};
    options_.listen = HostPort(host_, port_);
    options_.kv_lanes = KvLanes(lane_);
    options_.log = log.get();
    ASSIGN_OR_RETURN(options_.tls, tls_.Load());
    options_.ep.tls = options_.tls;
    ASSIGN_OR_RETURN(const std::unique_ptr<SpanExport> spans,
                     trace_.Make(name_, options_.name, &clock_, log.get()));
    options_.spans = spans.get();
    ASSIGN_OR_RETURN(const std::unique_ptr<Worker> worker, Worker::Create(options_));
    log->Info(
        "ready",
        {{"port", worker->port()}, {"metrics_port", worker->metrics_port()}, {"model", model_}});
    starting.reset();
    return RunRole(child_,
                   {.role = name_,
                    .port = worker->port(),
                    .metrics_port = std::max(0, worker->metrics_port()),
                    .drain = [&](absl::Duration notice) { worker->Drain(notice); },
                    .health = [&] { return worker->health(); }},
                   *log);
  }

 private:
  const std::string name_, help_;
  std::string model_, host_ = "127.0.0.1", lane_ = "auto";
  int port_ = 0, nice_ = 0;
  double peak_gflops_ = 0, peak_read_gbps_ = 0;
  const MonotonicClock clock_;
  WorkerOptions options_;
  EngineFlags engine_;
  EpFlags ep_;
  WorkerTlsFlags tls_;
  TraceFlags trace_;
  LogFlags log_;
  ChildFlags child_;
};

}  // namespace

std::unique_ptr<Command> MakePrefill() {
  return std::make_unique<WorkerCommand<PrefillWorker>>(
      "prefill", "one prefill rank: computes prompts and sends their KV away");
}
std::unique_ptr<Command> MakeDecode() {
  return std::make_unique<WorkerCommand<DecodeWorker>>(
      "decode", "one decode rank: takes KV in and generates");
}

}  // namespace switchyard
