// prefill/handoff_channel.h: handoff.proto's calls to one decode rank, without a word about how.
// Methods never block; each answer comes on the worker's control loop, later, exactly once (never,
// after destruction). kDeadlineExceeded after `timeout`; kUnavailable if the rank is not there.
#pragma once

#include <functional>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "proto/handoff.pb.h"

namespace switchyard {

class HandoffChannel {
 public:
  template <typename Response>
  using Done = std::function<void(absl::StatusOr<Response>)>;

  virtual ~HandoffChannel() = default;
  virtual void Hello(handoff::v1::HelloRequest request, absl::Duration timeout,
                     Done<handoff::v1::HelloResponse> done) = 0;
  virtual void Reserve(handoff::v1::ReserveRequest request, absl::Duration timeout,
                       Done<handoff::v1::ReserveResponse> done) = 0;
  virtual void Commit(handoff::v1::CommitRequest request, absl::Duration timeout,
                      Done<handoff::v1::CommitResponse> done) = 0;
  virtual void Cancel(handoff::v1::CancelRequest request, absl::Duration timeout,
                      Done<handoff::v1::CancelResponse> done) = 0;
  virtual void Renew(handoff::v1::RenewRequest request, absl::Duration timeout,
                     Done<handoff::v1::RenewResponse> done) = 0;
};

}  // namespace switchyard
