// decode/decode_worker.h: a decode rank: receives KV, checks it, and generates the tokens that
// follow; computes a prompt itself when the router asks for that.
#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "engine/worker_options.h"

namespace switchyard {

class DecodeWorker {
 public:
  // Loads the model, starts its threads and its server. Ready when it returns.
  static absl::StatusOr<std::unique_ptr<DecodeWorker>> Create(const WorkerOptions& options);
  virtual ~DecodeWorker() = default;  // stops at once
  virtual int port() const = 0;
  virtual int metrics_port() const = 0;  // -1: none
  // Takes nothing new; returns when every running request has finished, or after `notice`.
  virtual void Drain(absl::Duration notice) = 0;
  // Set if the rank as a whole has failed: the process should exit.
  virtual absl::Status health() const = 0;
};

}  // namespace switchyard
