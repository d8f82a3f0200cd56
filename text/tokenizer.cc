#include "text/tokenizer.h"

#include <sys/stat.h>

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "common/file.h"
#include "common/status_macros.h"
#include "text/added_tokens.h"
#include "text/bpe.h"
#include "text/decoder.h"
#include "text/normalizer.h"
#include "text/post_processor.h"
#include "text/pre_tokenizer.h"
#include "text/utf8.h"

namespace switchyard {
namespace {

constexpr size_t kFileBytesMax = 256 << 20;

class BpeTokenizer final : public Tokenizer {
 public:
  static absl::StatusOr<std::unique_ptr<Tokenizer>> Create(Json json);

  absl::StatusOr<std::vector<TokenId>> Encode(std::string_view text,
                                              bool add_special_tokens) const override;
  absl::StatusOr<std::string> Decode(std::span<const TokenId> ids,
                                     bool skip_special_tokens) const override;
  int vocab_size() const override { return static_cast<int>(texts_.size()); }
  bool IsSpecial(TokenId id) const override { return Has(id) && texts_[id].special; }
  std::string_view TokenBytes(TokenId id) const override {
    return Has(id) ? std::string_view(texts_[id].text.bytes) : std::string_view();
  }
  bool IsByteToken(TokenId id) const override { return Has(id) && texts_[id].text.is_byte_token; }
  const TextRules& text_rules() const override { return decoder_.rules(); }
  size_t bytes_per_token_max() const override { return bytes_per_token_max_; }

 private:
  struct Entry {
    Decoder::TokenText text;
    bool known = false;
    bool special = false;
  };

  BpeTokenizer(Normalizer normalizer, PreTokenizer pre_tokenizer, BpeModel model, AddedTokens added,
               PostProcessor post, Decoder decoder)
      : normalizer_(std::move(normalizer)),
        pre_tokenizer_(std::move(pre_tokenizer)),
        model_(std::move(model)),
        added_(std::move(added)),
        post_(std::move(post)),
        decoder_(std::move(decoder)) {
    FillEntries();
    bytes_per_token_max_ = FindBytesPerTokenMax();
  }
  bool Has(TokenId id) const {
    return id >= 0 && static_cast<size_t>(id) < texts_.size() && texts_[id].known;
  }
  void FillEntries();
  size_t FindBytesPerTokenMax() const;
  absl::Status EncodeNormalized(std::string_view text, size_t head, BpeModel::Scratch* scratch,
                                std::vector<TokenId>* ids) const;

  Normalizer normalizer_;
  PreTokenizer pre_tokenizer_;
  BpeModel model_;
  AddedTokens added_;
  PostProcessor post_;
  Decoder decoder_;
  std::vector<Entry> texts_;  // by id
  size_t bytes_per_token_max_ = 0;
};

absl::StatusOr<std::unique_ptr<Tokenizer>> BpeTokenizer::Create(Json json) {
  // "truncation" and "padding" are left aside: they are settings of the batch that was last
  // encoded, which clients of the file (transformers) override on every call.
  const std::optional<Json> model_json = FindField(json, "model");
  if (!model_json) return absl::InvalidArgumentError("tokenizer.json: there is no 'model'");
  ASSIGN_OR_RETURN(Normalizer normalizer, Normalizer::Parse(FindField(json, "normalizer")));
  ASSIGN_OR_RETURN(PreTokenizer pre, PreTokenizer::Parse(FindField(json, "pre_tokenizer")));
  ASSIGN_OR_RETURN(BpeModel model, BpeModel::Parse(*model_json));
  ASSIGN_OR_RETURN(AddedTokens added,
                   AddedTokens::Parse(FindField(json, "added_tokens"), model, normalizer));
  ASSIGN_OR_RETURN(PostProcessor post, PostProcessor::Parse(FindField(json, "post_processor")));
  ASSIGN_OR_RETURN(Decoder decoder, Decoder::Parse(FindField(json, "decoder")));
  auto tokenizer = std::unique_ptr<BpeTokenizer>(
      new BpeTokenizer(std::move(normalizer), std::move(pre), std::move(model), std::move(added),
                       std::move(post), std::move(decoder)));
  for (const auto* ids : {&tokenizer->post_.prefix(), &tokenizer->post_.suffix()}) {
    for (TokenId id : *ids) {
      if (tokenizer->Has(id)) continue;
      return absl::InvalidArgumentError(
          absl::StrCat("tokenizer.json: post_processor: no token has id ", id));
    }
  }
  return tokenizer;
}

void BpeTokenizer::FillEntries() {
  const auto& added = added_.tokens();
  texts_.resize(model_.tokens().size());
  if (!added.empty() && static_cast<size_t>(added.rbegin()->first) >= texts_.size()) {
    texts_.resize(added.rbegin()->first + 1);
  }
  for (size_t id = 0; id < model_.tokens().size(); ++id) {
    const std::string_view token = model_.tokens()[id];
    if (token.data() != nullptr) texts_[id] = {decoder_.Decode(token), true, false};
  }
  for (const auto& [id, token] : added) {
    texts_[id] = {decoder_.Decode(token.content), true, token.special};
  }
}

// Where every byte of a text comes to a token, and no step makes the text shorter than we know.
size_t BpeTokenizer::FindBytesPerTokenMax() const {
  const bool complete =
      pre_tokenizer_.byte_level() ? model_.HasByteAlphabet() : model_.HasByteFallback();
  if (!complete || pre_tokenizer_.removes() || added_.strips()) return 0;
  size_t longest = 1;
  for (const std::string_view token : model_.tokens()) longest = std::max(longest, token.size());
  for (const auto& [id, token] : added_.tokens()) longest = std::max(longest, token.content.size());
  return longest * normalizer_.shrink_max();
}

absl::StatusOr<std::vector<TokenId>> BpeTokenizer::Encode(std::string_view text,
                                                          bool add_special_tokens) const {
  if (text.size() > kTextBytesMax) {
    return absl::InvalidArgumentError(
        absl::StrCat("text of ", text.size(), " bytes; the limit is ", kTextBytesMax));
  }
  if (const size_t bad = FindInvalidUtf8(text); bad != std::string_view::npos) {
    return absl::InvalidArgumentError(absl::StrCat("text is not UTF-8 at byte ", bad));
  }
  std::vector<TokenId> ids;
  BpeModel::Scratch scratch;
  if (add_special_tokens) ids = post_.prefix();
  ASSIGN_OR_RETURN(const std::vector<TextSegment> segments, added_.Split(text, false));
  for (const TextSegment& segment : segments) {
    if (segment.token) {
      ids.push_back(*segment.token);
      continue;
    }
    const TextRange r = segment.range;
    const std::string_view part = text.substr(r.begin, r.end - r.begin);
    size_t head = r.begin == 0 ? FirstCodePoint(part).length : 0;
    ASSIGN_OR_RETURN(const std::string normalized, normalizer_.Apply(std::string(part), &head));
    RETURN_IF_ERROR(EncodeNormalized(normalized, head, &scratch, &ids));
  }
  if (add_special_tokens) ids.insert(ids.end(), post_.suffix().begin(), post_.suffix().end());
  return ids;
}

absl::Status BpeTokenizer::EncodeNormalized(std::string_view text, size_t head,
                                            BpeModel::Scratch* scratch,
                                            std::vector<TokenId>* ids) const {
  ASSIGN_OR_RETURN(const std::vector<TextSegment> segments, added_.Split(text, true));
  for (const TextSegment& segment : segments) {
    if (segment.token) {
      ids->push_back(*segment.token);
      continue;
    }
    const TextRange r = segment.range;
    ASSIGN_OR_RETURN(const Words words,
                     pre_tokenizer_.Apply(std::string(text.substr(r.begin, r.end - r.begin)),
                                          head - std::min(head, r.begin)));
    for (const TextRange& word : words.ranges) {
      model_.Encode(std::string_view(words.text).substr(word.begin, word.end - word.begin), scratch,
                    ids);
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<std::string> BpeTokenizer::Decode(std::span<const TokenId> ids,
                                                 bool skip_special_tokens) const {
  std::string text;
  TextAssembler assembler(&decoder_.rules());
  for (TokenId id : ids) {
    if (!Has(id)) return absl::InvalidArgumentError(absl::StrCat("no token has id ", id));
    if (skip_special_tokens && texts_[id].special) continue;
    assembler.Push(texts_[id].text.bytes, texts_[id].text.is_byte_token, &text);
  }
  assembler.Finish(&text);
  return text;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Tokenizer>> Tokenizer::Load(const std::string& path) {
  struct stat info;
  const bool is_directory = stat(path.c_str(), &info) == 0 && S_ISDIR(info.st_mode);
  ASSIGN_OR_RETURN(const std::string json,
                   ReadFile(is_directory ? path + "/tokenizer.json" : path, kFileBytesMax));
  return Parse(json);
}

absl::StatusOr<std::unique_ptr<Tokenizer>> Tokenizer::Parse(std::string_view json) {
  if (json.size() > kFileBytesMax) {
    return absl::InvalidArgumentError(
        absl::StrCat("tokenizer.json: ", json.size(), " bytes; the limit is ", kFileBytesMax));
  }
  simdjson::dom::parser parser;
  Json root;
  if (const auto error = parser.parse(json.data(), json.size()).get(root)) {
    return absl::InvalidArgumentError(
        absl::StrCat("tokenizer.json: ", simdjson::error_message(error)));
  }
  return BpeTokenizer::Create(root);
}

DetokenizerStream::DetokenizerStream(const Tokenizer* tokenizer, bool skip_special_tokens)
    : tokenizer_(tokenizer),
      skip_special_tokens_(skip_special_tokens),
      assembler_(&tokenizer->text_rules()) {}

std::string DetokenizerStream::Push(TokenId id) {
  std::string text;
  const std::string_view bytes = tokenizer_->TokenBytes(id);
  if (bytes.data() == nullptr || (skip_special_tokens_ && tokenizer_->IsSpecial(id))) return text;
  assembler_.Push(bytes, tokenizer_->IsByteToken(id), &text);
  return text;
}

std::string DetokenizerStream::Finish() {
  std::string text;
  assembler_.Finish(&text);
  return text;
}

}  // namespace switchyard
