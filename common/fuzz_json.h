// common/fuzz_json.h: a mutator for fuzzers whose input is JSON, optionally followed by a zero byte
// and a text. Most changes are of the parsed tree, so that most inputs parse and the fuzzer reaches
// what reads the fields; one in eight is of the raw bytes, for the parser. Fuzz targets only.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <nlohmann/json.hpp>

// libFuzzer's own: changes the bytes, returns their new number.
extern "C" size_t LLVMFuzzerMutate(uint8_t* data, size_t size, size_t size_max);

namespace switchyard {

// What LLVMFuzzerCustomMutator is to do with its arguments. `repair`, if any, makes a changed tree
// one that agrees with itself, seven times of eight. Targets that link //common:fuzz_json_mutator
// need not define it.
size_t MutateJson(uint8_t* data, size_t size, size_t size_max, unsigned seed,
                  const std::function<void(nlohmann::ordered_json*)>& repair);

}  // namespace switchyard
