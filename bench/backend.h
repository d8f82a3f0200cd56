// bench/backend.h: one server under load, by gRPC or by OpenAI's HTTP.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "bench/report.h"
#include "bench/workload.h"
#include "common/clock.h"

namespace switchyard {

struct BackendOptions {
  std::string address;  // host:port
  std::string api_key;  // empty: none is sent
  // HTTP only:
  std::string endpoint = "/v1/completions";
  std::string model;    // "": the first that /v1/models names
  int connections = 4;  // gRPC: HTTP/2 connections that share the streams
  // Of every request:
  float temperature = 0;
  bool ignore_eos = true;  // so that output lengths are as drawn
  absl::Duration timeout = absl::Minutes(30);
};

struct BackendModel {
  std::string id;
  int vocab_size = 0;  // 0: the server does not say
  int tokens_max = 0;  // 0: the same
};

struct LoadRequest {
  WorkItem item;
  uint64_t seed = 0;
  absl::Time start;         // of the test
  absl::Duration intended;  // since then
  int drop_after = 0;       // tokens, then it is cancelled; 0: never
};

// A stream of more events is given up: a server that does not end would fill the driver's memory.
inline int64_t EventsMax(const WorkItem& item) { return 2 * int64_t{item.output_len} + 16; }
inline constexpr char kEndless[] = "the stream goes on far beyond the tokens that were asked for";

class LoadBackend {
 public:
  using Done = std::function<void(RequestRecord)>;
  virtual ~LoadBackend() = default;  // waits for what is under way: CancelAll first
  virtual const char* name() const = 0;
  // Waits until the server answers. kUnavailable names the address and the time waited.
  virtual absl::StatusOr<BackendModel> AwaitReady(absl::Duration limit) = 0;
  // Sends one request. `done` is called once, on a thread of the backend, and must not block.
  virtual void Start(LoadRequest request, Done done) = 0;
  // Cancels what is under way: each ends as dropped, or has ended before.
  virtual void CancelAll() = 0;
};

// `clock` must outlive the backend.
std::unique_ptr<LoadBackend> MakeGrpcBackend(const BackendOptions& options, const Clock* clock);
std::unique_ptr<LoadBackend> MakeHttpBackend(const BackendOptions& options, const Clock* clock);

}  // namespace switchyard
