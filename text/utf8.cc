#include "text/utf8.h"

#include <algorithm>

namespace switchyard {

Utf8Sequence ReadUtf8(std::string_view bytes) {
  const auto at = [&](size_t i) { return static_cast<unsigned char>(bytes[i]); };
  const unsigned char lead = at(0);
  if (lead < 0x80) return {Utf8Sequence::kValid, 1};
  if (lead < 0xc2 || lead > 0xf4) return {Utf8Sequence::kInvalid, 1};
  const size_t length = lead < 0xe0 ? 2 : lead < 0xf0 ? 3 : 4;
  // The second byte's range excludes overlong forms, surrogates and values past U+10FFFF.
  unsigned char low = lead == 0xe0 ? 0xa0 : lead == 0xf0 ? 0x90 : 0x80;
  unsigned char high = lead == 0xed ? 0x9f : lead == 0xf4 ? 0x8f : 0xbf;
  for (size_t i = 1; i < length; ++i) {
    if (i == bytes.size()) return {Utf8Sequence::kIncomplete, i};
    if (at(i) < low || at(i) > high) return {Utf8Sequence::kInvalid, i};
    low = 0x80;
    high = 0xbf;
  }
  return {Utf8Sequence::kValid, length};
}

size_t FindInvalidUtf8(std::string_view bytes) {
  for (size_t i = 0; i < bytes.size();) {
    const Utf8Sequence s = ReadUtf8(bytes.substr(i));
    if (s.kind != Utf8Sequence::kValid) return i;
    i += s.length;
  }
  return std::string_view::npos;
}

size_t AppendLossyUtf8(std::string_view bytes, bool final, std::string* out) {
  size_t i = 0;
  while (i < bytes.size()) {
    const Utf8Sequence s = ReadUtf8(bytes.substr(i));
    if (s.kind == Utf8Sequence::kIncomplete && !final) break;
    out->append(s.kind == Utf8Sequence::kValid ? bytes.substr(i, s.length) : "\uFFFD");
    i += s.length;
  }
  return i;
}

CodePoint FirstCodePoint(std::string_view text) {
  const unsigned char lead = static_cast<unsigned char>(text[0]);
  if (lead < 0x80) return {lead, 1};
  const size_t length = lead < 0xe0 ? 2 : lead < 0xf0 ? 3 : 4;
  char32_t value = lead & (0x7f >> length);
  for (size_t i = 1; i < length; ++i) {
    value = value << 6 | (static_cast<unsigned char>(text[i]) & 0x3f);
  }
  return {value, length};
}

size_t LastCodePointOffset(std::string_view text) {
  size_t i = text.size() - 1;
  while (i > 0 && (text[i] & 0xc0) == 0x80) --i;
  return i;
}

size_t CountCodePoints(std::string_view text) {
  return std::count_if(text.begin(), text.end(), [](char c) { return (c & 0xc0) != 0x80; });
}

void AppendUtf8(char32_t c, std::string* out) {
  if (c > 0x10ffff || (c >= 0xd800 && c < 0xe000)) c = 0xfffd;
  if (c < 0x80) {
    out->push_back(static_cast<char>(c));
    return;
  }
  const int tail = c < 0x800 ? 1 : c < 0x10000 ? 2 : 3;
  const int lead_mark = tail == 1 ? 0xc0 : tail == 2 ? 0xe0 : 0xf0;
  out->push_back(static_cast<char>(lead_mark | c >> (6 * tail)));
  for (int i = tail - 1; i >= 0; --i) {
    out->push_back(static_cast<char>(0x80 | (c >> (6 * i) & 0x3f)));
  }
}

std::string Shortened(std::string_view text) {
  constexpr size_t kShownBytes = 64;
  if (text.size() <= kShownBytes) return std::string(text);
  size_t end = kShownBytes;
  while (end > 0 && (static_cast<unsigned char>(text[end]) & 0xc0) == 0x80) --end;
  return std::string(text.substr(0, end)) + "… (" + std::to_string(text.size()) + " bytes)";
}

bool IsWhiteSpace(char32_t c) {
  return (c >= 0x9 && c <= 0xd) || c == 0x20 || c == 0x85 || c == 0xa0 || c == 0x1680 ||
         (c >= 0x2000 && c <= 0x200a) || c == 0x2028 || c == 0x2029 || c == 0x202f || c == 0x205f ||
         c == 0x3000;
}

}  // namespace switchyard
