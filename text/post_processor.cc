#include "text/post_processor.h"

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "text/bpe.h"
#include "text/utf8.h"

namespace switchyard {
namespace {

constexpr std::string_view kName = "post_processor TemplateProcessing";

absl::Status AppendSpecial(Json specials, std::string_view id, std::vector<TokenId>* out) {
  const std::optional<Json> special = FindField(specials, id);
  if (!special) return Unsupported(kName, "SpecialToken", id, "an entry of special_tokens");
  ASSIGN_OR_RETURN(simdjson::dom::array ids, ArrayField(*special, kName, "ids"));
  for (Json entry : ids) {
    int64_t value;
    if (entry.get(value) != simdjson::SUCCESS || value < 0 || value > kTokenIdMax) {
      return absl::InvalidArgumentError(absl::StrCat("tokenizer.json: post_processor: an id of '",
                                                     Shortened(id), "' is not an integer in [0, ",
                                                     kTokenIdMax, "]"));
    }
    out->push_back(static_cast<TokenId>(value));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<PostProcessor> PostProcessor::Parse(std::optional<Json> json) {
  PostProcessor post;
  if (!json) return post;
  RETURN_IF_ERROR(
      VisitSequence(*json, "post_processor", "processors",
                    [&](Json step, std::string_view type) { return post.AddStep(step, type); }));
  return post;
}

absl::Status PostProcessor::AddStep(Json json, std::string_view type) {
  if (type == "ByteLevel") return absl::OkStatus();  // changes offsets only
  if (type == "TemplateProcessing") return AddTemplate(json);
  return Unsupported("post_processor", "type", type, "ByteLevel, TemplateProcessing, Sequence");
}

absl::Status PostProcessor::AddTemplate(Json json) {
  ASSIGN_OR_RETURN(simdjson::dom::array pieces, ArrayField(json, kName, "single"));
  const std::optional<Json> specials = FindField(json, "special_tokens");
  std::vector<TokenId> before, after;
  int sequences = 0;
  for (Json piece : pieces) {
    if (const auto sequence = FindField(piece, "Sequence")) {
      ASSIGN_OR_RETURN(std::string_view id, StringField(*sequence, kName, "id"));
      if (id != "A") return Unsupported(kName, "Sequence in single", id, "A");
      ++sequences;
    } else if (const auto special = FindField(piece, "SpecialToken"); special && specials) {
      ASSIGN_OR_RETURN(std::string_view id, StringField(*special, kName, "id"));
      RETURN_IF_ERROR(AppendSpecial(*specials, id, sequences == 0 ? &before : &after));
    } else {
      return Unsupported(kName, "piece", "(another form)", "Sequence, SpecialToken");
    }
  }
  if (sequences != 1) {
    return Unsupported(kName, "number of sequences", std::to_string(sequences), "1");
  }
  // A later template wraps what the earlier ones made.
  prefix_.insert(prefix_.begin(), before.begin(), before.end());
  suffix_.insert(suffix_.end(), after.begin(), after.end());
  return absl::OkStatus();
}

}  // namespace switchyard
