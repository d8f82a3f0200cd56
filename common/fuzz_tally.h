// common/fuzz_tally.h: which inputs of a fuzzer came past the parser. Fuzz targets only: whoever
// runs one sees whether it fuzzes what it is there for (tests/fuzz.sh), and its mutator has whole
// inputs to begin with. One thread.
#pragma once

#include <cstdint>
#include <cstdio>
#include <string>
#include <string_view>
#include <vector>

namespace switchyard {

class FuzzTally {
 public:
  // The process's own: libFuzzer calls a fuzzer's entry and its mutator, and nothing of ours.
  static FuzzTally& Get() {
    static FuzzTally tally;
    return tally;
  }
  ~FuzzTally() { std::fprintf(stderr, "reached: %lu of %lu inputs\n", reached_, inputs_); }

  void Count(bool reached, std::string_view input) {
    ++inputs_;
    if (!reached) return;
    ++reached_;
    if (first_.size() < kFirstMax) first_.emplace_back(input);
  }
  // The first that came past: seeds, for the most part.
  const std::vector<std::string>& first() const { return first_; }

 private:
  static constexpr size_t kFirstMax = 64;

  FuzzTally() = default;

  uint64_t inputs_ = 0;
  uint64_t reached_ = 0;
  std::vector<std::string> first_;
};

}  // namespace switchyard
