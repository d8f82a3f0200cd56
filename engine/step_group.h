// engine/step_group.h: the ranks that an engine steps together with, as the engine sees them.
// Called on the engine thread, but for waits().
#pragma once

#include <cstdint>

#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace switchyard {

class StepGroup {
 public:
  virtual ~StepGroup() = default;

  // Before the first step, and whenever Step has failed with kUnavailable: meets the other ranks,
  // all of them at first, those that are left later. The step may then be run again.
  virtual absl::Status Form() = 0;
  // True if this rank has to open a step though it has no rows itself: a peer has opened one, or
  // waits to hear from it, or is lost (then Open says so). Never blocks.
  virtual bool StepWanted() = 0;
  // Opens the next step with `rows` rows of this rank, together with all others. True: some rank
  // has rows, so all compute. kUnavailable: a rank is lost, see Form.
  virtual absl::StatusOr<bool> Open(int rows) = 0;
  // Grows while this rank waits for others, in Form, in Open or within a step. Each wait has its
  // end, so that a rank is not stuck because a peer is. Thread-safe.
  virtual uint64_t waits() const = 0;
  // Sleeps until a step is wanted, wake_fd is readable or `timeout` is over.
  virtual void Sleep(int wake_fd, absl::Duration timeout) = 0;
};

}  // namespace switchyard
