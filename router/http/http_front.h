// router/http/http_front.h: the OpenAI-compatible HTTP front of the router.
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "router/api_keys.h"
#include "router/router.h"

namespace switchyard {

struct HttpFrontOptions {
  std::string model_dir =
      "";  // chat template and special tokens' names; without them, all but chat
  std::string host = "127.0.0.1";
  int port = 0;                              // 0: any
  bool next_free_port = false;               // a taken port moves to the next free one
  std::vector<std::string> api_keys = {};    // if any, all but health, metrics and version need one
  std::vector<std::string> admin_keys = {};  // if any, /debug/requests needs one
  std::vector<std::string> allowed_origins = {};  // CORS: HttpServerOptions
  TlsOptions tls = {};
  // Also /health, /readyz, /version and /metrics, in clear, for probes; 0: any, -1: none.
  int metrics_port = -1;
};

// Serves /v1/models, /v1/completions, /v1/chat/completions, /tokenize, /detokenize,
// /debug/requests, /health, /readyz, /metrics and /version on threads of its own. A client that
// hangs up aborts its requests. Thread-safe.
class HttpFront {
 public:
  // Listens at once. `core` must outlive the front. A taken port is kAlreadyExists.
  static absl::StatusOr<std::unique_ptr<HttpFront>> Create(RouterCore* core,
                                                           const HttpFrontOptions& options);
  // Stops accepting, gives running answers one second to end, then closes: the requests of clients
  // that still wait are aborted.
  ~HttpFront();

  int port() const;
  // Connections close after their present answer. New ones are still accepted, so that /readyz can
  // tell why the router takes nothing.
  void StartDrain();
  int answers() const;  // that clients still wait for

 private:
  struct Impl;
  explicit HttpFront(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace switchyard
