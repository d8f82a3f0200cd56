#include "text/decoder.h"

#include "common/status_macros.h"
#include "text/utf8.h"

namespace switchyard {
namespace {

constexpr int kStripMax = 1000;
constexpr size_t kReplacementsMax = 64;

int HexDigit(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return -1;
}

// The byte of "<0xHH>", or -1. "+H" is a number to the reference, too.
int ByteOfToken(std::string_view token) {
  if (token.size() != 6 || !token.starts_with("<0x") || token[5] != '>') return -1;
  const int high = token[3] == '+' ? 0 : HexDigit(token[3]);
  const int low = HexDigit(token[4]);
  return high < 0 || low < 0 ? -1 : high * 16 + low;
}

}  // namespace

absl::StatusOr<Decoder> Decoder::Parse(std::optional<Json> json) {
  Decoder decoder;
  if (!json) {
    decoder.rules_.separator = " ";
    return decoder;
  }
  RETURN_IF_ERROR(
      VisitSequence(*json, "decoder", "decoders",
                    [&](Json step, std::string_view type) { return decoder.AddStep(step, type); }));
  return decoder;
}

absl::Status Decoder::AddStep(Json json, std::string_view type) {
  constexpr std::string_view kSupported =
      "ByteLevel alone, or Replace*, ByteFallback, Fuse, Strip in this order";
  Stage stage = kEnd;
  if (type == "Replace") stage = kReplace;
  if (type == "ByteFallback") stage = kByteFallback;
  if (type == "Fuse") stage = kFuse;
  const bool repeats = stage == stage_ && stage != kReplace;
  if (stage < stage_ || repeats) return Unsupported("decoder", "place of", type, kSupported);
  const Stage before = stage_;
  stage_ = stage;
  if (type == "Replace") return AddReplace(json);
  if (type == "ByteFallback") {
    rules_.byte_runs = true;
    return absl::OkStatus();
  }
  if (type == "Fuse") return absl::OkStatus();  // without a later step, joining is what we do
  if (type == "Strip" && before == kFuse) return AddStrip(json);
  if (type == "ByteLevel" && before == kStart) {
    byte_level_ = true;
    return absl::OkStatus();
  }
  return Unsupported("decoder", "type or place of", type, kSupported);
}

absl::Status Decoder::AddReplace(Json json) {
  constexpr std::string_view kName = "decoder Replace";
  const std::optional<Json> pattern = FindField(json, "pattern");
  if (!pattern || !FindField(*pattern, "String")) {
    return Unsupported(kName, "pattern", "(another form)", "{String}");
  }
  ASSIGN_OR_RETURN(std::string_view from, StringField(*pattern, kName, "String"));
  ASSIGN_OR_RETURN(std::string_view to, StringField(json, kName, "content"));
  if (from.empty()) return Unsupported(kName, "pattern", "", "a pattern that is not empty");
  RETURN_IF_ERROR(CheckContent(kName, "content", to));
  if (replacements_.size() == kReplacementsMax) {
    return Unsupported(kName, "number of steps above", std::to_string(kReplacementsMax), "fewer");
  }
  replacements_.emplace_back(from, to);
  return absl::OkStatus();
}

absl::Status Decoder::AddStrip(Json json) {
  constexpr std::string_view kName = "decoder Strip";
  ASSIGN_OR_RETURN(std::string_view content, StringField(json, kName, "content"));
  ASSIGN_OR_RETURN(const int64_t start, IntField(json, kName, "start"));
  ASSIGN_OR_RETURN(const int64_t stop, IntField(json, kName, "stop"));
  // Stripping at the end would hold back what a stream could already give out.
  if (stop != 0) return Unsupported(kName, "stop", std::to_string(stop), "0");
  if (start < 0 || start > kStripMax) {
    return Unsupported(kName, "start", std::to_string(start), "0 to 1000");
  }
  if (CountCodePoints(content) != 1) return Unsupported(kName, "content", content, "1 character");
  rules_.strip_start = std::string(content);
  rules_.strip_start_max = static_cast<int>(start);
  return absl::OkStatus();
}

Decoder::TokenText Decoder::Decode(std::string_view token) const {
  std::string bytes;
  if (byte_level_) {
    for (size_t i = 0; i < token.size();) {
      const CodePoint c = FirstCodePoint(token.substr(i));
      const int byte = alphabet_.ByteOf(c.value);
      // An added token is not written in the alphabet: it stands for itself.
      if (byte < 0) return {std::string(token), false};
      bytes.push_back(static_cast<char>(byte));
      i += c.length;
    }
    return {bytes, false};
  }
  bytes = std::string(token);
  for (const auto& [from, to] : replacements_) {
    for (size_t at = bytes.find(from); at != bytes.npos; at = bytes.find(from, at + to.size())) {
      bytes.replace(at, from.size(), to);
    }
  }
  if (const int byte = ByteOfToken(bytes); rules_.byte_runs && byte >= 0) {
    return {std::string(1, static_cast<char>(byte)), true};
  }
  return {bytes, false};
}

}  // namespace switchyard
