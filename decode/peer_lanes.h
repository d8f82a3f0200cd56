// decode/peer_lanes.h: by which lane each introduction brings its blocks, for spans and accounts.
// Bounded: most introductions are of processes that are long gone, and nobody says so; the one that
// was used least recently goes first. Not thread-safe.
#pragma once

#include <algorithm>
#include <cstdint>
#include <deque>
#include <string>
#include <utility>

namespace switchyard {

class PeerLanes {
 public:
  explicit PeerLanes(size_t max = 1024) : max_(max) {}

  // Again: a Hello that was repeated.
  void Add(uint64_t peer_token, const std::string& lane) {
    if (Use(peer_token)) return;
    if (lanes_.size() >= max_) lanes_.pop_front();
    lanes_.emplace_back(peer_token, lane);
  }
  // "unknown" if it is not there any more.
  std::string Find(uint64_t peer_token) {
    return Use(peer_token) ? lanes_.back().second : "unknown";
  }

 private:
  // Moves it to the end, where those are that live: they are found first.
  bool Use(uint64_t peer_token) {
    const auto found = std::find_if(lanes_.rbegin(), lanes_.rend(),
                                    [&](const auto& l) { return l.first == peer_token; });
    if (found == lanes_.rend()) return false;
    std::rotate(lanes_.rbegin(), found, std::next(found));
    return true;
  }

  const size_t max_;
  std::deque<std::pair<uint64_t, std::string>> lanes_;  // by peer_token; the last used one is last
};

}  // namespace switchyard
