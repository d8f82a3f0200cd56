// router/router.h: the router's core as its fronts (gRPC, HTTP) see it, and the process around it.
//
// One thread owns the core: admission, choice of workers, attempts, detokenizing, stop strings.
// Fronts post requests to it and get updates through a sink.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "common/ids.h"
#include "common/net/tls.h"
#include "common/telemetry/log.h"
#include "common/telemetry/trace.h"
#include "kernels/sample.h"
#include "router/prompt_ids.h"
#include "text/tokenizer.h"

namespace switchyard {

enum class Disaggregate { kAuto, kAlways, kNever };

struct RouterLimits {
  int prompt_tokens_max = 0;         // 0: max_model_len − 1
  size_t body_bytes_max = 16 << 20;  // of one HTTP request
  int stop_strings_max = 16;
  int stop_bytes_max = 1024;  // each
  int stop_token_ids_max = 256;
  int logprobs_max = 20;
  int requests_max = 4096;                      // running and waiting in the router
  absl::Duration deadline = absl::Minutes(10);  // of a request, unless it names a shorter one
  // Who would wait longer for a first token is refused; who names a deadline, if it is more than
  // half of that.
  absl::Duration queue_wait = absl::Seconds(60);
};

// A request that a front has checked for form; the core checks it against the model.
struct ClientRequest {
  std::string request_id;  // empty: the core makes one
  PromptIds prompt_ids;
  int max_tokens = 16;
  SamplingParams sampling;  // seed used only if `seed_given`
  bool seed_given = false;
  std::vector<std::string> stop;
  std::vector<TokenId> stop_token_ids;
  bool ignore_eos = false;
  int min_tokens = 0;         // no end of sequence, stop token or stop string before
  bool include_stop = false;  // what stops the answer is part of its text
  int32_t prompt_logprobs = -1;
  bool skip_special_tokens = true;
  int priority = 0;
  std::string cache_salt;             // requests with another one share no KV with this one
  std::optional<TraceContext> trace;  // the client's span
  absl::Duration deadline = absl::InfiniteDuration();  // the limits' one, if that is shorter
};

// A generated token as the client may see it: text is held back until it is certain that no stop
// string begins in it. Tokens of one update are final.
struct ClientUpdate {
  bool first = false;  // prompt_logprobs and seed are set
  std::string text;
  std::vector<SampledToken> tokens;
  std::vector<SampledToken> prompt_logprobs;
  uint64_t seed = 0;
  enum class Finish { kNone, kStop, kLength, kAbort, kError } finish = Finish::kNone;
  absl::Status error;  // if kError
  std::string stop_match;
  std::optional<TokenId> stop_token;  // the one of stop_token_ids that ended it
  // With the end:
  int prompt_tokens = 0, cached_tokens = 0, completion_tokens = 0, attempts = 0;
  absl::Duration ttft, e2e;
  uint64_t kv_bytes_moved = 0;
  std::string kv_lane, prefill_worker, decode_worker;
};

// `next` follows `update` in the same answer, and becomes part of it.
inline void Append(ClientUpdate next, ClientUpdate* update) {
  update->text += next.text;
  update->tokens.insert(update->tokens.end(), std::make_move_iterator(next.tokens.begin()),
                        std::make_move_iterator(next.tokens.end()));
  if (next.finish == ClientUpdate::Finish::kNone) return;
  next.first = update->first;
  next.seed = update->seed;
  next.prompt_logprobs = std::move(update->prompt_logprobs);
  next.text = std::move(update->text);
  next.tokens = std::move(update->tokens);
  *update = std::move(next);
}

// As vLLM names it; null: not ended.
constexpr const char* FinishName(ClientUpdate::Finish finish) {
  constexpr const char* kNames[] = {nullptr, "stop", "length", "abort", "error"};
  return kNames[static_cast<size_t>(finish)];
}

struct ModelDescription {
  std::string id, architecture, numerics_id;
  int vocab_size = 0, max_model_len = 0;
  std::vector<TokenId> eos_token_ids;
  int64_t created_unix_seconds = 0;
};

struct WorkerStatus {
  std::string address, role;
  bool alive = false;
  int running = 0, waiting = 0, kv_blocks_free = 0, kv_blocks_total = 0;
  int kv_blocks_cached = 0;  // of the free ones: they hold the beginnings of prompts
  int kv_blocks_leased = 0, kv_blocks_quarantined = 0;
  uint64_t steps = 0;
};

struct RouterStatus {
  bool ready = false;  // can take a request: enough workers for the mode, not draining
  std::string not_ready_because;
  int running = 0, waiting = 0;
  std::vector<WorkerStatus> workers;
};

// One request that has not ended.
struct RequestStatus {
  std::string id, trace_id;  // trace_id: "" unless it is traced
  bool running = false;      // has workers; else it waits for them
  absl::Duration age;
  int attempt = 0, prompt_tokens = 0, tokens = 0, max_tokens = 0, priority = 0;
  std::string prefill_worker, decode_worker;
};

// Thread-safe.
class RouterCore {
 public:
  virtual ~RouterCore() = default;
  // Called on the core's thread, in order, until an update with a finish; must not block.
  using Sink = std::function<void(ClientUpdate)>;

  // Whether Submit would refuse any request of that priority and deadline now, whatever its prompt
  // is: before anybody tokenizes it. Errors as Submit's.
  virtual absl::Status CheckAdmission(int /*priority*/, absl::Duration /*deadline*/) const {
    return absl::OkStatus();
  }
  // Takes the request or says at once why not: kInvalidArgument, kResourceExhausted (RetryAfter of
  // cluster/convert.h tells when it has a chance), kUnavailable (no worker, draining),
  // kAlreadyExists (request_id in use). Returns the request id.
  virtual absl::StatusOr<std::string> Submit(ClientRequest request, Sink sink) = 0;
  // Ends a request: a last update (kAbort) follows if it was running. False if unknown. Its KV is
  // freed on every worker.
  virtual bool Abort(const std::string& request_id) = 0;
  virtual const ModelDescription& model() const = 0;
  virtual const Tokenizer* tokenizer() const = 0;  // null: the checkpoint has none
  virtual const RouterLimits& limits() const = 0;
  virtual RouterStatus status() const = 0;
  // Calls `done` with all requests that have not ended, oldest first: soon, on the core's thread.
  virtual void ListRequests(std::function<void(std::vector<RequestStatus>)> done) = 0;
  virtual void StartDrain() = 0;
  // The text of /metrics (Prometheus exposition format).
  virtual std::string MetricsText() const = 0;
};

struct RouterOptions {
  std::string model_dir;          // tokenizer and config; weights are not read
  std::string served_model_name;  // empty: the last part of model_dir
  int max_model_len = 0;          // 0: the model's own
  std::string host = "127.0.0.1";
  int http_port = 8000, grpc_port = 50051;
  int metrics_port = -1;        // /metrics, /health, /readyz, always in clear; 0: any, -1: none
  bool next_free_port = false;  // a taken port moves to the next free one
  std::vector<std::string> prefill_addresses, decode_addresses;  // host:port or dns:name:port
  Disaggregate disaggregate = Disaggregate::kAuto;
  std::vector<std::string> api_keys;         // any of them is wanted from clients; none: no key is
  std::vector<std::string> admin_keys;       // as GrpcFrontOptions
  int stream_interval = 1;                   // as CoreOptions
  std::vector<std::string> allowed_origins;  // of web pages that may use the HTTP front (CORS)
  TlsOptions tls;                            // of both fronts
  TlsOptions worker_tls;                     // of the streams to workers
  RouterLimits limits;
  Logger* log = nullptr;      // must outlive the process; null: its own, text to stderr
  SpanSink* spans = nullptr;  // the same; null: nothing is traced
};

class RouterProcess {
 public:
  // Listens, then dials the workers (and keeps dialling those that are away). Errors: a taken port,
  // a bad model directory.
  static absl::StatusOr<std::unique_ptr<RouterProcess>> Create(const RouterOptions& options);
  virtual ~RouterProcess() = default;
  virtual int http_port() const = 0;
  virtual int grpc_port() const = 0;
  virtual RouterCore& core() = 0;
  // Takes nothing new; returns when all requests have ended, or after `notice` (then aborts them).
  virtual void Drain(absl::Duration notice) = 0;
};

}  // namespace switchyard
