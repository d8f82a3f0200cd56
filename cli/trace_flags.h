// cli/trace_flags.h: where the spans of a process go.
#pragma once

#include <CLI/CLI.hpp>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/clock.h"
#include "common/telemetry/span_export.h"

namespace switchyard {

struct TraceFlags {
  std::string file, endpoint;

  void AddTo(CLI::App& app);
  static std::vector<std::string> Names();
  // `role`: router, prefill or decode; `name`: which of them. Null: nothing is traced.
  absl::StatusOr<std::unique_ptr<SpanExport>> Make(const std::string& role, const std::string& name,
                                                   const Clock* clock, Logger* log) const;
};

}  // namespace switchyard
