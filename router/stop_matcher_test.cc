#include "router/stop_matcher.h"

#include <gtest/gtest.h>

#include <random>

namespace switchyard {
namespace {

TEST(StopMatcherTest, HoldsBackOnlyWhatMayBeginAStop) {
  StopMatcher m({"END"});
  EXPECT_EQ(m.Push("the EN").text, "the ");
  EXPECT_EQ(m.Push("T").text, "ENT");
  EXPECT_EQ(m.Push(" E").text, " ");
  EXPECT_EQ(m.Finish(), "E");
}

TEST(StopMatcherTest, MatchesAcrossPiecesAndDropsTheRest) {
  StopMatcher m({"\n\n"});
  EXPECT_EQ(m.Push("a\n").text, "a");
  StopMatcher::Result r = m.Push("\nb");
  EXPECT_EQ(r.text, "");
  EXPECT_EQ(r.match, "\n\n");
}

TEST(StopMatcherTest, OverlappingPrefixIsNotLost) {
  StopMatcher m({"aab"});
  EXPECT_EQ(m.Push("aaa").text, "a");
  StopMatcher::Result r = m.Push("b");
  EXPECT_EQ(r.text, "");
  EXPECT_TRUE(r.match.has_value());
}

TEST(StopMatcherTest, NoStopsPassesThrough) {
  StopMatcher m({});
  EXPECT_EQ(m.Push("abc").text, "abc");
  EXPECT_EQ(StopMatcher({""}).Push("abc").text, "abc");
}

TEST(StopMatcherTest, TheMatchMayBeKept) {
  StopMatcher m({"END"}, /*keep_match=*/true);
  EXPECT_EQ(m.Push("the E").text, "the ");
  const StopMatcher::Result r = m.Push("ND is");
  EXPECT_EQ(r.text, "END");
  EXPECT_EQ(r.match, "END");
}

TEST(StopMatcherTest, NothingStopsWhileItMayNot) {
  StopMatcher m({"aba"});
  EXPECT_EQ(m.Push("xaba", /*may_stop=*/false).match, std::nullopt);
  // What was passed over may still be the beginning of a match.
  const StopMatcher::Result r = m.Push("ba");
  EXPECT_EQ(r.match, "aba");
  EXPECT_EQ(r.text, "");
}

// The obvious way: after each byte, does a stop end here?
StopMatcher::Result Slow(const std::vector<std::string>& stops, const std::string& text) {
  for (size_t end = 1; end <= text.size(); ++end) {
    std::string best;
    for (const std::string& s : stops) {
      if (s.size() <= end && text.compare(end - s.size(), s.size(), s) == 0 &&
          s.size() > best.size()) {
        best = s;
      }
    }
    if (!best.empty()) return {text.substr(0, end - best.size()), best};
  }
  return {text, std::nullopt};
}

TEST(StopMatcherTest, AgreesWithTheObviousWayWhereverThePiecesAreCut) {
  for (uint64_t seed = 0; seed < 5000; ++seed) {
    std::mt19937_64 rng(seed);
    auto word = [&](int max) {
      std::string s(1 + rng() % max, 'a');
      for (char& c : s) c = static_cast<char>('a' + rng() % 2);
      return s;
    };
    std::vector<std::string> stops(1 + rng() % 3);
    for (std::string& s : stops) s = word(6);
    const std::string text = word(40);
    const StopMatcher::Result want = Slow(stops, text);
    StopMatcher m(stops);
    std::string got;
    std::optional<std::string> match;
    for (size_t i = 0; i < text.size() && !match;) {
      const size_t n = std::min<size_t>(1 + rng() % 5, text.size() - i);
      StopMatcher::Result r = m.Push(text.substr(i, n));
      got += r.text;
      match = r.match;
      i += n;
    }
    if (!match) got += m.Finish();
    ASSERT_EQ(got, want.text) << "seed " << seed;
    ASSERT_EQ(match, want.match) << "seed " << seed;
  }
}

}  // namespace
}  // namespace switchyard
