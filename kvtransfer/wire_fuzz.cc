// Fuzz entry of the wire parsers (clang -fsanitize=fuzzer). The first byte says how much of the
// input is the header. What parses must be within the input and survive being encoded again.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "common/check.h"
#include "kvtransfer/wire.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace switchyard;  // NOLINT: a single function
  if (size == 0) return 0;
  std::span<const std::byte> input(reinterpret_cast<const std::byte*>(data) + 1, size - 1);
  const size_t header_bytes = std::min<size_t>(data[0], input.size());
  auto header = input.first(header_bytes);
  auto payload = input.subspan(header_bytes);
  if (auto credit = ParseCredit(input); credit.ok()) {
    SY_CHECK(std::ranges::equal(EncodeCredit(*credit), input));
  }
  if (auto frame = ParseFrame(header, payload); frame.ok()) {
    std::vector<std::byte> entries(frame->entries.size() * kFrameEntryBytes);
    SY_CHECK(frame->blocks.size() <= payload.size());
    SY_CHECK(std::ranges::equal(EncodeFrame(frame->header, frame->entries, entries), header));
    SY_CHECK(std::ranges::equal(entries, payload.first(entries.size())));
  }
  return 0;
}
