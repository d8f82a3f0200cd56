// router/stop_matcher.h: finds stop strings in text that arrives in pieces. The result does not
// depend on where the pieces were cut: the match that ends first wins, of several that end there
// the longest.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace switchyard {

class StopMatcher {
 public:
  // Empty strings match nothing; none has more than 65,535 bytes. Time per byte of text is O(number
  // of stops), whatever they hold. `keep_match`: the match is part of the text that comes before
  // the end.
  explicit StopMatcher(const std::vector<std::string>& stops, bool keep_match = false);

  struct Result {
    std::string text;                  // certain: no stop string begins in it
    std::optional<std::string> match;  // text ends before it (or with it: keep_match); nothing may
                                       // be pushed any more
  };
  // `may_stop` false: nothing stops within this piece, though a match may begin in it.
  Result Push(std::string_view piece, bool may_stop = true);
  // The text that was held back. Call when no more comes and nothing matched.
  std::string Finish();

 private:
  // Knuth, Morris, Pratt 1977.
  struct Pattern {
    std::string text;
    std::vector<uint16_t> border;  // [i]: of text[0…i], the longest proper prefix that is a suffix
    size_t matched = 0;            // the longest prefix that is a suffix of what was pushed
  };
  const bool keep_match_;
  std::vector<Pattern> patterns_;
  std::string held_;  // the longest suffix of what was pushed that may begin a match
};

}  // namespace switchyard
