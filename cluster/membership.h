// cluster/membership.h: which workers may be used now. A pure state machine, fed by the owner of
// the streams; not thread-safe.
//
// A worker registers on each new stream and gets a WorkerId; the id ends with the stream, with
// silence for `lease`, or when its engine has work and stands still (`blocked`, `stuck`). It must
// then register anew, under a new id: everything that was in flight under the old one is gone. A
// process whose engine got stuck stays suspect until its engine moves.
//
// The first registration pins numerics, layout, vocabulary and context of the cluster for the life
// of the router, because a request may be replayed on any worker; one that differs is refused.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "cluster/worker_id.h"
#include "common/ids.h"
#include "proto/cluster.pb.h"

namespace switchyard {

struct MembershipOptions {
  absl::Duration lease = absl::Seconds(3);
  // Has work, but for so long finished no layer and used no CPU time: blocked.
  absl::Duration blocked = absl::Seconds(3);
  // Has work, but for so long finished no layer: one layer of the largest chunk takes far less on a
  // machine that could serve the model, even if others use most of it.
  absl::Duration stuck = absl::Seconds(30);
  int vocab_size = 0;     // what workers must have; 0: what the first one has
  int max_model_len = 0;  // what workers must have at least; 0: what the first one has
};

struct Member {
  WorkerId id;
  std::string address;
  cluster::v1::Registration registration;
  cluster::v1::Heartbeat heartbeat;  // all zero before the first
  absl::Time heard, stepped;         // last message; last progress of the engine
  absl::Time worked;                 // it had used CPU time, or had nothing to do
  bool suspect = false;              // its engine stood still and has not moved since

  // Blocks that a new sequence can have: free ones and those that only the cache holds.
  int kv_blocks_available() const;
};

class Membership {
 public:
  explicit Membership(MembershipOptions options);

  // `role`: what the address is configured for. kFailedPrecondition names what differs, with both
  // values; kInvalidArgument: a registration that makes no sense. An older registration of the
  // address must have been removed.
  absl::StatusOr<WorkerId> Register(const std::string& address, cluster::v1::Role role,
                                    cluster::v1::Registration registration, absl::Time now);
  // Unknown ids are ignored: late messages of a removed worker.
  void Heard(WorkerId id, absl::Time now);
  void Beat(WorkerId id, const cluster::v1::Heartbeat& heartbeat, absl::Time now);
  void Remove(WorkerId id) { members_.erase(id); }
  // Nobody will register there again.
  void Forget(const std::string& address) { stuck_.erase(address); }
  // Removes and returns the workers whose time is up, each with the reason.
  struct Expired {
    WorkerId id;
    std::string address, reason;
  };
  std::vector<Expired> Expire(absl::Time now);

  const Member* Find(WorkerId id) const;
  const std::map<WorkerId, Member>& members() const { return members_; }
  int Alive(cluster::v1::Role role) const;
  // What the first registration pinned; nothing before it.
  const std::optional<cluster::v1::Registration>& pinned() const { return pinned_; }

 private:
  absl::Status Check(const std::string& address, cluster::v1::Role role,
                     const cluster::v1::Registration& r) const;
  const MembershipOptions options_;
  uint64_t next_id_ = 1;
  std::map<WorkerId, Member> members_;
  struct Stuck {
    uint64_t incarnation;
    cluster::v1::Heartbeat last;
  };
  std::map<std::string, Stuck> stuck_;  // by address: processes that are suspect
  std::optional<cluster::v1::Registration> pinned_;
};

}  // namespace switchyard
