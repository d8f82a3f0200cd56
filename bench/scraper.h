// bench/scraper.h: a server's queue depths over the time of a test, from its /metrics.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "common/clock.h"
#include "common/mutex.h"
#include "common/net/http_client.h"

namespace switchyard {

// The sum of a gauge's series in Prometheus' text format; 0 if there are none.
double SumOfSeries(std::string_view text, std::string_view name);

// Reads once a second on a thread of its own; beyond 600 samples every other one is left out.
class Scraper {
 public:
  // `clock` must outlive it.
  Scraper(const std::string& address, const Clock* clock);
  ~Scraper();
  // {"seconds": […], "running": […], "waiting": […], "kv_usage": […]}: ours or vLLM's names.
  nlohmann::ordered_json Stop();

 private:
  struct Point {
    double seconds, running, waiting, kv_usage;
  };
  void Run();
  void Sample(absl::Time start);

  HttpClient client_;
  const Clock* const clock_;
  Mutex mu_;
  CondVar wake_;
  bool stop_ ABSL_GUARDED_BY(mu_) = false;
  std::vector<Point> samples_;  // the thread's, until it ends
  std::thread thread_;
};

}  // namespace switchyard
