// A fuzzer's entry to what clients send by gRPC: whatever the message holds, it becomes requests
// that are within the model's bounds, or an error.
#include <cstddef>
#include <cstdint>

#include "common/check.h"
#include "proto/inference.pb.h"
#include "router/grpc_convert.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace switchyard;  // NOLINT: a single function
  v1::GenerateRequest message;
  if (!message.ParseFromArray(data, static_cast<int>(size))) return 0;
  ModelDescription model;
  model.id = "m";
  model.vocab_size = 100;
  model.max_model_len = 64;
  const RouterLimits limits;
  auto requests = FromProto(message, model, limits, nullptr);
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
