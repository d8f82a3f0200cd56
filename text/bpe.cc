#include "text/bpe.h"

#include <algorithm>
#include <cstring>
#include <string>
#include <utility>

#include "absl/hash/hash.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/status_macros.h"
#include "text/byte_alphabet.h"
#include "text/utf8.h"

namespace switchyard {
namespace {

absl::string_view A(std::string_view s) { return {s.data(), s.size()}; }

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
      return absl::InvalidArgumentError(
          absl::StrCat("tokenizer.json: model: token '", Shortened(token),
                       "': id is not an integer in [0, ", kTokenIdMax, "]"));
    }
    bytes += token.size();
    ++count;
    highest = std::max(highest, id);
  }
  // Tables go by id: a file of few tokens makes none that are large.
  const auto holes_max = static_cast<int64_t>(count) + 4096;
  if (highest >= static_cast<int64_t>(count) + holes_max) {
    return absl::InvalidArgumentError(
        absl::StrCat("tokenizer.json: model: ", count, " tokens with ids up to ", highest,
                     ", which is more than ", holes_max, " holes, the limit"));
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
      return absl::InvalidArgumentError(absl::StrCat("tokenizer.json: model: token '",
                                                     Shortened(token), "' or its id ", id,
                                                     " appears twice"));
    }
    tokens_[id] = stored;
  }
  return absl::OkStatus();
}

absl::Status BpeModel::ReadMerges(Json json) {
  ASSIGN_OR_RETURN(simdjson::dom::array merges, ArrayField(json, "model", "merges"));
  if (merges.size() > kTokenIdMax / 2) {
    return absl::InvalidArgumentError(
        absl::StrCat("tokenizer.json: model: more than ", kTokenIdMax / 2, " merges"));
  }
  merges_ = MergeTable(merges.size());
  roles_.assign(tokens_.size(), 0);
  uint32_t rank = 0;
  for (Json merge : merges) {
    std::string_view line, left, right;
    simdjson::dom::array pair;
    if (merge.get(line) == simdjson::SUCCESS) {  // "left right", as older files have it
      if (line.starts_with("#version")) continue;
      const size_t space = line.find(' ');
      if (space == line.npos || line.find(' ', space + 1) != line.npos) {
        return absl::InvalidArgumentError(absl::StrCat("tokenizer.json: model: merge ", rank, " '",
                                                       Shortened(line), "' is not two tokens"));
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
                                                   Shortened(left), "' '", Shortened(right), "': '",
                                                   Shortened(!l   ? left
                                                             : !r ? right
                                                                  : both),
                                                   "' is not in the vocabulary"));
  }
  // A pair that is there again counts at its last place.
  merges_.Set(*l, *r, {rank, *merged});
  // Each token made once, from parts that lower ranks make, is what MergeLong counts on.
  uint8_t& role = roles_[static_cast<size_t>(*merged)];
  if (role != 0 || left.empty() || right.empty()) local_ = false;
  role |= kMade;
  roles_[static_cast<size_t>(*l)] |= kPart;
  roles_[static_cast<size_t>(*r)] |= kPart;
  TokenId previous = -1;
  for (size_t i = 0; i < both.size();) {
    const std::string_view rest = std::string_view(both).substr(i);
    const std::string_view character = rest.substr(0, FirstCodePoint(rest).length);
    const TokenId token = TokenOf(character);
    if (previous >= 0 && token >= 0) joined_.insert({previous, token});
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
  // What stands there without a merge.
  const auto is_made = [&](TokenId t) {
    return t >= 0 && (roles_[static_cast<size_t>(t)] & kMade) != 0;
  };
  if (is_made(unknown_.value_or(-1)) ||
      std::any_of(byte_tokens_.begin(), byte_tokens_.end(), is_made)) {
    local_ = false;
  }
  return absl::OkStatus();
}

std::optional<TokenId> BpeModel::Find(std::string_view token) const {
  const auto it = ids_.find(token);
  if (it == ids_.end()) return std::nullopt;
  return it->second;
}

bool BpeModel::HasByteAlphabet() const {
  const ByteAlphabet alphabet;
  for (int b = 0; b < 256; ++b) {
    if (characters_[alphabet.CharOf(static_cast<unsigned char>(b))] < 0) return false;
  }
  return true;
}

bool BpeModel::HasByteFallback() const {
  return byte_fallback_ &&
         std::none_of(byte_tokens_.begin(), byte_tokens_.end(), [](TokenId t) { return t < 0; });
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

}  // namespace switchyard
