#include "bench/scraper.h"

#include <algorithm>

#include "absl/strings/numbers.h"

namespace switchyard {
namespace {
constexpr size_t kSamplesMax = 600;
constexpr absl::Duration kTimeout = absl::Seconds(2);
}  // namespace

double SumOfSeries(std::string_view text, std::string_view name) {
  double sum = 0;
  while (!text.empty()) {
    const size_t end = std::min(text.find('\n'), text.size());
    const std::string_view line = text.substr(0, end);
    text.remove_prefix(std::min(end + 1, text.size()));
    if (!line.starts_with(name) || line.size() == name.size()) continue;
    if (const char next = line[name.size()]; next != '{' && next != ' ') continue;
    const std::string_view number = line.substr(line.rfind(' ') + 1);
    double value = 0;
    if (absl::SimpleAtod(absl::string_view(number.data(), number.size()), &value)) sum += value;
  }
  return sum;
}

Scraper::Scraper(const std::string& address, const Clock* clock)
    : client_(address), clock_(clock), thread_([this] { Run(); }) {}

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
  if (!text.ok()) return;  // a gap in the plot
  const auto sum = [&](const char* name) {
    return SumOfSeries(*text, std::string("switchyard_") + name) +
           SumOfSeries(*text, std::string("vllm:") + name);
  };
  samples_.push_back({absl::ToDoubleSeconds(clock_->Now() - start), sum("num_requests_running"),
                      sum("num_requests_waiting"), sum("kv_cache_usage_perc")});
}

nlohmann::ordered_json Scraper::Stop() {
  {
    MutexLock lock(mu_);
    stop_ = true;
  }
  wake_.NotifyAll();
  thread_.join();
  nlohmann::ordered_json out;
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
