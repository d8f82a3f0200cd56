// Fuzz entry for safetensors headers: clang++ -fsanitize=fuzzer,address,undefined
// (docs/building.md).
#include "common/check.h"
#include "model/safetensors.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const auto file = std::as_bytes(std::span(data, size));
  const auto header = switchyard::ParseSafetensors(file, "fuzz");
  if (header.ok()) {
    for (const auto& [name, t] : header->tensors) {
      SY_CHECK(t.begin <= t.end && t.end <= size - header->data_begin);
    }
  }
  return 0;
}
