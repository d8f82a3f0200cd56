#include "cluster/membership.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "cluster/convert.h"

namespace switchyard {
namespace {

namespace pb = cluster::v1;

template <typename T>
absl::Status Differs(const std::string& address, const char* field, const T& theirs,
                     const T& ours) {
  return absl::FailedPreconditionError(absl::StrCat("worker ", address, " refused: ", field, " is ",
                                                    theirs, ", the cluster's is ", ours));
}

absl::Status CheckPositive(const std::string& address, const char* field, int value) {
  if (value > 0) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("worker ", address, " refused: ", field, " is ", value, ", at least 1 wanted"));
}

bool Moved(const pb::Heartbeat& before, const pb::Heartbeat& now) {
  return before.steps() != now.steps() || before.progress() != now.progress();
}

}  // namespace

int Member::kv_blocks_available() const {
  const int64_t held = int64_t{heartbeat.kv_blocks_owned()} + heartbeat.kv_blocks_leased() +
                       heartbeat.kv_blocks_quarantined();
  const int64_t total = registration.kv_blocks_total();
  return static_cast<int>(std::clamp<int64_t>(total - held, 0, total));
}

Membership::Membership(MembershipOptions options) : options_(options) {}

absl::Status Membership::Check(const std::string& address, pb::Role role,
                               const pb::Registration& r) const {
  if (r.wire_version() != kClusterWireVersion) {
    return Differs(address, "wire_version", r.wire_version(), kClusterWireVersion);
  }
  if (r.role() != role) {
    return Differs(address, "role", pb::Role_Name(r.role()), pb::Role_Name(role));
  }
  const std::pair<const char*, int> positive[] = {{"max_model_len", r.max_model_len()},
                                                  {"block_tokens", r.block_tokens()},
                                                  {"kv_blocks_total", r.kv_blocks_total()},
                                                  {"vocab_size", r.vocab_size()}};
  for (const auto& [field, value] : positive) {
    if (absl::Status s = CheckPositive(address, field, value); !s.ok()) return s;
  }
  const int vocab = pinned_ ? pinned_->vocab_size() : options_.vocab_size;
  if (vocab != 0 && r.vocab_size() != vocab) {
    return Differs(address, "vocab_size", r.vocab_size(), vocab);
  }
  const int length = pinned_ ? pinned_->max_model_len() : options_.max_model_len;
  if (length != 0 && r.max_model_len() < length) {
    return Differs(address, "max_model_len", r.max_model_len(), length);
  }
  if (!pinned_) return absl::OkStatus();
  if (r.numerics_id() != pinned_->numerics_id()) {
    return Differs(address, "numerics_id", r.numerics_id(), pinned_->numerics_id());
  }
  if (r.layout_id() != pinned_->layout_id()) {
    return Differs(address, "layout_id", r.layout_id(), pinned_->layout_id());
  }
  return absl::OkStatus();
}

absl::StatusOr<WorkerId> Membership::Register(const std::string& address, pb::Role role,
                                              pb::Registration registration, absl::Time now) {
  if (absl::Status s = Check(address, role, registration); !s.ok()) return s;
  if (!pinned_) {
    pinned_ = registration;
    if (options_.max_model_len != 0) pinned_->set_max_model_len(options_.max_model_len);
  }
  const WorkerId id(next_id_++);
  const auto stuck = stuck_.find(address);
  const bool suspect =
      stuck != stuck_.end() && stuck->second.incarnation == registration.incarnation();
  if (stuck != stuck_.end() && !suspect) stuck_.erase(stuck);
  members_[id] = Member{.id = id,
                        .address = address,
                        .registration = std::move(registration),
                        .heartbeat = {},
                        .heard = now,
                        .stepped = now,
                        .worked = now,
                        .suspect = suspect};
  return id;
}

void Membership::Heard(WorkerId id, absl::Time now) {
  if (auto it = members_.find(id); it != members_.end()) it->second.heard = now;
}

void Membership::Beat(WorkerId id, const pb::Heartbeat& heartbeat, absl::Time now) {
  auto it = members_.find(id);
  if (it == members_.end()) return;
  Member& member = it->second;
  member.heard = now;
  if (!heartbeat.busy() || Moved(member.heartbeat, heartbeat)) {
    member.stepped = member.worked = now;
  } else if (heartbeat.engine_cpu_ms() != member.heartbeat.engine_cpu_ms()) {
    member.worked = now;
  }
  if (member.suspect) {
    const auto stuck = stuck_.find(member.address);
    const bool forgotten = stuck == stuck_.end();
    if (forgotten || !heartbeat.busy() || Moved(stuck->second.last, heartbeat)) {
      member.suspect = false;
      if (!forgotten) stuck_.erase(stuck);
    }
  }
  member.heartbeat = heartbeat;
}

std::vector<Membership::Expired> Membership::Expire(absl::Time now) {
  std::vector<Expired> out;
  for (auto it = members_.begin(); it != members_.end();) {
    const Member& m = it->second;
    std::string reason;
    if (now - m.heard > options_.lease) {
      reason = absl::StrCat("silent for ", absl::FormatDuration(now - m.heard));
    } else if (now - m.worked > options_.blocked || now - m.stepped > options_.stuck) {
      reason = absl::StrCat("busy without progress for ", absl::FormatDuration(now - m.stepped));
      stuck_[m.address] = {m.registration.incarnation(), m.heartbeat};
    }
    if (reason.empty()) {
      ++it;
      continue;
    }
    out.push_back({m.id, m.address, reason});
    it = members_.erase(it);
  }
  return out;
}

const Member* Membership::Find(WorkerId id) const {
  auto it = members_.find(id);
  return it == members_.end() ? nullptr : &it->second;
}

int Membership::Alive(pb::Role role) const {
  return static_cast<int>(std::count_if(members_.begin(), members_.end(), [&](const auto& m) {
    return m.second.registration.role() == role;
  }));
}

}  // namespace switchyard
