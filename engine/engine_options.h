// engine/engine_options.h: what an engine makes of its options.
#pragma once

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "engine/engine.h"
#include "engine/scheduler.h"

namespace switchyard {

// kInvalidArgument names the option, its value and the limits.
absl::Status CheckEngineOption(absl::string_view name, int64_t value, int64_t low, int64_t high);

// Fills in what is 0 and checks the rest.
absl::StatusOr<EngineOptions> ResolveOptions(const Model& model, EngineOptions options);

SchedulerOptions SchedulerOptionsFor(const EngineOptions& options, const Model& model);

}  // namespace switchyard
