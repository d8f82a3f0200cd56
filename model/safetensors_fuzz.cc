// Fuzz entry for safetensors headers: clang++ -fsanitize=fuzzer,address,undefined
// (docs/building.md).
#include <algorithm>
#include <cstring>
#include <string>

#include "common/check.h"
#include "common/fuzz_json.h"
#include "common/fuzz_tally.h"
#include "model/safetensors.h"

namespace {

// A file is its header's size, the header, which is JSON, and the tensors' bytes: here as header,
// zero byte, bytes, which is what MutateJson changes.
std::string HeaderAndBytes(const uint8_t* data, size_t size) {
  uint64_t header = 0;
  if (size < sizeof(header)) return "";
  std::memcpy(&header, data, sizeof(header));
  std::string text(reinterpret_cast<const char*>(data) + sizeof(header), size - sizeof(header));
  return text.insert(std::min<uint64_t>(header, text.size()), 1, '\0');
}

}  // namespace

extern "C" size_t LLVMFuzzerCustomMutator(uint8_t* data, size_t size, size_t size_max,
                                          unsigned seed) {
  std::string text = HeaderAndBytes(data, size);
  if (text.empty() || seed % 8 == 0) return LLVMFuzzerMutate(data, size, size_max);
  size = text.size();
  text.resize(std::max(size_max, size));
  auto* bytes = reinterpret_cast<uint8_t*>(text.data());
  text.resize(switchyard::MutateJson(bytes, size, text.size(), seed, nullptr));
  const uint64_t header = std::min(text.find('\0'), text.size());
  if (header < text.size()) text.erase(header, 1);
  if (sizeof(header) + text.size() > size_max) return LLVMFuzzerMutate(data, 0, size_max);
  std::memcpy(data, &header, sizeof(header));
  std::memcpy(data + sizeof(header), text.data(), text.size());
  return sizeof(header) + text.size();
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const auto file = std::as_bytes(std::span(data, size));
  const auto header = switchyard::ParseSafetensors(file, "fuzz");
  switchyard::FuzzTally::Get().Count(header.ok(), HeaderAndBytes(data, size));
  if (header.ok()) {
    for (const auto& [name, t] : header->tensors) {
      SY_CHECK(t.begin <= t.end && t.end <= size - header->data_begin);
    }
  }
  return 0;
}
