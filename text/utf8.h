// text/utf8.h: reading UTF-8 that may be broken (Unicode 15, table 3-7). Pure functions.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace switchyard {

struct Utf8Sequence {
  enum Kind { kValid, kInvalid, kIncomplete };
  Kind kind;
  // Bytes: of the character, of the maximal invalid subpart (at least 1), or all that is there.
  size_t length;
};

// What `bytes`, not empty, begin with. kIncomplete: more bytes could still make a character.
Utf8Sequence ReadUtf8(std::string_view bytes);

// The offset of the first byte that is not UTF-8, or npos.
size_t FindInvalidUtf8(std::string_view bytes);

// Appends `bytes` to *out, each maximal invalid subpart as one U+FFFD. Returns how many bytes were
// used: all if `final`, else all but an incomplete character at the end.
size_t AppendLossyUtf8(std::string_view bytes, bool final, std::string* out);

struct CodePoint {
  char32_t value;
  size_t length;  // bytes
};
// The first character of `text`: valid UTF-8, not empty.
CodePoint FirstCodePoint(std::string_view text);
// The offset at which the last character of `text` begins: valid UTF-8, not empty.
size_t LastCodePointOffset(std::string_view text);
size_t CountCodePoints(std::string_view text);

// Appends `c`; values that are no Unicode scalar become U+FFFD.
void AppendUtf8(char32_t c, std::string* out);

// What an error message says of `text`: all of it, or its first characters and its size.
std::string Shortened(std::string_view text);

// Unicode's White_Space property.
bool IsWhiteSpace(char32_t c);

}  // namespace switchyard
