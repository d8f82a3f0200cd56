#include "kvtransfer/receive_session.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "kvtransfer/wire.h"

namespace switchyard {
namespace {

std::string Name(const AttemptKey& key) { return absl::StrCat(key.request, "#", key.attempt); }

}  // namespace

ReceiveSessions::Effects ReceiveSessions::Step(const Event& event, absl::Time now) {
  Effects out;
  std::visit([&](const auto& e) { On(e, now, &out); }, event);
  return out;
}

size_t ReceiveSessions::At(const Session& s, uint32_t layer, uint32_t index) const {
  return size_t{layer} * s.target.blocks.size() + index;
}

ReceiveSessions::Session* ReceiveSessions::Find(uint64_t peer_token, uint64_t session) {
  auto it = sessions_.find(session);
  // Another peer's session is as unknown as none.
  return it == sessions_.end() || it->second.peer_token != peer_token ? nullptr : &it->second;
}

const absl::Status* ReceiveSessions::EndOf(uint64_t peer_token, uint64_t session) const {
  const auto it = ended_.find(session);
  if (it == ended_.end()) return nullptr;
  const Tombstone& t = tombstones_.at(it->second);
  return t.peer_token == peer_token ? &t.why : nullptr;
}

std::optional<BlockId> ReceiveSessions::Expects(uint64_t peer_token, uint64_t session,
                                                uint32_t layer, uint32_t index,
                                                uint32_t generation) const {
  const Session* s = const_cast<ReceiveSessions*>(this)->Find(peer_token, session);
  if (s == nullptr || layer >= static_cast<uint32_t>(options_.layers) ||
      index >= s->target.blocks.size() || s->target.generations[index] != generation ||
      s->arrived[At(*s, layer, index)]) {
    return std::nullopt;
  }
  return s->target.blocks[index];
}

bool ReceiveSessions::HasSessionOf(uint64_t peer_token) const {
  return std::any_of(sessions_.begin(), sessions_.end(),
                     [&](const auto& s) { return s.second.peer_token == peer_token; });
}

void ReceiveSessions::On(const Open& e, absl::Time now, Effects* out) {
  const KvTarget& t = e.target;
  auto refuse = [&](absl::Status why) { out->push_back(Opened{e.op, std::move(why)}); };
  if (t.blocks.size() != t.generations.size()) {
    return refuse(absl::InvalidArgumentError(
        absl::StrCat("generations: ", t.generations.size(), " values, must be ", t.blocks.size())));
  }
  if (auto it = tombstones_.find(t.key); it != tombstones_.end() && it->second.expires > now) {
    return refuse(absl::AbortedError(
        absl::StrCat(Name(t.key), " is over: ", std::string(it->second.why.message()))));
  }
  if (by_key_.contains(t.key)) {
    return refuse(absl::AlreadyExistsError(absl::StrCat(Name(t.key), " has a session")));
  }
  if (sessions() >= options_.sessions_max) {
    return refuse(absl::ResourceExhaustedError(
        absl::StrCat("sessions: ", sessions(), " of ", options_.sessions_max, " are in use")));
  }
  const uint64_t id = next_session_++;
  Session& s = sessions_[id];
  s.peer_token = e.peer_token;
  s.target = t;
  s.checksums.resize(t.blocks.size() * static_cast<size_t>(options_.layers));
  for (int layer = 0; layer < options_.layers; ++layer) {
    for (const uint32_t generation : t.generations) s.arrived.push_back(generation == 0);
  }
  s.missing = static_cast<size_t>(std::count(s.arrived.begin(), s.arrived.end(), false));
  s.expires = now + options_.lease;
  CheckBy(s.expires);
  by_key_[t.key] = id;
  out->push_back(Opened{e.op, id});
}

void ReceiveSessions::On(const Block& e, absl::Time now, Effects* out) {
  if (!Expects(e.peer_token, e.session, e.layer, e.index, e.generation)) return;
  Session& s = *Find(e.peer_token, e.session);
  if (e.actual != e.declared) {
    return Drop(e.session,
                absl::DataLossError(absl::StrCat(Name(s.target.key), ": layer ", e.layer, " block ",
                                                 e.index, ": checksum does not match its bytes")),
                now, out);
  }
  const size_t at = At(s, e.layer, e.index);
  s.checksums[at] = e.actual;
  s.arrived[at] = true;
  --s.missing;
  // Progress proves life as a renewal does. It does not move the deadline of a commit.
  s.expires = std::max(s.expires, now + options_.lease);
  if (s.commit) s.expires = std::min(s.expires, s.commit->deadline);
  if (s.missing == 0 && s.commit) Finish(e.session, now, out);
}

void ReceiveSessions::On(const Commit& e, absl::Time now, Effects* out) {
  Session* s = Find(e.peer_token, e.session);
  if (s == nullptr) {
    const absl::Status* end = EndOf(e.peer_token, e.session);
    out->push_back(CommitDone{e.op, end != nullptr ? *end
                                                   : absl::NotFoundError(absl::StrCat(
                                                         "session ", e.session, " is not known"))});
    return;
  }
  if (s->commit) {
    out->push_back(CommitDone{
        e.op, absl::AlreadyExistsError(absl::StrCat("session ", e.session, " is committing"))});
    return;
  }
  const absl::Duration wait = std::clamp(e.wait, absl::ZeroDuration(), options_.commit_wait_max);
  s->commit = PendingCommit{e.op, e.digest, now + wait};
  if (s->missing == 0) return Finish(e.session, now, out);
  s->expires = std::min(s->commit->deadline, now + options_.lease);
  CheckBy(s->expires);
}

void ReceiveSessions::Finish(uint64_t id, absl::Time now, Effects* out) {
  Session& s = sessions_.at(id);
  SY_CHECK(s.missing == 0 && s.commit);
  if (TransferDigest(s.checksums) != s.commit->digest) {
    return Drop(id, absl::DataLossError(absl::StrCat(Name(s.target.key), ": digest is wrong")), now,
                out);
  }
  out->push_back(CommitDone{s.commit->op, s.target});
  const AttemptKey key = s.target.key;
  Tombstone tombstone{id, s.peer_token, absl::AlreadyExistsError("committed"),
                      now + options_.tombstone};
  by_key_.erase(key);
  sessions_.erase(id);
  Bury(key, std::move(tombstone));
}

void ReceiveSessions::Drop(uint64_t id, const absl::Status& why, absl::Time now, Effects* out) {
  auto it = sessions_.find(id);
  SY_CHECK(it != sessions_.end());
  Session s = std::move(it->second);
  sessions_.erase(it);
  by_key_.erase(s.target.key);
  const AttemptKey key = s.target.key;
  out->push_back(Dropped{std::move(s.target), why});
  if (s.commit) out->push_back(CommitDone{s.commit->op, why});
  Bury(key, {id, s.peer_token, why, now + options_.tombstone});
}

void ReceiveSessions::Bury(const AttemptKey& key, Tombstone tombstone) {
  auto [it, fresh] = tombstones_.try_emplace(key, tombstone);
  if (!fresh) {
    ended_.erase(it->second.session);
    it->second = tombstone;
  } else {
    burials_.push_back(key);
  }
  if (tombstone.session != 0) ended_[tombstone.session] = key;
  CheckBy(tombstone.expires);
  while (tombstones() > options_.tombstones_max) {
    auto oldest = tombstones_.find(burials_.front());
    ended_.erase(oldest->second.session);
    tombstones_.erase(oldest);
    burials_.pop_front();
  }
}

void ReceiveSessions::On(const Cancel& e, absl::Time now, Effects* out) {
  const absl::Status why = absl::AbortedError(absl::StrCat(Name(e.key), " was cancelled"));
  if (auto it = by_key_.find(e.key); it != by_key_.end()) return Drop(it->second, why, now, out);
  // A repeat, or a cancel after the end, leaves the first tombstone's reason.
  auto it = tombstones_.find(e.key);
  if (it == tombstones_.end() || it->second.expires <= now) {
    Bury(e.key, {0, 0, why, now + options_.tombstone});
  }
}

void ReceiveSessions::On(const Renew& e, absl::Time now, Effects* out) {
  Renewed answer{e.op, {}};
  for (uint64_t id : e.sessions) {
    if (Session* s = Find(e.peer_token, id)) {
      if (!s->commit) s->expires = std::max(s->expires, now + options_.lease);
      continue;
    }
    // The peer goes on renewing until it hears of its commit: that one may have to wait for a step
    // of the engine, or for the router.
    const absl::Status* end = EndOf(e.peer_token, id);
    const bool committed = end != nullptr && absl::IsAlreadyExists(*end);
    if (!committed) answer.lost.push_back(id);
  }
  out->push_back(std::move(answer));
}

void ReceiveSessions::On(const Tick&, absl::Time now, Effects* out) {
  if (now < next_check_) return;
  std::vector<uint64_t> over;
  for (const auto& [id, s] : sessions_) {
    if (s.expires <= now) over.push_back(id);
  }
  for (uint64_t id : over) {
    const Session& s = sessions_.at(id);
    const std::string what = absl::StrCat(Name(s.target.key), ": ", s.missing, " of ",
                                          s.checksums.size(), " blocks are missing");
    Drop(id,
         s.commit ? absl::DeadlineExceededError(what)
                  : absl::AbortedError(absl::StrCat("the lease ran out; ", what)),
         now, out);
  }
  // Tombstones all live equally long, and one that was replaced lives longer: order by burial is
  // order by expiry, but for those, which only delay the ones behind them.
  while (!burials_.empty()) {
    auto oldest = tombstones_.find(burials_.front());
    if (oldest->second.expires > now) break;
    ended_.erase(oldest->second.session);
    tombstones_.erase(oldest);
    burials_.pop_front();
  }
  next_check_ = absl::InfiniteFuture();
  for (const auto& [id, s] : sessions_) CheckBy(s.expires);
  if (!burials_.empty()) CheckBy(tombstones_.at(burials_.front()).expires);
}

void ReceiveSessions::On(const Shutdown&, absl::Time now, Effects* out) {
  while (!sessions_.empty()) {
    Drop(sessions_.begin()->first, absl::AbortedError("the receiver shuts down"), now, out);
  }
}

}  // namespace switchyard
