// cluster/open_attempts.h: the attempts of one router–worker stream that have not ended, as the
// worker's end counts them. Not thread-safe.
#pragma once

#include <cstddef>
#include <set>

#include "cluster/convert.h"
#include "common/ids.h"
#include "proto/cluster.pb.h"

namespace switchyard {

class OpenAttempts {
 public:
  explicit OpenAttempts(size_t max) : max_(max) {}

  enum class Opened { kNew, kRepeat, kTooMany };
  Opened Open(const AttemptKey& key) {
    if (open_.contains(key)) return Opened::kRepeat;
    if (open_.size() >= max_) return Opened::kTooMany;
    open_.insert(key);
    return Opened::kNew;
  }
  // The router has aborted it.
  void Forget(const AttemptKey& key) { open_.erase(key); }
  // What goes up the stream; an event with a finish, or handed_off, is the attempt's last.
  void OnEvent(const cluster::v1::AttemptEvent& event) {
    if (event.finish() != cluster::v1::FINISH_NONE || event.handed_off()) {
      open_.erase(FromProto(event.id()));
    }
  }
  // When the stream is over, these are to be aborted.
  const std::set<AttemptKey>& open() const { return open_; }

 private:
  const size_t max_;
  std::set<AttemptKey> open_;
};

}  // namespace switchyard
