#include "bench/scraper.h"

#include <algorithm>

#include "absl/strings/numbers.h"

namespace switchyard {
namespace {
constexpr size_t kSamplesMax = 600;
constexpr absl::Duration kTimeout = absl::Seconds(2);
}  // namespace

std::optional<double> SumOfSeries(std::string_view text, std::string_view name) {
  std::optional<double> sum;
  while (!text.empty()) {
    const size_t end = std::min(text.find('\n'), text.size());
    const std::string_view line = text.substr(0, end);
    text.remove_prefix(std::min(end + 1, text.size()));
    if (!line.starts_with(name) || line.size() == name.size()) continue;
    if (const char next = line[name.size()]; next != '{' && next != ' ') continue;
    const std::string_view number = line.substr(line.rfind(' ') + 1);
    double value = 0;
    if (absl::SimpleAtod(absl::string_view(number.data(), number.size()), &value)) {
      sum = sum.value_or(0) + value;
    }
  }
  return sum;
}

Scraper::Scraper(const std::string& address, const Clock* clock,
                 std::function<void(const std::string&)> failed)
    : client_(address), clock_(clock), on_failure_(std::move(failed)), thread_([this] { Run(); }) {}

Scraper::~Scraper() {
  if (thread_.joinable()) (void)Stop();
}

void Scraper::Run() {
  const absl::Time start = clock_->Now();
  absl::Duration every = absl::Seconds(1);
  for (absl::Time next = start;;) {
    Sample(start);
    if (samples_.size() >= kSamplesMax) {
      for (size_t i = 0; 2 * i < samples_.size(); ++i) samples_[i] = samples_[2 * i];
      samples_.resize((samples_.size() + 1) / 2);
      every *= 2;
    }
    next += every;
    MutexLock lock(mu_);
    while (!stop_ && clock_->Now() < next) wake_.WaitFor(mu_, next - clock_->Now());
    if (stop_) return;
  }
}

void Scraper::Sample(absl::Time start) {
  const absl::StatusOr<std::string> text = client_.Get("/metrics", kTimeout);
  ++readings_;
  if (!text.ok()) return Fail(std::string(text.status().message()));  // a gap in the plot
  const auto sum = [&](const char* name) {
    const auto ours = SumOfSeries(*text, std::string("switchyard_") + name);
    return ours ? ours : SumOfSeries(*text, std::string("vllm:") + name);
  };
  const auto running = sum("num_requests_running");
  if (!running) return Fail("/metrics has no num_requests_running, of switchyard_ or vllm:");
  samples_.push_back({absl::ToDoubleSeconds(clock_->Now() - start), *running,
                      sum("num_requests_waiting").value_or(0),
                      sum("kv_cache_usage_perc").value_or(0)});
}

void Scraper::Fail(const std::string& why) {
  if (failed_++ > 0) return;
  error_ = why;
  if (on_failure_) on_failure_(why);
}

nlohmann::ordered_json Scraper::Stop() {
  {
    MutexLock lock(mu_);
    stop_ = true;
  }
  wake_.NotifyAll();
  thread_.join();
  nlohmann::ordered_json out = {{"readings", readings_}, {"failed", failed_}};
  if (failed_ > 0) out["error"] = error_;
  for (const char* key : {"seconds", "running", "waiting", "kv_usage"}) {
    out[key] = nlohmann::ordered_json::array();
  }
  for (const Point& s : samples_) {
    out["seconds"].push_back(s.seconds);
    out["running"].push_back(s.running);
    out["waiting"].push_back(s.waiting);
    out["kv_usage"].push_back(s.kv_usage);
  }
  return out;
}

}  // namespace switchyard
