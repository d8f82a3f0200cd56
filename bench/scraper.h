// bench/scraper.h: a server's queue depths over the time of a test, from its /metrics.
#pragma once

#include <functional>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "common/clock.h"
#include "common/mutex.h"
#include "common/net/http_client.h"

namespace switchyard {

// The sum of a gauge's series in Prometheus' text format; nullopt: there are none.
std::optional<double> SumOfSeries(std::string_view text, std::string_view name);

// Reads once a second on a thread of its own; beyond 600 samples every other one is left out.
class Scraper {
 public:
  // `clock` must outlive it. `failed`: called at most once, on its thread, with why the first
  // reading that failed did; may be empty.
  Scraper(const std::string& address, const Clock* clock,
          std::function<void(const std::string& why)> failed);
  ~Scraper();
  // {"readings", "failed", "seconds": […], "running": […], "waiting": […], "kv_usage": […]}: ours
  // or vLLM's names. Of failed readings also the first one's "error".
  nlohmann::ordered_json Stop();

 private:
  struct Point {
    double seconds, running, waiting, kv_usage;
  };
  void Run();
  void Sample(absl::Time start);
  void Fail(const std::string& why);

  HttpClient client_;
  const Clock* const clock_;
  const std::function<void(const std::string&)> on_failure_;
  Mutex mu_;
  CondVar wake_;
  bool stop_ ABSL_GUARDED_BY(mu_) = false;
  // The thread's, until it ends:
  std::vector<Point> samples_;
  int64_t readings_ = 0, failed_ = 0;
  std::string error_;
  std::thread thread_;
};

}  // namespace switchyard
