#include "router/stop_matcher.h"

#include <algorithm>
#include <utility>

#include "common/check.h"

namespace switchyard {
namespace {

size_t Advance(const std::string& text, const std::vector<uint16_t>& border, size_t matched,
               char c) {
  while (matched > 0 && text[matched] != c) matched = border[matched - 1];
  return text[matched] == c ? matched + 1 : 0;
}

}  // namespace

StopMatcher::StopMatcher(const std::vector<std::string>& stops, bool keep_match)
    : keep_match_(keep_match) {
  for (const std::string& stop : stops) {
    if (stop.empty()) continue;
    SY_CHECK(stop.size() <= UINT16_MAX);  // ValidateRequest lets far less through
    Pattern p{.text = stop, .border = std::vector<uint16_t>(stop.size(), 0), .matched = 0};
    for (size_t i = 1; i < stop.size(); ++i) {
      const size_t border = Advance(stop, p.border, p.border[i - 1], stop[i]);
      p.border[i] = static_cast<uint16_t>(border);
    }
    patterns_.push_back(std::move(p));
  }
}

StopMatcher::Result StopMatcher::Push(std::string_view piece, bool may_stop) {
  if (patterns_.empty()) return {.text = std::string(piece), .match = std::nullopt};
  size_t longest = held_.size();
  for (size_t i = 0; i < piece.size(); ++i) {
    longest = 0;
    const Pattern* match = nullptr;
    for (Pattern& p : patterns_) {
      p.matched = Advance(p.text, p.border, p.matched, piece[i]);
      if (p.matched == p.text.size()) {
        if (may_stop && (match == nullptr || p.text.size() > match->text.size())) match = &p;
        if (!may_stop) p.matched = p.border.back();
      }
      longest = std::max(longest, p.matched);
    }
    if (match != nullptr) {
      held_.append(piece.substr(0, i + 1));
      if (!keep_match_) held_.resize(held_.size() - match->text.size());
      return {.text = std::exchange(held_, {}), .match = match->text};
    }
  }
  held_.append(piece);
  Result result{.text = held_.substr(0, held_.size() - longest), .match = std::nullopt};
  held_.erase(0, result.text.size());
  return result;
}

std::string StopMatcher::Finish() { return std::exchange(held_, {}); }

}  // namespace switchyard
