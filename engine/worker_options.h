// engine/worker_options.h: what a prefill or decode process is started with.
#pragma once

#include <string>
#include <vector>

#include "common/net/tls.h"
#include "common/telemetry/log.h"
#include "common/telemetry/trace.h"
#include "engine/engine.h"
#include "engine/ep_rank.h"
#include "engine/machine_peak.h"
#include "model/model.h"

namespace switchyard {

struct WorkerOptions {
  std::string name;  // for logs: "prefill-0"
  std::string model_dir;
  ModelOptions model;
  EngineOptions engine;
  std::string listen = "127.0.0.1:0";  // gRPC: Worker, health, and Handoff on a decode rank
  int metrics_port = -1;               // HTTP: /metrics, /health, /readyz; 0: any, -1: none
  std::string metrics_host;            // where; empty: the host that it listens on
  // Where others reach this rank, if not at the host that it listens on (0.0.0.0, [::]).
  std::string advertise_host;
  std::vector<std::string> kv_lanes = {"shm", "tcp"};  // allowed lanes, best first
  std::string kv_net_devices = "lo";                   // network interfaces of the KV lanes
  EpOptions ep;                                        // alone unless it names peers
  MachinePeak peak;
  TlsOptions tls;             // between router and ranks, and between ranks: gRPC, not UCX
  Logger* log = nullptr;      // must outlive the worker
  SpanSink* spans = nullptr;  // the same; null: nothing is traced
};

}  // namespace switchyard
