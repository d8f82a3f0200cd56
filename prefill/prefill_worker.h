// prefill/prefill_worker.h: a prefill rank: computes prompts, samples the first token, pushes the
// KV to the decode rank that the router chose, layer by layer while later layers are computed.
#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "engine/worker_options.h"

namespace switchyard {

class PrefillWorker {
 public:
  // Loads the model, starts its threads and its server. Ready when it returns.
  static absl::StatusOr<std::unique_ptr<PrefillWorker>> Create(const WorkerOptions& options);
  virtual ~PrefillWorker() = default;  // stops at once
  virtual int port() const = 0;
  virtual int metrics_port() const = 0;  // -1: none
  // Takes nothing new; returns when everything has been handed off, or after `notice`.
  virtual void Drain(absl::Duration notice) = 0;
  // Set if the rank as a whole has failed: the process should exit.
  virtual absl::Status health() const = 0;
};

}  // namespace switchyard
