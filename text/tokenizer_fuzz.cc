// Fuzz entry: a tokenizer.json from anywhere, and a text for it after the first zero byte.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "text/tokenizer.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view input(reinterpret_cast<const char*>(data), size);
  const size_t zero = std::min(input.find('\0'), size);
  const auto tokenizer = switchyard::Tokenizer::Parse(input.substr(0, zero));
  if (!tokenizer.ok()) return 0;
  const auto ids = (*tokenizer)->Encode(input.substr(std::min(zero + 1, size)), true);
  if (ids.ok()) (void)(*tokenizer)->Decode(*ids, false);
  return 0;
}
