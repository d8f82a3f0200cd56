// engine/step_group.h: the ranks that an engine steps together with, as the engine sees them.
// Called on the engine thread, but for waits().
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

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
  // has rows, so all compute. kUnavailable: a rank is lost, see Form. batch_words: what ShareBatch
  // will send.
  virtual absl::StatusOr<bool> Open(int rows, size_t batch_words) = 0;

  // Tensor parallelism: tensor_ranks() neighbours compute the attention of one batch together. The
  // first of them, rank 0, has the requests and says what is computed.
  virtual int tensor_rank() const = 0;
  virtual int tensor_ranks() const = 0;
  // 0 while one of them is missing: nothing can be computed. Another number whenever one of them
  // may have lost the KV that it had. Thread-safe.
  virtual uint64_t tensor_epoch() const = 0;
  // After Open has said true, on all of them: rank 0's words, as many as it told Open, are the
  // others' as well; none if it has no rows. kInvalidArgument: more than words_max. kUnavailable: a
  // rank is lost.
  virtual absl::Status ShareBatch(std::vector<int32_t>* words, size_t words_max) = 0;

  // Grows while this rank waits for others, in Form, in Open or within a step. Each wait has its
  // end, so that a rank is not stuck because a peer is. Thread-safe.
  virtual uint64_t waits() const = 0;
  // Sleeps until a step is wanted, wake_fd is readable or `timeout` is over.
  virtual void Sleep(int wake_fd, absl::Duration timeout) = 0;
};

}  // namespace switchyard
