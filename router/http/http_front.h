// router/http/http_front.h: the OpenAI-compatible HTTP front of the router.
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "router/router.h"

namespace switchyard {

// Serves /v1/models, /v1/completions, /v1/chat/completions, /tokenize, /detokenize, /health,
// /readyz, /metrics and /version on threads of its own. A client that hangs up aborts its requests.
// Thread-safe.
class HttpFront {
 public:
  // Listens at once. `core` must outlive the front. The chat template and the names of the special
  // tokens are read from `model_dir`; a checkpoint without them serves all but chat. A taken port
  // is kAlreadyExists, or with `next_free_port` the next free one is used; port 0: any.
  static absl::StatusOr<std::unique_ptr<HttpFront>> Create(RouterCore* core,
                                                           const std::string& model_dir,
                                                           const std::string& host, int port,
                                                           bool next_free_port);
  // Stops accepting, gives running answers one second to end, then closes: the requests of clients
  // that still wait are aborted.
  ~HttpFront();

  int port() const;
  // Connections close after their present answer. New ones are still accepted, so that /readyz can
  // tell why the router takes nothing.
  void StartDrain();

 private:
  struct Impl;
  explicit HttpFront(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace switchyard
