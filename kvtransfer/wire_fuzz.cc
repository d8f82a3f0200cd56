// Fuzz entry of the wire parsers (clang -fsanitize=fuzzer). The first byte says how much of the
// input is the header. What parses must be within the input and survive being encoded again.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <vector>

#include "common/check.h"
#include "kvtransfer/wire.h"

namespace switchyard {
namespace {

// Few inputs guess a checksum: this one makes a whole frame of what the input says, and cuts it
// somewhere.
void TryWholeFrame(std::span<const std::byte> input) {
  if (input.size() < sizeof(FrameHeader) + 2) return;
  FrameHeader header;
  std::memcpy(static_cast<void*>(&header), input.data(), sizeof(header));
  const auto some_cut = std::to_integer<size_t>(input[sizeof(header)]);
  std::vector<FrameEntry> entries(1 + std::to_integer<size_t>(input[sizeof(header) + 1]) % 7);
  input = input.subspan(sizeof(header) + 2);
  for (FrameEntry& e : entries) {
    if (input.size() < sizeof(e)) return;
    std::memcpy(static_cast<void*>(&e), input.data(), sizeof(e));
    input = input.subspan(sizeof(e));
  }
  std::vector<std::byte> payload(entries.size() * kFrameEntryBytes + input.size());
  const auto encoded = EncodeFrame(header, entries, payload);
  for (const size_t cut : {size_t{0}, some_cut}) {
    const auto whole = std::span(payload).first(payload.size() - std::min(cut, payload.size()));
    const auto frame = ParseFrame(encoded, whole);
    if (!frame.ok()) continue;
    SY_CHECK(frame->entries == entries && frame->blocks.size() <= whole.size());
    for (const std::byte b : frame->blocks) SY_CHECK(b == std::byte{0});  // reads them all
  }
}

}  // namespace
}  // namespace switchyard

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace switchyard;  // NOLINT: a single function
  if (size == 0) return 0;
  std::span<const std::byte> input(reinterpret_cast<const std::byte*>(data) + 1, size - 1);
  TryWholeFrame(input);
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
