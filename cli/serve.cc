// switchyard serve: a whole cluster on this machine.
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "cli/command.h"
#include "cli/ep_flags.h"
#include "cli/flags.h"
#include "cli/launcher.h"
#include "cli/ports.h"
#include "cli/tls_files.h"
#include "cli/trace_flags.h"
#include "common/status_macros.h"
#include "model/config.h"
#include "model/head_share.h"

namespace switchyard {
namespace {

class ServeCommand final : public Command {
 public:
  std::string name() const override { return "serve"; }
  std::string help() const override {
    return "a local cluster: router, prefill and decode processes";
  }

  void AddFlags(CLI::App& app) override {
    AddModelFlag(app, &options_.model);
    AddConfigFlag(app);
    app.add_option("--prefill", options_.prefill, "prefill groups")
        ->check(CLI::Range(0, 64))
        ->capture_default_str();
    app.add_option("--decode", options_.decode, "decode groups")
        ->check(CLI::Range(1, 64))
        ->capture_default_str();
    for (auto [name, ranks, what] :
         {std::tuple("--prefill-ep", &options_.prefill_ep, "processes of a prefill group"),
          std::tuple("--decode-ep", &options_.decode_ep, "processes of a decode group")}) {
      app.add_option(name, *ranks, absl::StrCat(what, ", which share the experts"))
          ->check(CLI::Range(1, 64))
          ->capture_default_str();
    }
    app.add_option("--prefill-tp", options_.prefill_tp,
                   "processes of a prefill group that compute attention together; divides "
                   "--prefill-ep")
        ->check(CLI::Range(1, 64))
        ->capture_default_str();
    for (auto [name, nice, what] : {std::tuple("--prefill-nice", &options_.prefill_nice,
                                               "prefill processes give way to decode processes"),
                                    std::tuple("--decode-nice", &options_.decode_nice,
                                               "decode processes give way to prefill processes")}) {
      app.add_option(name, *nice, absl::StrCat(what, ": 0 not at all, 19 always"))
          ->check(CLI::Range(0, 19))
          ->capture_default_str();
    }
    app.add_option(
           "--devices", options_.devices,
           "with --device cuda: spread the processes over so many of the machine's devices, "
           "from --device-index on")
        ->check(CLI::Range(1, 64))
        ->capture_default_str();
    AddRouterFlags(app, &front_);
    app.add_option("--metrics-port-base", options_.metrics_port_base,
                   absl::StrCat("/metrics of prefill rank n at this port + n, of decode rank n at "
                                "it + ",
                                kDecodeMetrics, " + n; 0: any free port"))
        ->check(CLI::Range(0, 65535))
        ->capture_default_str();
    app.add_option("--metrics-host", options_.metrics_host,
                   "where the ranks show their metrics, if not at 127.0.0.1");
    AddKvLaneFlag(app, &lane_);
    app.add_option("--ready-file", options_.ready_file,
                   "written when the cluster is ready: addresses and processes as JSON")
        ->check(IsWritableFile());
    app.add_option("--hang-seconds", hang_seconds_,
                   "a process that does not answer for so long is killed; 0: never")
        ->check(CLI::Range(0.0, 3600.0))
        ->capture_default_str();
    app.add_option("--drain-seconds", drain_seconds_,
                   "how long running requests may go on at the end")
        ->check(CLI::Range(0.0, 86400.0))
        ->capture_default_str();
    engine_.AddTo(app);
    ep_.AddTo(app);
    trace_.AddTo(app);
    log_.AddTo(app);
  }
  absl::Status CheckFlags() const override {
    RETURN_IF_ERROR(CheckModelGiven(options_.model));
    RETURN_IF_ERROR(ep_.CheckFor(engine_.device == "cuda"));
    if (front_.disaggregate == "always" && options_.prefill == 0) {
      return absl::InvalidArgumentError("disaggregate: always needs --prefill of at least 1");
    }
    if (options_.prefill_ep % options_.prefill_tp != 0) {
      return absl::InvalidArgumentError(absl::StrCat("prefill-tp is ", options_.prefill_tp,
                                                     "; it must divide prefill-ep, which is ",
                                                     options_.prefill_ep));
    }
    return CheckMetricsPorts();
  }

  absl::StatusOr<int> Run(const CLI::App& app) override {
    RETURN_IF_ERROR(ChoosePorts(app, &front_));
    options_.host = front_.host;
    // Its mistakes are told here, once, and not by the router, again and again.
    ASSIGN_OR_RETURN(const TlsOptions tls,
                     LoadTls(front_.ssl_certfile, front_.ssl_keyfile, front_.ssl_ca_certs));
    options_.tls = tls.enabled();
    options_.port = front_.port;
    options_.grpc_port = front_.grpc_port;
    options_.kv_lane = absl::StrJoin(KvLanes(lane_), ", else ");
    options_.hang = absl::Seconds(hang_seconds_);
    options_.drain = absl::Seconds(drain_seconds_);
    std::vector<std::string> engine = EngineFlags::Names();
    if (options_.devices > 1) std::erase(engine, "device-index");  // each process has its own
    options_.first_device = engine_.device_index;
    HandOn(app, engine, &options_.worker_arguments);
    HandOn(app, {"kv-lane", "metrics-host"}, &options_.worker_arguments);
    HandOn(app, EpFlags::Names(), &options_.group_arguments);
    options_.threads_given = engine_.threads > 0;
    RETURN_IF_ERROR(CheckPlacements());
    HandOn(app, {"max-model-len"}, &options_.router_arguments);
    HandOn(app, RouterFlagNames(), &options_.router_arguments);
    for (auto* arguments : {&options_.worker_arguments, &options_.router_arguments}) {
      HandOn(app, {"drain-seconds"}, arguments);
      HandOn(app, TraceFlags::Names(), arguments);
      HandOn(app, LogFlags::Names(), arguments);
    }
    const std::unique_ptr<Logger> log = log_.Make(name());
    options_.json_log = log_.IfJson(log);
    return Launcher(options_).Run();
  }

 private:
  absl::Status CheckMetricsPorts() const {
    if (options_.metrics_port_base == 0) return absl::OkStatus();
    const int prefill = options_.prefill * options_.prefill_ep;
    if (prefill > kDecodeMetrics) {
      return absl::InvalidArgumentError(absl::StrCat(
          "metrics-port-base has room for ", kDecodeMetrics, " prefill ranks, not for ", prefill));
    }
    const int last =
        options_.metrics_port_base + kDecodeMetrics + options_.decode * options_.decode_ep - 1;
    if (last > 65535) {
      return absl::InvalidArgumentError(
          absl::StrCat("metrics-port-base is ", options_.metrics_port_base,
                       ": the last decode rank's port would be ", last));
    }
    const int base = options_.metrics_port_base;
    for (const auto& [name, port] :
         {std::pair("port", front_.port), std::pair("grpc-port", front_.grpc_port)}) {
      const bool of_prefill = port >= base && port < base + prefill;
      const bool of_decode = port >= base + kDecodeMetrics && port <= last;
      if (!of_prefill && !of_decode) continue;
      return absl::InvalidArgumentError(absl::StrCat(name, " is ", port, ", and so is a ",
                                                     of_prefill ? "prefill" : "decode",
                                                     " rank's, by metrics-port-base ", base));
    }
    return absl::OkStatus();
  }
  // A group that cannot be is refused here, once, and not by each of its ranks in turn.
  absl::Status CheckPlacements() const {
    ASSIGN_OR_RETURN(const ModelConfig config, LoadModelConfig(options_.model));
    RETURN_IF_ERROR(CheckTensorRanks(config, options_.prefill_tp));
    for (const int ranks : {options_.prefill_ep, options_.decode_ep}) {
      EpOptions ep = ep_.Options();
      ep.peers.resize(ranks);
      if (ranks > 1) RETURN_IF_ERROR(MakePlacement(config, ep).status());
    }
    return absl::OkStatus();
  }

  // Flags that were given, as they were given.
  static void HandOn(const CLI::App& app, const std::vector<std::string>& names,
                     std::vector<std::string>* out) {
    for (const std::string& name : names) {
      const CLI::Option* option = app.get_option("--" + name);
      for (const std::string& value : option->results()) {
        out->push_back(absl::StrCat("--", name, "=", value));
      }
    }
  }

  LauncherOptions options_;
  FrontFlags front_;
  std::string lane_ = "auto";
  double hang_seconds_ = 3, drain_seconds_ = 30;
  EngineFlags engine_;
  EpFlags ep_;
  TraceFlags trace_;
  LogFlags log_;
};

}  // namespace

std::unique_ptr<Command> MakeServe() { return std::make_unique<ServeCommand>(); }

}  // namespace switchyard
