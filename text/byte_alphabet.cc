#include "text/byte_alphabet.h"

namespace switchyard {

ByteAlphabet::ByteAlphabet() {
  bytes_.fill(-1);
  char32_t next = 0x100;
  for (int b = 0; b < 256; ++b) {
    const bool printable = (b >= 0x21 && b <= 0x7e) || (b >= 0xa1 && b != 0xad);
    chars_[b] = printable ? b : next++;
    bytes_[chars_[b]] = b;
  }
}

}  // namespace switchyard
