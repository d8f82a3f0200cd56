// router/grpc_convert.h: the messages of inference.proto to and from the core's structs.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "proto/inference.pb.h"
#include "router/router.h"

namespace switchyard {

// Tokenizes a text prompt; one checked request (validate.h) per answer that is wanted.
// kInvalidArgument names field, value and limit.
absl::StatusOr<std::vector<ClientRequest>> FromProto(const v1::GenerateRequest& request,
                                                     const ModelDescription& model,
                                                     const RouterLimits& limits,
                                                     const Tokenizer* tokenizer);
// `with_logprobs`: whether the request asked for them. An update with an error has no message of
// its own.
v1::GenerateResponse ToProto(const ClientUpdate& update, const std::string& request_id,
                             bool with_logprobs, const Tokenizer* tokenizer);
v1::ModelInfo ToProto(const ModelDescription& model, bool has_tokenizer);
v1::Load ToProto(const RouterStatus& status);

}  // namespace switchyard
