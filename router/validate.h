// router/validate.h: a client's request against the model and the limits. Pure.
#pragma once

#include "absl/status/status.h"
#include "router/router.h"

namespace switchyard {

// The payload of an error that is about one field: the field's name.
inline constexpr char kFieldPayload[] = "switchyard/field";

// kInvalidArgument names field, value and limit, and has a kFieldPayload. Brings `request` into the
// form that workers take: max_tokens and min_tokens cut to the context that the prompt leaves,
// top_k −1 to 0.
absl::Status ValidateRequest(const ModelDescription& model, const RouterLimits& limits,
                             bool has_tokenizer, ClientRequest* request);

}  // namespace switchyard
