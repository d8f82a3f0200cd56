// A fuzzer's entry to what clients send by gRPC: whatever the message holds, it becomes requests
// that are within the model's bounds, or an error.
#include <cstddef>
#include <cstdint>

#include "common/check.h"
#include "common/fuzz_tally.h"
#include "proto/inference.pb.h"
#include "router/fuzz_tokenizer.h"
#include "router/grpc_convert.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace switchyard;  // NOLINT: a single function
  static const ModelDescription model = FuzzModel();
  static const auto tokenizer = FuzzTokenizer();
  const RouterLimits limits;
  v1::GenerateRequest message;
  // What was read of torn bytes is a request, too.
  (void)message.ParseFromArray(data, static_cast<int>(size));
  const auto requests = FromProto(message, model, limits, tokenizer.get());
  FuzzTally::Get().Count(requests.ok(), "");
  if (!requests.ok()) {
    SY_CHECK(absl::IsInvalidArgument(requests.status()));
    return 0;
  }
  SY_CHECK(!requests->empty());
  for (const ClientRequest& r : *requests) {
    SY_CHECK(!r.prompt_ids.empty() && r.max_tokens >= 1 && r.min_tokens <= r.max_tokens);
    SY_CHECK(r.prompt_ids.size() + static_cast<size_t>(r.max_tokens) <= 64);
    SY_CHECK(r.sampling.temperature >= 0 && r.sampling.top_p > 0 && r.sampling.top_k >= 0);
  }
  return 0;
}
