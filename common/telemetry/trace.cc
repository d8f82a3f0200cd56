#include "common/telemetry/trace.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <nlohmann/json.hpp>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "common/version.h"

namespace switchyard {
namespace {

using Json = nlohmann::ordered_json;
constexpr size_t kWaitingMax = 1 << 14;

std::string Hex(uint64_t word) { return absl::StrCat(absl::Hex(word, absl::kZeroPad16)); }

// Lower-case digits only, as the standard wants them.
std::optional<uint64_t> ParseHex(std::string_view digits) {
  uint64_t word = 0;
  for (const char c : digits) {
    if (!absl::ascii_isdigit(c) && (c < 'a' || c > 'f')) return std::nullopt;
    word = word << 4 | static_cast<uint64_t>(absl::ascii_isdigit(c) ? c - '0' : c - 'a' + 10);
  }
  return word;
}

Json Attribute(const std::string& key, const std::string& value) {
  return {{"key", key}, {"value", {{"stringValue", value}}}};
}

Json ToJson(const Span& span, absl::Duration since_1970) {
  const auto nanos = [&](absl::Time at) {
    return absl::StrCat(absl::ToInt64Nanoseconds(at - absl::UnixEpoch() + since_1970));
  };
  Json out = {{"traceId", TraceId(span.context)}, {"spanId", Hex(span.context.span)}};
  if (span.parent != 0) out["parentSpanId"] = Hex(span.parent);
  out["name"] = span.name;
  out["kind"] = 1;  // internal
  out["startTimeUnixNano"] = nanos(span.start);
  out["endTimeUnixNano"] = nanos(span.end);
  out["attributes"] = Json::array();
  for (const auto& [key, value] : span.attributes) {
    out["attributes"].push_back(Attribute(key, value));
  }
  if (!span.error.empty()) out["status"] = {{"code", 2}, {"message", span.error}};
  return out;
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

std::string TraceId(const TraceContext& context) {
  return Hex(context.trace_high) + Hex(context.trace_low);
}

absl::StatusOr<std::unique_ptr<SpanFile>> SpanFile::Open(const std::string& path,
                                                         std::string service, const Clock* clock) {
  const int fd = open(path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
  if (fd < 0) return absl::ErrnoToStatus(errno, absl::StrCat("trace file ", path));
  return std::unique_ptr<SpanFile>(new SpanFile(fd, std::move(service), clock));
}

SpanFile::SpanFile(int fd, std::string service, const Clock* clock)
    : fd_(fd),
      service_(std::move(service)),
      since_1970_((absl::Now() - absl::UnixEpoch()) - (clock->Now() - absl::UnixEpoch())),
      spans_(kWaitingMax) {
  std::random_device entropy;
  {
    MutexLock lock(mu_);
    rng_.seed(uint64_t{entropy()} << 32 | entropy());
  }
  thread_ = std::thread([this] { Run(); });
}

SpanFile::~SpanFile() {
  stop_ = true;
  spans_.Close();
  thread_.join();
  close(fd_);
}

TraceContext SpanFile::Begin(const TraceContext& parent) {
  MutexLock lock(mu_);
  TraceContext context = parent;
  if (!parent.valid()) context = {rng_() | 1, rng_(), 0, true};
  context.span = rng_() | 1;
  return context;
}

void SpanFile::Record(Span span) {
  if (!span.context.sampled) return;
  if (!spans_.Post(std::move(span))) ++lost_;
}

void SpanFile::Run() {
  for (bool last = false; !last;) {
    last = stop_;
    const std::vector<Span> spans = spans_.Take(last ? absl::ZeroDuration() : absl::Seconds(1));
    if (spans.empty()) continue;
    Json list = Json::array();
    for (const Span& span : spans) list.push_back(ToJson(span, since_1970_));
    const Json scope = {{"scope", {{"name", "switchyard"}, {"version", kVersion}}},
                        {"spans", std::move(list)}};
    const Json resource = {
        {"resource", {{"attributes", Json::array({Attribute("service.name", service_)})}}},
        {"scopeSpans", Json::array({scope})}};
    const std::string line = Json{{"resourceSpans", Json::array({resource})}}.dump(
                                 -1, ' ', false, Json::error_handler_t::replace) +
                             "\n";
    if (write(fd_, line.data(), line.size()) != static_cast<ssize_t>(line.size())) {
      lost_ += spans.size();
    }
  }
}

}  // namespace switchyard
