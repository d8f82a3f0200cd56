// router/validate.h: a client's request against the model and the limits. Pure.
#pragma once

#include "absl/status/status.h"
#include "router/router.h"

namespace switchyard {

// kInvalidArgument names field, value and limit. Brings `request` into the form that workers take:
// max_tokens cut to the context that the prompt leaves, top_k −1 to 0.
absl::Status ValidateRequest(const ModelDescription& model, const RouterLimits& limits,
                             bool has_tokenizer, ClientRequest* request);

}  // namespace switchyard
