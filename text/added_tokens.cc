#include "text/added_tokens.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "text/utf8.h"

namespace switchyard {
namespace {

constexpr std::string_view kName = "added_tokens";
constexpr size_t kPatternBytesMax = 4096;

size_t SpaceAtEnd(std::string_view text) {
  size_t end = text.size();
  while (end > 0) {
    const size_t last = LastCodePointOffset(text.substr(0, end));
    if (!IsWhiteSpace(FirstCodePoint(text.substr(last)).value)) break;
    end = last;
  }
  return end;
}

size_t SpaceAtStart(std::string_view text) {
  size_t begin = 0;
  while (begin < text.size()) {
    const CodePoint c = FirstCodePoint(text.substr(begin));
    if (!IsWhiteSpace(c.value)) break;
    begin += c.length;
  }
  return begin;
}

}  // namespace

void AddedTokens::Matcher::Add(std::string_view pattern, TokenId token) {
  first_bytes_[static_cast<unsigned char>(pattern[0])] = true;
  uint32_t node = 0;
  for (unsigned char c : pattern) {
    const auto [it, is_new] = edges_.try_emplace(uint64_t{node} << 8 | c, nodes_);
    if (is_new) ++nodes_;
    node = it->second;
  }
  ends_.insert_or_assign(node, token);
}

size_t AddedTokens::Matcher::Skip(std::string_view text) const {
  const auto begins = [this](char c) { return first_bytes_[static_cast<unsigned char>(c)]; };
  return static_cast<size_t>(std::find_if(text.begin(), text.end(), begins) - text.begin());
}

std::optional<std::pair<TokenId, size_t>> AddedTokens::Matcher::LongestAt(
    std::string_view text) const {
  std::optional<std::pair<TokenId, size_t>> longest;
  uint32_t node = 0;
  for (size_t i = 0; i < text.size(); ++i) {
    const auto edge = edges_.find(uint64_t{node} << 8 | static_cast<unsigned char>(text[i]));
    if (edge == edges_.end()) break;
    node = edge->second;
    if (const auto end = ends_.find(node); end != ends_.end()) longest = {end->second, i + 1};
  }
  return longest;
}

absl::StatusOr<AddedTokens> AddedTokens::Parse(std::optional<Json> json, const BpeModel& model,
                                               const Normalizer& normalizer) {
  ASSIGN_OR_RETURN(Regex word, Regex::Compile("[\\w\\x{200c}\\x{200d}]"));
  AddedTokens added(std::move(word));
  if (!json) return added;
  simdjson::dom::array list;
  if (json->get(list) != simdjson::SUCCESS) {
    return absl::InvalidArgumentError("tokenizer.json: added_tokens is not a list");
  }
  absl::flat_hash_map<std::string, TokenId> own;  // tokens that the model does not have
  for (Json entry : list) {
    Token token;
    ASSIGN_OR_RETURN(std::string_view content, StringField(entry, kName, "content"));
    ASSIGN_OR_RETURN(const int64_t id, IntField(entry, kName, "id"));
    ASSIGN_OR_RETURN(token.special, BoolField(entry, kName, "special", false));
    ASSIGN_OR_RETURN(token.single_word, BoolField(entry, kName, "single_word", false));
    ASSIGN_OR_RETURN(token.lstrip, BoolField(entry, kName, "lstrip", false));
    ASSIGN_OR_RETURN(token.rstrip, BoolField(entry, kName, "rstrip", false));
    ASSIGN_OR_RETURN(token.normalized, BoolField(entry, kName, "normalized", !token.special));
    if (content.empty()) continue;
    token.content = std::string(content);
    // The reference takes the model's id, else the next free one, whatever the file says. A file
    // that says otherwise is refused: nobody could tell which ids the weights were trained with.
    const auto mine = own.find(token.content);
    const TokenId next = static_cast<TokenId>(model.size() + own.size());
    const TokenId expected = mine != own.end() ? mine->second : model.Find(content).value_or(next);
    if (id != expected || id > kTokenIdMax) {
      return absl::InvalidArgumentError(absl::StrCat("tokenizer.json: added_tokens: '",
                                                     Shortened(content), "' has id ", id,
                                                     " but its place is ", expected));
    }
    if (!model.Find(content)) own.emplace(token.content, expected);
    added.tokens_.insert_or_assign(expected, std::move(token));
  }
  for (auto& [id, token] : added.tokens_) {
    // The reference looks for the normalized form, and prints it too. It knows special tokens by
    // their content, so that one with another form is not special to it any more.
    if (token.normalized) {
      size_t head = 0;
      ASSIGN_OR_RETURN(std::string form, normalizer.Apply(token.content, &head));
      token.special &= form == token.content;
      token.content = std::move(form);
    }
    const std::string& pattern = token.content;
    if (pattern.size() > kPatternBytesMax) {
      return absl::InvalidArgumentError(absl::StrCat("tokenizer.json: added_tokens: id ", id,
                                                     " has ", pattern.size(),
                                                     " bytes; the limit is ", kPatternBytesMax));
    }
    if (!pattern.empty()) added.matchers_[token.normalized].Add(pattern, id);
  }
  return added;
}

bool AddedTokens::strips() const {
  return std::any_of(tokens_.begin(), tokens_.end(),
                     [](const auto& t) { return t.second.lstrip || t.second.rstrip; });
}

absl::StatusOr<bool> AddedTokens::TouchesWord(std::string_view text, TextRange range) const {
  std::string neighbours;
  if (range.begin > 0) {
    const size_t last = LastCodePointOffset(text.substr(0, range.begin));
    neighbours.append(text.substr(last, range.begin - last));
  }
  if (range.end < text.size()) {
    neighbours.append(text.substr(range.end, FirstCodePoint(text.substr(range.end)).length));
  }
  ASSIGN_OR_RETURN(const std::vector<TextRange> matches, word_.FindAll(neighbours));
  return !matches.empty();
}

absl::StatusOr<std::vector<TextSegment>> AddedTokens::Split(std::string_view text,
                                                            bool normalized) const {
  std::vector<TextSegment> segments;
  size_t done = 0;
  for (size_t i = 0; i < text.size();) {
    i += matchers_[normalized].Skip(text.substr(i));
    if (i == text.size()) break;
    const auto match = matchers_[normalized].LongestAt(text.substr(i));
    if (!match) {
      ++i;
      continue;
    }
    const auto [id, length] = *match;
    const Token& token = tokens_.at(id);
    TextRange range{i, i + length};
    i = range.end;
    if (token.single_word) {
      ASSIGN_OR_RETURN(const bool touches, TouchesWord(text, range));
      if (touches) continue;
    }
    if (token.lstrip) range.begin = std::max(SpaceAtEnd(text.substr(0, range.begin)), done);
    if (token.rstrip) range.end += SpaceAtStart(text.substr(range.end));
    if (done < range.begin) segments.push_back({std::nullopt, {done, range.begin}});
    // What an earlier token took along is nothing any more, as the reference sees it.
    if (range.begin < range.end) segments.push_back({id, range});
    done = range.end;
  }
  if (done < text.size()) segments.push_back({std::nullopt, {done, text.size()}});
  return segments;
}

}  // namespace switchyard
