#include "text/bpe.h"

#include <algorithm>
#include <cstring>
#include <string>
#include <utility>

#include "absl/hash/hash.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/status_macros.h"
#include "text/utf8.h"

namespace switchyard {
namespace {

absl::string_view A(std::string_view s) { return {s.data(), s.size()}; }

// The lowest rank first, then the leftmost: a heap keeps the "greatest" on top.
bool Later(const BpeModel::Scratch::Candidate& a, const BpeModel::Scratch::Candidate& b) {
  return a.rank != b.rank ? a.rank > b.rank : a.position > b.position;
}

uint64_t PairKey(TokenId left, TokenId right) {
  return static_cast<uint64_t>(left) << 32 | static_cast<uint32_t>(right);
}

}  // namespace

absl::StatusOr<BpeModel> BpeModel::Parse(Json json) {
  if (FindField(json, "type")) {
    ASSIGN_OR_RETURN(std::string_view type, StringField(json, "model", "type"));
    if (type != "BPE") return Unsupported("model", "type", type, "BPE");
  }
  BpeModel model;
  RETURN_IF_ERROR(model.ReadVocab(json));
  model.FillCharacters();
  RETURN_IF_ERROR(model.ReadMerges(json));
  RETURN_IF_ERROR(model.ReadOptions(json));
  return model;
}

absl::Status BpeModel::ReadVocab(Json json) {
  simdjson::dom::object vocab;
  if (json["vocab"].get(vocab) != simdjson::SUCCESS) {
    return absl::InvalidArgumentError("tokenizer.json: model: field 'vocab' is not an object");
  }
  // First sizes, so that the arena and the tables are allocated once. (size() of a simdjson object
  // saturates at 2^24.)
  size_t bytes = 0, count = 0;
  int64_t highest = -1;
  for (const auto& [token, value] : vocab) {
    int64_t id;
    if (value.get(id) != simdjson::SUCCESS || id < 0 || id > kTokenIdMax) {
      return absl::InvalidArgumentError(absl::StrCat("tokenizer.json: model: token '", A(token),
                                                     "': id is not an integer in [0, ", kTokenIdMax,
                                                     "]"));
    }
    bytes += token.size();
    ++count;
    highest = std::max(highest, id);
  }
  arena_ = std::make_unique<char[]>(bytes + 1);  // + 1: no view has null data
  tokens_.resize(highest + 1);
  ids_.reserve(count);
  char* end = arena_.get();
  for (const auto& [token, value] : vocab) {
    const TokenId id = static_cast<TokenId>(int64_t(value.get_int64().value_unsafe()));
    std::memcpy(end, token.data(), token.size());
    const std::string_view stored(end, token.size());
    end += token.size();
    if (tokens_[id].data() != nullptr || !ids_.emplace(stored, id).second) {
      return absl::InvalidArgumentError(absl::StrCat("tokenizer.json: model: token '", A(token),
                                                     "' or its id ", id, " appears twice"));
    }
    tokens_[id] = stored;
  }
  return absl::OkStatus();
}

absl::Status BpeModel::ReadMerges(Json json) {
  ASSIGN_OR_RETURN(simdjson::dom::array merges, ArrayField(json, "model", "merges"));
  uint32_t rank = 0;
  for (Json merge : merges) {
    std::string_view line, left, right;
    simdjson::dom::array pair;
    if (merge.get(line) == simdjson::SUCCESS) {  // "left right", as older files have it
      if (line.starts_with("#version")) continue;
      const size_t space = line.find(' ');
      if (space == line.npos || line.find(' ', space + 1) != line.npos) {
        return absl::InvalidArgumentError(absl::StrCat("tokenizer.json: model: merge ", rank, " '",
                                                       A(line), "' is not two tokens"));
      }
      left = line.substr(0, space);
      right = line.substr(space + 1);
    } else if (merge.get(pair) != simdjson::SUCCESS || pair.size() != 2 ||
               pair.at(0).get(left) != simdjson::SUCCESS ||
               pair.at(1).get(right) != simdjson::SUCCESS) {
      return absl::InvalidArgumentError(
          absl::StrCat("tokenizer.json: model: merge ", rank, " is not two tokens"));
    }
    RETURN_IF_ERROR(AddMerge(left, right, rank++));
  }
  return absl::OkStatus();
}

absl::Status BpeModel::AddMerge(std::string_view left, std::string_view right, uint32_t rank) {
  const std::string both = absl::StrCat(A(left), A(right));
  const std::optional<TokenId> l = Find(left), r = Find(right), merged = Find(both);
  if (!l || !r || !merged) {
    return absl::InvalidArgumentError(absl::StrCat("tokenizer.json: model: merge ", rank, " '",
                                                   A(left), "' '", A(right), "': '",
                                                   !l   ? A(left)
                                                   : !r ? A(right)
                                                        : both,
                                                   "' is not in the vocabulary"));
  }
  merges_.insert_or_assign(PairKey(*l, *r), MergeRule{rank, *merged});
  TokenId previous = -1;
  for (size_t i = 0; i < both.size();) {
    const std::string_view rest = std::string_view(both).substr(i);
    const std::string_view character = rest.substr(0, FirstCodePoint(rest).length);
    const TokenId token = TokenOf(character);
    if (previous >= 0 && token >= 0) joined_.insert(PairKey(previous, token));
    previous = token;
    i += character.size();
  }
  return absl::OkStatus();
}

absl::Status BpeModel::ReadOptions(Json json) {
  for (const char* affix : {"continuing_subword_prefix", "end_of_word_suffix"}) {
    if (!FindField(json, affix)) continue;
    ASSIGN_OR_RETURN(std::string_view value, StringField(json, "model", affix));
    if (!value.empty()) return Unsupported("model", affix, value, "null");
  }
  if (const auto dropout = FindField(json, "dropout")) {
    double value;
    if (dropout->get(value) != simdjson::SUCCESS || value != 0) {
      return Unsupported("model", "dropout", simdjson::minify(*dropout), "null, 0");
    }
  }
  ASSIGN_OR_RETURN(fuse_unknown_, BoolField(json, "model", "fuse_unk", false));
  ASSIGN_OR_RETURN(byte_fallback_, BoolField(json, "model", "byte_fallback", false));
  ASSIGN_OR_RETURN(ignore_merges_, BoolField(json, "model", "ignore_merges", false));
  if (FindField(json, "unk_token")) {
    ASSIGN_OR_RETURN(std::string_view token, StringField(json, "model", "unk_token"));
    unknown_ = Find(token);
    if (!unknown_) return Unsupported("model", "unk_token", token, "a token of the vocabulary");
  }
  if (byte_fallback_) {
    for (int b = 0; b < 256; ++b) {
      byte_tokens_.push_back(Find(absl::StrFormat("<0x%02X>", b)).value_or(-1));
    }
  }
  return absl::OkStatus();
}

std::optional<TokenId> BpeModel::Find(std::string_view token) const {
  const auto it = ids_.find(token);
  if (it == ids_.end()) return std::nullopt;
  return it->second;
}

const BpeModel::MergeRule* BpeModel::FindMerge(TokenId left, TokenId right) const {
  const auto it = merges_.find(PairKey(left, right));
  return it == merges_.end() ? nullptr : &it->second;
}

void BpeModel::FillCharacters() {
  characters_.assign(1 << 16, -1);
  for (size_t id = 0; id < tokens_.size(); ++id) {
    const std::string_view token = tokens_[id];
    if (token.empty()) continue;
    const CodePoint first = FirstCodePoint(token);
    if (first.length != token.size() || first.value >= characters_.size()) continue;
    characters_[first.value] = static_cast<TokenId>(id);
  }
}

TokenId BpeModel::TokenOf(std::string_view character) const {
  const char32_t c = FirstCodePoint(character).value;
  return c < characters_.size() ? characters_[c] : Find(character).value_or(-1);
}

// Characters without a token of their own may stand there as bytes: those are left together.
bool BpeModel::MayJoin(TokenId left, TokenId right) const {
  return left < 0 || right < 0 || joined_.contains(PairKey(left, right));
}

void BpeModel::Encode(std::string_view word, Scratch* scratch, std::vector<TokenId>* ids) const {
  using Known = Scratch::Known;
  constexpr size_t kPlaces = 4096;
  if (word.empty()) return;
  if (word.size() > Known::kBytesMax) return EncodeWord(word, scratch, ids);
  if (scratch->known.empty()) scratch->known.resize(kPlaces);
  Known& known = scratch->known[absl::HashOf(word) % kPlaces];
  if (std::string_view(known.word, known.bytes) != word) {
    const size_t begin = ids->size();
    EncodeWord(word, scratch, ids);
    if (ids->size() - begin > Known::kTokensMax) return;
    known.bytes = static_cast<uint8_t>(word.size());
    known.tokens = static_cast<uint8_t>(ids->size() - begin);
    std::copy(word.begin(), word.end(), known.word);
    std::copy(ids->begin() + begin, ids->end(), known.ids);
    return;
  }
  ids->insert(ids->end(), known.ids, known.ids + known.tokens);
}

// One symbol per character; where the vocabulary lacks it, its bytes or the unknown token. A
// character that has neither is dropped, as the reference implementation does. What merges can't
// join is done part by part, so that a text without spaces costs no more than others.
void BpeModel::EncodeWord(std::string_view word, Scratch* scratch,
                          std::vector<TokenId>* ids) const {
  if (ignore_merges_) {
    if (const std::optional<TokenId> whole = Find(word)) {
      ids->push_back(*whole);
      return;
    }
  }
  scratch->symbols.clear();
  const auto add = [&](TokenId token) { scratch->symbols.push_back({token, -1, -1, true}); };
  bool unknown_pending = false;  // fuse_unk joins a run of unknown characters into one token
  TokenId previous = -1;
  for (size_t i = 0; i < word.size();) {
    const std::string_view character = word.substr(i, FirstCodePoint(word.substr(i)).length);
    i += character.size();
    const TokenId token = TokenOf(character);
    if (!MayJoin(std::exchange(previous, token), token)) Merge(scratch, ids);
    if (token >= 0) {
      if (unknown_pending) add(*unknown_);
      unknown_pending = false;
      add(token);
    } else if (byte_fallback_ && AppendByteTokens(character, scratch)) {
      continue;  // without closing a run of unknown characters: so does the reference
    } else if (unknown_) {
      if (unknown_pending && !fuse_unknown_) add(*unknown_);
      unknown_pending = true;
    }
  }
  if (unknown_pending) add(*unknown_);
  Merge(scratch, ids);
}

bool BpeModel::AppendByteTokens(std::string_view character, Scratch* scratch) const {
  const auto token = [&](char c) { return byte_tokens_[static_cast<unsigned char>(c)]; };
  for (char c : character) {
    if (token(c) < 0) return false;
  }
  for (char c : character) scratch->symbols.push_back({token(c), -1, -1, true});
  return true;
}

void BpeModel::PushCandidate(int32_t position, Scratch* scratch) const {
  if (position < 0) return;
  const Scratch::Symbol& left = scratch->symbols[position];
  if (left.next < 0) return;
  const MergeRule* merge = FindMerge(left.token, scratch->symbols[left.next].token);
  if (merge == nullptr) return;
  scratch->heap.push_back({merge->rank, position, merge->merged});
  std::push_heap(scratch->heap.begin(), scratch->heap.end(), Later);
}

// Merges the symbols and moves what is left to `ids`. Symbols form a linked list; a candidate is
// stale if its pair has since become another.
void BpeModel::Merge(Scratch* scratch, std::vector<TokenId>* ids) const {
  auto& symbols = scratch->symbols;
  auto& heap = scratch->heap;
  const int32_t count = static_cast<int32_t>(symbols.size());
  for (int32_t i = 0; i < count; ++i) {
    symbols[i].previous = i - 1;
    symbols[i].next = i + 1 < count ? i + 1 : -1;
  }
  heap.clear();
  for (int32_t i = 0; i + 1 < count; ++i) PushCandidate(i, scratch);
  while (!heap.empty()) {
    std::pop_heap(heap.begin(), heap.end(), Later);
    const Scratch::Candidate top = heap.back();
    heap.pop_back();
    Scratch::Symbol& left = symbols[top.position];
    if (!left.alive || left.next < 0) continue;
    Scratch::Symbol& right = symbols[left.next];
    const MergeRule* merge = FindMerge(left.token, right.token);
    if (merge == nullptr || merge->merged != top.merged) continue;
    left.token = top.merged;
    right.alive = false;
    left.next = right.next;
    if (right.next >= 0) symbols[right.next].previous = top.position;
    PushCandidate(left.previous, scratch);
    PushCandidate(top.position, scratch);
  }
  for (const Scratch::Symbol& s : symbols) {
    if (s.alive) ids->push_back(s.token);
  }
  symbols.clear();
}

}  // namespace switchyard
