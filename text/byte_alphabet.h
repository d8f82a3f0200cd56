// text/byte_alphabet.h: GPT-2's printable stand-in for every byte, in which byte-level
// vocabularies are written: printable Latin-1 stands for itself, the other 68 bytes for U+0100 on.
#pragma once

#include <array>
#include <string_view>

namespace switchyard {

class ByteAlphabet {
 public:
  ByteAlphabet();
  char32_t CharOf(unsigned char byte) const { return chars_[byte]; }
  // The byte that `c` stands for, or -1.
  int ByteOf(char32_t c) const { return c < bytes_.size() ? bytes_[c] : -1; }

 private:
  std::array<char32_t, 256> chars_;
  std::array<int, 0x100 + 68> bytes_;
};

}  // namespace switchyard
