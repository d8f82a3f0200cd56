#include "cli/trace_flags.h"

#include "cli/flags.h"
#include "common/status_macros.h"

namespace switchyard {

void TraceFlags::AddTo(CLI::App& app) {
  app.add_option("--trace-file", file,
                 "append the spans of requests, OpenTelemetry's JSON, a line each")
      ->check(IsWritableFile())
      ->group("Logging");
  app.add_option("--otlp-traces-endpoint", endpoint,
                 "send them to a collector: http://host:4318/v1/traces (OTLP, JSON)")
      ->check(CLI::Validator(
          [](const std::string& url) {
            return std::string(MakeOtlpOutput(url).status().message());
          },
          "URL"))
      ->group("Logging");
}

std::vector<std::string> TraceFlags::Names() { return {"trace-file", "otlp-traces-endpoint"}; }

absl::StatusOr<std::unique_ptr<SpanExport>> TraceFlags::Make(const std::string& role,
                                                             const std::string& name,
                                                             const Clock* clock,
                                                             Logger* log) const {
  std::vector<std::unique_ptr<SpanOutput>> outputs;
  if (!file.empty()) {
    ASSIGN_OR_RETURN(outputs.emplace_back(), OpenSpanFile(file));
  }
  if (!endpoint.empty()) {
    ASSIGN_OR_RETURN(outputs.emplace_back(), MakeOtlpOutput(endpoint));
  }
  if (outputs.empty()) return nullptr;
  return std::make_unique<SpanExport>("switchyard-" + role, name, clock, log, std::move(outputs));
}

}  // namespace switchyard
