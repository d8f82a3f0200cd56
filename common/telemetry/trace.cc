#include "common/telemetry/trace.h"

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"

namespace switchyard {
namespace {

// Lower-case digits only, as the standard wants them.
std::optional<uint64_t> ParseHex(std::string_view digits) {
  uint64_t word = 0;
  for (const char c : digits) {
    if (!absl::ascii_isdigit(c) && (c < 'a' || c > 'f')) return std::nullopt;
    word = word << 4 | static_cast<uint64_t>(absl::ascii_isdigit(c) ? c - '0' : c - 'a' + 10);
  }
  return word;
}

}  // namespace

std::optional<TraceContext> ParseTraceparent(std::string_view header) {
  // version-trace-span-flags. A later version may append more.
  if (header.size() < 55 || header[2] != '-' || header[35] != '-' || header[52] != '-') {
    return std::nullopt;
  }
  const std::string_view version = header.substr(0, 2);
  if (version == "ff" || !ParseHex(version)) return std::nullopt;
  if (header.size() > 55 && (version == "00" || header[55] != '-')) return std::nullopt;
  const auto high = ParseHex(header.substr(3, 16)), low = ParseHex(header.substr(19, 16));
  const auto span = ParseHex(header.substr(36, 16)), flags = ParseHex(header.substr(53, 2));
  if (!high || !low || !span || !flags) return std::nullopt;
  const TraceContext context{*high, *low, *span, (*flags & 1) != 0};
  if (!context.valid()) return std::nullopt;
  return context;
}

std::string Traceparent(const TraceContext& context) {
  return absl::StrCat("00-", TraceId(context), "-", SpanId(context.span),
                      context.sampled ? "-01" : "-00");
}

std::string TraceId(const TraceContext& context) {
  return SpanId(context.trace_high) + SpanId(context.trace_low);
}

std::string SpanId(uint64_t span) { return absl::StrCat(absl::Hex(span, absl::kZeroPad16)); }

}  // namespace switchyard
