// Drives the fuzzer's entry from a seeded mutator, so that every test run fuzzes a little.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <random>
#include <string>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

namespace {

const char* const kSeeds[] = {
    R"({"prompt":[1,2,3],"max_tokens":5,"temperature":0.7,"top_p":0.9,"top_k":-1,"seed":7})",
    R"({"prompt":[[1],[2,3]],"echo":true,"logprobs":3,"stop_token_ids":[4,5],"stream":true})",
    R"({"prompt":"text","stop":["a","b"],"stream_options":{"include_usage":true},"n":1})",
    R"({"messages":[{"role":"user","content":[{"type":"text","text":"a"}]}],"logprobs":true})",
    R"({"tokens":[1,2,99],"skip_special_tokens":false,"model":"m","logit_bias":{"1":2}})",
};
const char* const kPieces[] = {"null", "true",    "-1",  "1e999", "18446744073709551616",
                               "[[",   "]]",      "{}",  "\"",    "\\ud800",
                               "\xff", ",",       "0.5", ":",     "{\"",
                               "\\",   "[1,[2]]", "-0"};

TEST(OpenAiFuzzTest, MutatedBodiesAreRequestsOrErrors) {
  constexpr uint32_t kSeed = 20240607;
  SCOPED_TRACE(testing::Message() << "seed " << kSeed);
  std::mt19937 rng(kSeed);
  const auto below = [&rng](size_t n) { return static_cast<size_t>(rng() % n); };
  for (int round = 0; round < 5000; ++round) {
    std::string body = kSeeds[below(std::size(kSeeds))];
    for (size_t edits = below(6); edits > 0 && !body.empty(); --edits) {
      const size_t at = below(body.size());
      switch (below(4)) {
        case 0:
          body[at] = static_cast<char>(rng());
          break;
        case 1:
          body.erase(at, below(8));
          break;
        case 2:
          body.insert(at, kPieces[below(std::size(kPieces))]);
          break;
        default:
          body.replace(at, std::min<size_t>(body.size() - at, 1 + below(4)),
                       kPieces[below(std::size(kPieces))]);
      }
    }
    LLVMFuzzerTestOneInput(reinterpret_cast<const uint8_t*>(body.data()), body.size());
  }
}

}  // namespace
