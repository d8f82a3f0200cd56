#include "common/telemetry/span_export.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <nlohmann/json.hpp>
#include <thread>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/notification.h"
#include "common/mailbox.h"
#include "common/net/http_client.h"
#include "common/random_word.h"
#include "common/version.h"

namespace switchyard {
namespace {

using Json = nlohmann::ordered_json;
constexpr size_t kWaitingMax = 1 << 14;  // spans in a queue
constexpr size_t kRequestSpansMax = 512;
constexpr int kTries = 3;
constexpr absl::Duration kBatch = absl::Seconds(1), kRetryEvery = absl::Seconds(1);
constexpr absl::Duration kPostTimeout = absl::Seconds(2);

Json Attribute(const std::string& key, const std::string& value) {
  return {{"key", key}, {"value", {{"stringValue", value}}}};
}

Json ToJson(const Span& span, absl::Duration since_1970) {
  const auto nanos = [&](absl::Time at) {
    return absl::StrCat(absl::ToInt64Nanoseconds(at - absl::UnixEpoch() + since_1970));
  };
  Json out = {{"traceId", TraceId(span.context)}, {"spanId", SpanId(span.context.span)}};
  if (span.parent != 0) out["parentSpanId"] = SpanId(span.parent);
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

class FileOutput final : public SpanOutput {
 public:
  FileOutput(int fd, const std::string& path) : fd_(fd), path_(path) {}
  ~FileOutput() override { close(fd_); }
  absl::Status Write(const std::string& request) override {
    const std::string line = absl::StrCat(torn_ ? "\n" : "", request, "\n");
    const ssize_t n = write(fd_, line.data(), line.size());
    if (n >= 0) torn_ = n < static_cast<ssize_t>(line.size());
    if (n >= 0 && !torn_) return absl::OkStatus();
    return n < 0 ? absl::ErrnoToStatus(errno, path_) : absl::DataLossError(path_ + ": cut short");
  }
  const std::string& name() const override { return path_; }

 private:
  const int fd_;
  const std::string path_;
  bool torn_ = false;  // the last line has no end: the next one must not be glued to it
};

class OtlpOutput final : public SpanOutput {
 public:
  OtlpOutput(const std::string& url, const std::string& address, std::string path)
      : url_(url), path_(std::move(path)), client_(address) {}
  absl::Status Write(const std::string& request) override {
    const absl::StatusOr<int> code = client_.Post(path_, request, kPostTimeout);
    if (!code.ok()) return absl::UnavailableError(code.status().message());
    if (*code / 100 == 2) return absl::OkStatus();
    const std::string text = absl::StrCat("status ", *code);
    const bool again = *code == 429 || (*code >= 502 && *code <= 504);  // as the protocol has it
    return again ? absl::UnavailableError(text) : absl::InvalidArgumentError(text);
  }
  const std::string& name() const override { return url_; }

 private:
  const std::string url_, path_;
  HttpClient client_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<SpanOutput>> OpenSpanFile(const std::string& path) {
  const int fd = open(path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
  if (fd < 0) return absl::ErrnoToStatus(errno, absl::StrCat("trace file ", path));
  return std::make_unique<FileOutput>(fd, path);
}

absl::StatusOr<std::unique_ptr<SpanOutput>> MakeOtlpOutput(const std::string& url) {
  constexpr std::string_view kScheme = "http://";
  const size_t slash = std::min(url.find('/', kScheme.size()), url.size());
  if (!url.starts_with(kScheme) || slash <= kScheme.size()) {
    return absl::InvalidArgumentError(
        absl::StrCat("traces endpoint ", url, ": http://host[:port][/path] is wanted"));
  }
  const std::string path = url.substr(slash);
  return std::make_unique<OtlpOutput>(url, url.substr(kScheme.size(), slash - kScheme.size()),
                                      path.size() < 2 ? "/v1/traces" : path);
}

// One output, its queue and its thread.
class SpanExport::Lane {
 public:
  Lane(Json resource, absl::Duration since_1970, std::atomic<uint64_t>* lost, Logger* log,
       std::unique_ptr<SpanOutput> output)
      : resource_(std::move(resource)),
        since_1970_(since_1970),
        lost_(*lost),
        log_(log),
        output_(std::move(output)),
        thread_([this] { Run(); }) {}
  ~Lane() {
    stop_.Notify();
    spans_.Close();
    thread_.join();
  }
  void Record(std::shared_ptr<const Span> span) {
    if (!spans_.Post(std::move(span))) ++lost_;
  }

 private:
  using Spans = std::vector<std::shared_ptr<const Span>>;

  void Run() {
    for (bool last = false; !last;) {
      last = stop_.HasBeenNotified();
      const Spans spans = spans_.Take(last ? absl::ZeroDuration() : kBatch);
      for (size_t done = 0; done < spans.size();) {
        const size_t n = std::min(kRequestSpansMax, spans.size() - done);
        const absl::Status status = Write(Request(spans, done, n));
        Tell(status);
        // Nobody waits at the end for a collector that is away.
        const size_t given_up = !status.ok() && last ? spans.size() - done : n;
        if (!status.ok()) lost_ += given_up;
        done += given_up;
      }
    }
  }
  absl::Status Write(const std::string& request) {
    absl::Status status = output_->Write(request);
    for (int i = 1; i < kTries && absl::IsUnavailable(status); ++i) {
      if (stop_.WaitForNotificationWithTimeout(kRetryEvery)) break;
      status = output_->Write(request);
    }
    return status;
  }
  std::string Request(const Spans& spans, size_t begin, size_t count) const {
    Json list = Json::array();
    for (size_t i = begin; i < begin + count; ++i) list.push_back(ToJson(*spans[i], since_1970_));
    const Json scope = {{"scope", {{"name", "switchyard"}, {"version", kVersion}}},
                        {"spans", std::move(list)}};
    const Json resource = {{"resource", resource_}, {"scopeSpans", Json::array({scope})}};
    return Json{{"resourceSpans", Json::array({resource})}}.dump(-1, ' ', false,
                                                                 Json::error_handler_t::replace);
  }
  // Once for each time that it fails or works again.
  void Tell(const absl::Status& status) {
    if (status.ok() == well_ || log_ == nullptr) return;
    well_ = status.ok();
    if (well_) return log_->Info("spans are taken again", {{"by", output_->name()}});
    log_->Warning("spans are lost", {{"to", output_->name()}, {"why", status.message()}});
  }

  const Json resource_;
  const absl::Duration since_1970_;  // of the clock's zero
  std::atomic<uint64_t>& lost_;
  Logger* const log_;
  const std::unique_ptr<SpanOutput> output_;
  bool well_ = true;
  absl::Notification stop_;
  Mailbox<std::shared_ptr<const Span>> spans_{kWaitingMax};
  std::thread thread_;
};

SpanExport::SpanExport(std::string service, std::string instance, const Clock* clock, Logger* log,
                       std::vector<std::unique_ptr<SpanOutput>> outputs) {
  {
    MutexLock lock(mu_);
    rng_.seed(RandomWord());
  }
  const Json resource = {
      {"attributes",
       {Attribute("service.name", service), Attribute("service.instance.id", instance)}}};
  const absl::Duration since_1970 =
      (absl::Now() - absl::UnixEpoch()) - (clock->Now() - absl::UnixEpoch());
  for (std::unique_ptr<SpanOutput>& output : outputs) {
    lanes_.push_back(std::make_unique<Lane>(resource, since_1970, &lost_, log, std::move(output)));
  }
}

SpanExport::~SpanExport() = default;

TraceContext SpanExport::Begin(const TraceContext& parent) {
  MutexLock lock(mu_);
  TraceContext context = parent;
  if (!parent.valid()) context = {rng_() | 1, rng_(), 0, true};
  context.span = rng_() | 1;
  return context;
}

void SpanExport::Record(Span span) {
  if (!span.context.sampled) return;
  const auto shared = std::make_shared<const Span>(std::move(span));
  for (const auto& lane : lanes_) lane->Record(shared);
}

}  // namespace switchyard
