// router/grpc_front.h: switchyard.v1.Router (proto/inference.proto) over a RouterCore, with health
// v1 (SERVING while the router is ready) and reflection. No thread per stream.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "router/router.h"

namespace switchyard {

struct GrpcFrontOptions {
  std::string host = "127.0.0.1";
  int port = 50051;  // 0: any
  bool next_free_port = false;
  int receive_bytes_max = 16 << 20;
  std::vector<std::string> api_keys = {};  // if any, all but health and reflection needs one
  // What Drain and Abort need, beside which the others take these keys too; none: a client on this
  // machine.
  std::vector<std::string> admin_keys = {};
  TlsOptions tls = {};
  // Of one answer whose client does not read; then the stream is aborted, and cut if its end is not
  // read within `unread_grace`.
  size_t queued_updates_max = 4096;
  absl::Duration unread_grace = absl::Seconds(5);
  absl::Duration ended_grace = absl::Minutes(1);  // in which a client takes what is left at the end
};

// Thread-safe.
class GrpcFront {
 public:
  // Listens at once. `core` must outlive the front. kAlreadyExists names a taken port.
  static absl::StatusOr<std::unique_ptr<GrpcFront>> Create(RouterCore* core,
                                                           const GrpcFrontOptions& options);
  ~GrpcFront();  // ends all streams, which aborts their requests

  int port() const;
  int streams() const;            // Generate calls whose clients have not got all
  void SetServing(bool serving);  // what health says; NOT_SERVING at first

 private:
  struct Impl;
  explicit GrpcFront(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace switchyard
