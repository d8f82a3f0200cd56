// BpeModel's half that encodes.
#include <algorithm>
#include <functional>
#include <utility>

#include "absl/hash/hash.h"
#include "text/bpe.h"
#include "text/utf8.h"

namespace switchyard {
namespace {

constexpr size_t kPlaces = 4096;   // of known words
constexpr int32_t kShort = 24;     // symbols that are merged without a heap
constexpr int32_t kWindow = 256;   // symbols that are merged at once
constexpr size_t kLookAhead = 12;  // tokens of a window that the next one makes anew

}  // namespace

// Characters without a token of their own may stand there as bytes: those are left together.
bool BpeModel::MayJoin(TokenId left, TokenId right) const {
  return left < 0 || right < 0 || joined_.contains({left, right});
}

// What merges cannot join is encoded part by part, so that a text without spaces costs no more than
// one with them.
void BpeModel::Encode(std::string_view word, Scratch* scratch, std::vector<TokenId>* ids) const {
  if (word.size() <= Scratch::Known::kBytesMax) return EncodeKnown(word, scratch, ids);
  if (ignore_merges_) {
    if (const std::optional<TokenId> whole = Find(word)) return ids->push_back(*whole);
  }
  TokenId previous = -1;
  size_t begin = 0;
  for (size_t i = 0, next; i < word.size(); i = next) {
    next = i + FirstCodePoint(word.substr(i)).length;
    const TokenId token = TokenOf(word.substr(i, next - i));
    if (MayJoin(std::exchange(previous, token), token)) continue;
    EncodePart(word.substr(begin, i - begin), scratch, ids);
    begin = i;
  }
  EncodePart(word.substr(begin), scratch, ids);
}

void BpeModel::EncodePart(std::string_view part, Scratch* scratch,
                          std::vector<TokenId>* ids) const {
  // A known word may be one that ignores merges.
  if (part.size() > Scratch::Known::kBytesMax || ignore_merges_) {
    return EncodeNew(part, scratch, ids);
  }
  EncodeKnown(part, scratch, ids);
}

void BpeModel::EncodeKnown(std::string_view word, Scratch* scratch,
                           std::vector<TokenId>* ids) const {
  using Known = Scratch::Known;
  if (word.empty()) return;
  if (scratch->known.empty()) scratch->known.resize(kPlaces);
  Known& known = scratch->known[absl::HashOf(word) % kPlaces];
  if (std::string_view(known.word, known.bytes) == word) {
    ids->insert(ids->end(), known.ids, known.ids + known.tokens);
    return;
  }
  const size_t begin = ids->size();
  const std::optional<TokenId> whole = ignore_merges_ ? Find(word) : std::nullopt;
  if (whole) {
    ids->push_back(*whole);
  } else {
    EncodeNew(word, scratch, ids);
  }
  if (ids->size() - begin > Known::kTokensMax) return;
  known.bytes = static_cast<uint8_t>(word.size());
  known.tokens = static_cast<uint8_t>(ids->size() - begin);
  std::copy(word.begin(), word.end(), known.word);
  std::copy(ids->begin() + begin, ids->end(), known.ids);
}

// One symbol per character; where the vocabulary lacks it, its bytes or the unknown token. A
// character that has neither is dropped, as the reference implementation does.
void BpeModel::EncodeNew(std::string_view word, Scratch* scratch, std::vector<TokenId>* ids) const {
  std::vector<TokenId>& symbols = scratch->symbols;
  symbols.clear();
  bool unknown_pending = false;  // fuse_unk joins a run of unknown characters into one token
  for (size_t i = 0; i < word.size();) {
    const std::string_view character = word.substr(i, FirstCodePoint(word.substr(i)).length);
    i += character.size();
    const TokenId token = TokenOf(character);
    if (token >= 0) {
      if (unknown_pending) symbols.push_back(*unknown_);
      unknown_pending = false;
      symbols.push_back(token);
    } else if (byte_fallback_ && AppendByteTokens(character, &symbols)) {
      continue;  // without closing a run of unknown characters: so does the reference
    } else if (unknown_) {
      if (unknown_pending && !fuse_unknown_) symbols.push_back(*unknown_);
      unknown_pending = true;
    }
  }
  if (unknown_pending) symbols.push_back(*unknown_);
  const auto count = static_cast<int32_t>(symbols.size());
  if (count <= kShort) return MergeShort(symbols, ids);
  MergeLong(scratch, ids);
}

bool BpeModel::AppendByteTokens(std::string_view character, std::vector<TokenId>* symbols) const {
  const auto token = [&](char c) { return byte_tokens_[static_cast<unsigned char>(c)]; };
  for (char c : character) {
    if (token(c) < 0) return false;
  }
  for (char c : character) symbols->push_back(token(c));
  return true;
}

void BpeModel::MergeShort(std::span<TokenId> t, std::vector<TokenId>* ids) const {
  MergeRule rules[kShort];  // [i]: of tokens i and i + 1
  size_t count = t.size();
  for (size_t i = 0; i + 1 < count; ++i) rules[i] = merges_.Get(t[i], t[i + 1]);
  while (count > 1) {
    size_t best = 0;
    for (size_t i = 1; i + 1 < count; ++i) {
      if (rules[i].rank < rules[best].rank) best = i;
    }
    if (rules[best].rank == MergeRule::kNoRank) break;
    t[best] = rules[best].merged;
    --count;
    std::copy(t.begin() + best + 2, t.begin() + count + 1, t.begin() + best + 1);
    std::copy(rules + best + 1, rules + count, rules + best);
    if (best > 0) rules[best - 1] = merges_.Get(t[best - 1], t[best]);
    if (best + 1 < count) rules[best] = merges_.Get(t[best], t[best + 1]);
  }
  ids->insert(ids->end(), t.begin(), t.begin() + count);
}

// Window after window. Merges happen in the order of their ranks, so that what happens left of a
// place and what happens right of it depend on each other only through pairs that span it. Where a
// window, merged alone, has a place that nothing spanned, and the rest of the text, merged alone,
// begins with the token that the window has there, nothing would ever span the place: a token is
// made in one way, at the same ranks. Where it begins with another, the window was too short.
void BpeModel::MergeLong(Scratch* scratch, std::vector<TokenId>* ids) const {
  const std::vector<TokenId>& symbols = scratch->symbols;
  struct Place {
    int32_t begin;  // of a window
    TokenId first;  // the token that it must begin with; −1: any
    size_t ids;     // tokens before it
  };
  const auto count = static_cast<int32_t>(symbols.size());
  std::vector<Place> places = {{0, -1, ids->size()}};
  int64_t size = local_ ? kWindow : count;
  while (true) {
    const Place at = places.back();
    const auto end = static_cast<int32_t>(std::min<int64_t>(count, at.begin + size));
    MergeWindow(std::span(symbols).subspan(static_cast<size_t>(at.begin),
                                           static_cast<size_t>(end - at.begin)),
                scratch);
    const std::vector<Scratch::Merged>& merged = scratch->merged;
    if (at.first >= 0 && merged[0].token != at.first) {
      places.pop_back();
      size = 2 * (int64_t{end} - places.back().begin);
      ids->resize(places.back().ids);
      continue;
    }
    const size_t kept =
        end == count ? merged.size() : merged.size() - std::min(merged.size(), kLookAhead);
    if (kept == 0) {
      size *= 2;
      continue;
    }
    for (size_t i = 0; i < kept; ++i) ids->push_back(merged[i].token);
    if (kept == merged.size()) return;
    places.push_back({at.begin + merged[kept].begin, merged[kept].token, ids->size()});
    size = kWindow;
  }
}

// Symbols form a linked list. A candidate is a rank and a place; it is stale if the pair there has
// since become another.
void BpeModel::MergeWindow(std::span<const TokenId> tokens, Scratch* scratch) const {
  auto& nodes = scratch->nodes;
  auto& heap = scratch->heap;
  const auto count = static_cast<int32_t>(tokens.size());
  nodes.resize(tokens.size());
  heap.clear();
  const auto candidate = [&](int32_t i) {
    return uint64_t{nodes[i].rule.rank} << 32 | static_cast<uint32_t>(i);
  };
  for (int32_t i = 0; i < count; ++i) {
    const bool last = i + 1 == count;
    nodes[i] = {tokens[i], i - 1, last ? -1 : i + 1,
                last ? MergeRule() : merges_.Get(tokens[i], tokens[i + 1])};
    if (nodes[i].rule.rank != MergeRule::kNoRank) heap.push_back(candidate(i));
  }
  std::make_heap(heap.begin(), heap.end(), std::greater<>());
  const auto renew = [&](int32_t i) {
    if (i < 0) return;
    const int32_t next = nodes[i].next;
    nodes[i].rule = next < 0 ? MergeRule() : merges_.Get(nodes[i].token, nodes[next].token);
    if (nodes[i].rule.rank == MergeRule::kNoRank) return;
    heap.push_back(candidate(i));
    std::push_heap(heap.begin(), heap.end(), std::greater<>());
  };
  while (!heap.empty()) {
    std::pop_heap(heap.begin(), heap.end(), std::greater<>());
    const uint64_t top = heap.back();
    heap.pop_back();
    const auto i = static_cast<int32_t>(top & 0xffffffff);
    Scratch::Node& left = nodes[i];
    if (left.rule.rank != top >> 32) continue;
    Scratch::Node& right = nodes[left.next];
    left.token = left.rule.merged;
    left.next = right.next;
    right.rule = MergeRule();  // gone: no candidate has its rank
    if (left.next >= 0) nodes[left.next].previous = i;
    renew(left.previous);
    renew(i);
  }
  scratch->merged.clear();
  for (int32_t i = 0; i >= 0 && i < count; i = nodes[i].next) {
    scratch->merged.push_back({nodes[i].token, i});
  }
}

}  // namespace switchyard
