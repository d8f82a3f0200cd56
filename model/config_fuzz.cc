// Fuzz entry for config.json: clang++ -fsanitize=fuzzer,address,undefined (docs/building.md).
#include "common/fuzz_tally.h"
#include "model/config.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const auto config = switchyard::ParseModelConfig(text, "");
  switchyard::FuzzTally::Get().Count(config.ok(), text);
  if (config.ok()) {
    (void)config->MakeRopeTable(2);
    (void)config->KvLayoutFor(switchyard::DType::kBfloat16, 16).LayoutId();
  }
  return 0;
}
