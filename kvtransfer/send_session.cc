#include "kvtransfer/send_session.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/check.h"

namespace switchyard {
namespace {

std::string Name(const AttemptKey& key) { return absl::StrCat(key.request, "#", key.attempt); }

}  // namespace

SendSessions::Effects SendSessions::Step(const Event& event, absl::Time now) {
  Effects out;
  std::visit([&](const auto& e) { On(e, now, &out); }, event);
  return out;
}

SendSessions::Transfer* SendSessions::Find(const AttemptKey& key) {
  auto it = by_key_.find(key);
  return it == by_key_.end() ? nullptr : &transfers_.at(it->second);
}

// Something of it should be moving.
bool SendSessions::Busy(const Transfer& t) {
  return t.begun && (!t.chunks.empty() || t.staged > t.sent);
}

void SendSessions::On(const Prepare& e, absl::Time now, Effects* out) {
  auto refuse = [&](absl::Status why) { out->push_back(Done{e.op, std::move(why), 0}); };
  if (e.blocks_total < 0 || e.blocks_total > options_.blocks_max) {
    return refuse(absl::InvalidArgumentError(
        absl::StrCat("blocks_total is ", e.blocks_total, ", must be 0 to ", options_.blocks_max)));
  }
  if (by_key_.contains(e.key)) {
    return refuse(absl::AlreadyExistsError(absl::StrCat(Name(e.key), " is being sent")));
  }
  if (transfers() >= options_.transfers_max) {
    return refuse(absl::ResourceExhaustedError(
        absl::StrCat("transfers: ", transfers(), " of ", options_.transfers_max, " are in use")));
  }
  const uint64_t id = next_transfer_++;
  by_key_[e.key] = id;
  Transfer& t = transfers_[id];
  t.op = e.op;
  t.key = e.key;
  t.blocks_total = e.blocks_total;
  t.pushed.resize(size_t(e.blocks_total) * options_.layers);
  t.checksums.resize(t.pushed.size());
  t.progress = now;
}

void SendSessions::On(const Begin& e, absl::Time now, Effects* out) {
  Transfer* t = Find(e.key);
  if (t == nullptr) return;
  const uint64_t id = by_key_.at(e.key);
  if (t->begun) {
    if (t->peer_token == e.peer_token && t->session == e.session) return;  // a repeat
    return End(id, absl::InvalidArgumentError(absl::StrCat(Name(e.key), " began elsewhere")), out);
  }
  if (e.generations.size() != static_cast<size_t>(t->blocks_total)) {
    return End(id,
               absl::InvalidArgumentError(absl::StrCat("generations: ", e.generations.size(),
                                                       " values, must be ", t->blocks_total)),
               out);
  }
  const auto owned = std::find_if(e.generations.begin(), e.generations.end(),
                                  [](uint32_t generation) { return generation != 0; });
  if (std::find(owned, e.generations.end(), 0u) != e.generations.end()) {
    return End(id, absl::InvalidArgumentError("generations: 0 after a block that is wanted"), out);
  }
  t->begun = true;
  t->peer_token = e.peer_token;
  t->session = e.session;
  t->generations = e.generations;
  t->prefix = static_cast<int>(owned - e.generations.begin());
  DropPrefix(t);
  if (!t->chunks.empty()) Queue(id, t, now);
  FinishIfComplete(id, out);  // an empty prompt has nothing to wait for
}

// Of what was pushed, the peer wants only the blocks behind its prefix.
void SendSessions::DropPrefix(Transfer* t) {
  for (Chunk& c : t->chunks) {
    const int have = std::clamp(t->prefix - c.first, 0, static_cast<int>(c.blocks.size()));
    c.blocks.erase(c.blocks.begin(), c.blocks.begin() + have);
    c.first += have;
  }
  std::erase_if(t->chunks, [](const Chunk& c) { return c.blocks.empty(); });
}

size_t SendSessions::ToSend(const Transfer& t) const {
  return static_cast<size_t>(t.blocks_total - t.prefix) * static_cast<size_t>(options_.layers);
}

// The transfer has work again: it joins its peer's round, and its stall clock starts.
void SendSessions::Queue(uint64_t id, Transfer* t, absl::Time now) {
  ready_[t->peer_token].push_back(id);
  t->progress = now;
  next_check_ = std::min(next_check_, now + options_.stall);
}

void SendSessions::On(const Push& e, absl::Time now, Effects* out) {
  Transfer* t = Find(e.key);
  if (t == nullptr || e.blocks.empty()) return;
  const uint64_t id = by_key_.at(e.key);
  const auto total = static_cast<size_t>(t->blocks_total);
  if (e.layer < 0 || e.layer >= options_.layers || e.first_block < 0 ||
      static_cast<size_t>(e.first_block) > total || e.blocks.size() > total - e.first_block) {
    return End(id,
               absl::InvalidArgumentError(absl::StrCat(
                   Name(e.key), ": pushed layer ", e.layer, " blocks ", e.first_block, " + ",
                   e.blocks.size(), ", must lie within ", options_.layers, " x ", total)),
               out);
  }
  const size_t at = static_cast<size_t>(e.layer) * total + e.first_block;
  for (size_t i = 0; i < e.blocks.size(); ++i) {
    if (t->pushed[at + i]) {
      return End(
          id,
          absl::InvalidArgumentError(absl::StrCat(Name(e.key), ": layer ", e.layer, " block ",
                                                  e.first_block + i, " was pushed twice")),
          out);
    }
    t->pushed[at + i] = true;
  }
  const bool idle = t->chunks.empty();
  t->chunks.push_back({e.layer, e.first_block, e.blocks});
  DropPrefix(t);
  if (t->begun && idle && !t->chunks.empty()) Queue(id, t, now);
}

bool SendSessions::HasWork(uint64_t peer_token) const { return ready_.contains(peer_token); }

std::optional<SendFrame> SendSessions::NextFrame(uint64_t peer_token, size_t blocks_max) {
  SY_CHECK(blocks_max > 0);
  auto queue = ready_.find(peer_token);
  if (queue == ready_.end()) return std::nullopt;
  std::optional<SendFrame> frame;
  std::deque<uint64_t>& ids = queue->second;
  while (!ids.empty() && !frame) {
    const uint64_t id = ids.front();
    ids.pop_front();
    auto it = transfers_.find(id);
    if (it == transfers_.end()) continue;
    Transfer& t = it->second;
    frame = SendFrame{id, t.peer_token, t.session, t.chunks.front().layer, {}, {}};
    while (!t.chunks.empty() && t.chunks.front().layer == frame->layer &&
           frame->entries.size() < blocks_max) {
      Chunk& c = t.chunks.front();
      const size_t n = std::min(blocks_max - frame->entries.size(), c.blocks.size() - c.taken);
      for (size_t i = c.taken; i < c.taken + n; ++i) {
        const auto index = static_cast<uint32_t>(c.first + i);
        frame->entries.push_back({index, t.generations[index], 0});
        frame->blocks.push_back(c.blocks[i]);
      }
      c.taken += n;
      if (c.taken == c.blocks.size()) t.chunks.pop_front();
    }
    if (!t.chunks.empty()) ids.push_back(id);
  }
  if (ids.empty()) ready_.erase(queue);
  return frame;
}

void SendSessions::On(const Staged& e, absl::Time now, Effects*) {
  auto it = transfers_.find(e.frame->transfer);
  if (it == transfers_.end()) return;
  Transfer& t = it->second;
  for (const FrameEntry& entry : e.frame->entries) {
    t.checksums[size_t(e.frame->layer) * t.blocks_total + entry.index] = entry.checksum;
  }
  t.staged += e.frame->entries.size();
  t.progress = now;
  next_check_ = std::min(next_check_, now + options_.stall);
}

void SendSessions::On(const Sent& e, absl::Time now, Effects* out) {
  auto it = transfers_.find(e.transfer);
  if (it == transfers_.end()) return;
  it->second.sent += e.blocks;
  it->second.progress = now;
  SY_CHECK(it->second.sent <= it->second.staged);
  FinishIfComplete(e.transfer, out);
}

void SendSessions::FinishIfComplete(uint64_t id, Effects* out) {
  const Transfer& t = transfers_.at(id);
  if (t.sent < ToSend(t)) return;
  End(id, KvSendResult{TransferDigest(t.checksums), t.sent * options_.block_bytes, ""}, out);
}

void SendSessions::End(uint64_t id, absl::StatusOr<KvSendResult> result, Effects* out) {
  auto it = transfers_.find(id);
  SY_CHECK(it != transfers_.end());
  out->push_back(Done{it->second.op, std::move(result), it->second.peer_token});
  by_key_.erase(it->second.key);
  transfers_.erase(it);
}

void SendSessions::On(const Fail& e, absl::Time, Effects* out) {
  auto it = by_key_.find(e.key);
  if (it != by_key_.end()) End(it->second, e.why, out);
}

void SendSessions::On(const PeerGone& e, absl::Time, Effects* out) {
  std::vector<uint64_t> ids;
  for (const auto& [id, t] : transfers_) {
    if (t.begun && t.peer_token == e.peer_token) ids.push_back(id);
  }
  for (uint64_t id : ids) End(id, absl::UnavailableError(e.why), out);
  ready_.erase(e.peer_token);
}

void SendSessions::On(const Tick&, absl::Time now, Effects* out) {
  if (now < next_check_) return;
  next_check_ = absl::InfiniteFuture();
  std::vector<uint64_t> stalled;
  for (const auto& [id, t] : transfers_) {
    if (!Busy(t)) continue;
    if (t.progress + options_.stall <= now) {
      stalled.push_back(id);
    } else {
      next_check_ = std::min(next_check_, t.progress + options_.stall);
    }
  }
  for (uint64_t id : stalled) {
    const Transfer& t = transfers_.at(id);
    const std::string why =
        absl::StrCat(Name(t.key), ": no progress for ", absl::FormatDuration(options_.stall), "; ",
                     t.sent, " of ", ToSend(t), " blocks have gone");
    out->push_back(PeerStalled{t.peer_token, why});
    End(id, absl::DeadlineExceededError(why), out);
  }
}

void SendSessions::On(const Shutdown&, absl::Time, Effects* out) {
  while (!transfers_.empty()) {
    End(transfers_.begin()->first, absl::CancelledError("the sender shuts down"), out);
  }
  ready_.clear();
}

}  // namespace switchyard
