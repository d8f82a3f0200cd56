// bench/stub_worker.h: a decode worker that computes nothing: in every step it emits a token of
// each of its requests. For measuring the router alone, and load drivers beside each other.
#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace switchyard {

struct StubWorkerOptions {
  int port = 0;  // 0: any
  absl::Duration step = absl::Milliseconds(2);
  absl::Duration prompt_token = {};             // what each one keeps its request waiting
  int vocab_size = 1000, max_model_len = 4096;  // those of the router's model
};

class StubWorker {
 public:
  static absl::StatusOr<std::unique_ptr<StubWorker>> Create(const StubWorkerOptions& options);
  virtual ~StubWorker() = default;
  virtual int port() const = 0;
};

}  // namespace switchyard
