// bench/stub_router.h: the router's gRPC service without a router behind it: answers at once, or
// when told. For measuring the driver alone.
#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "cluster/grpc_server.h"

namespace switchyard {

struct StubRouterOptions {
  int port = 0;  // 0: any
  // What arrives within [stall_after, stall_after + stall) of the first request is answered at the
  // end of that time: a server that stands still.
  absl::Duration stall_after = absl::InfiniteDuration(), stall = {};
  bool fail_all = false;  // with kResourceExhausted
  int tokens_extra = 0;   // beyond those that are asked for
};

class StubRouter {
 public:
  static absl::StatusOr<std::unique_ptr<StubRouter>> Create(const StubRouterOptions& options);
  virtual ~StubRouter() = default;
  virtual int port() const = 0;
};

}  // namespace switchyard
