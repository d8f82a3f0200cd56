// libFuzzer calls this if it is linked.
#include "common/fuzz_json.h"

extern "C" size_t LLVMFuzzerCustomMutator(uint8_t* data, size_t size, size_t size_max,
                                          unsigned seed) {
  return switchyard::MutateJson(data, size, size_max, seed, nullptr);
}
