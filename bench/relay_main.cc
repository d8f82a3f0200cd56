// What the router adds: the same load on a worker that only emits tokens, directly and through the
// router, in turns, or together: the machine's noise is then in both alike.
// usage: relay_main WORKER ROUTER ROUTER_PID RATE REQUESTS INPUT OUTPUT ROUNDS [together]
// ROUTER: host:port of its gRPC, or http://host:port
//
// Prints the differences of percentiles round by round, and the tokens that the router relayed per
// second of its CPU time.
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "bench/serve.h"
#include "bench/spread.h"
#include "bench/worker_backend.h"
#include "common/clock.h"

namespace switchyard {
namespace {

// utime + stime of /proc/PID/stat, the 14th and 15th field; the second one may hold spaces.
double CpuSeconds(const std::string& pid) {
  std::ifstream file("/proc/" + pid + "/stat");
  std::string line;
  std::getline(file, line);
  line.erase(0, std::min(line.size(), line.rfind(')') + 2));
  unsigned long user = 0, kernel = 0;
  std::sscanf(line.c_str(), "%*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %lu %lu", &user, &kernel);
  return static_cast<double>(user + kernel) / static_cast<double>(sysconf(_SC_CLK_TCK));
}

using Report = absl::StatusOr<nlohmann::ordered_json>;

// Both loads, each of its own seed: one after the other, or at once.
std::pair<Report, Report> RunBoth(const BenchServeOptions& options, LoadBackend& direct,
                                  LoadBackend& routed, const Clock* clock, bool together) {
  BenchServeOptions other = options;
  other.workload.seed = ~options.workload.seed;
  Report first;
  std::thread thread([&] { first = RunBenchServe(options, direct, clock); });
  if (!together) thread.join();
  Report second = RunBenchServe(other, routed, clock);
  if (together) thread.join();
  return {std::move(first), std::move(second)};
}

int Main(char** argv, bool together) {
  const std::string worker = argv[1], router = argv[2], router_pid = argv[3];
  BenchServeOptions options;
  options.workload.request_rate = std::atof(argv[4]);
  options.workload.prompts = std::atoi(argv[5]);
  options.workload.input_len = std::atoi(argv[6]);
  options.workload.output_len = std::atoi(argv[7]);
  options.report.percentiles = {50, 99};
  const MonotonicClock clock;
  options.backend.address = worker;
  const auto direct_backend = MakeWorkerBackend(options.backend, &clock);
  constexpr std::string_view kHttp = "http://";
  options.backend.address = router;
  if (router.starts_with(kHttp)) {
    options.openai = true;
    options.backend.address = router.substr(kHttp.size());
  }
  const auto routed_backend = MakeBackend(options, &clock);
  const std::vector<std::string> figures = {"median_ttft_ms", "p99_ttft_ms", "median_itl_ms",
                                            "p99_itl_ms"};
  std::vector<std::vector<double>> added(figures.size());
  std::vector<double> per_core;
  for (int round = 0; round < std::atoi(argv[8]); ++round) {
    options.workload.seed = static_cast<uint64_t>(round);
    const double cpu = CpuSeconds(router_pid);
    const auto [direct, routed] =
        RunBoth(options, *direct_backend, *routed_backend, &clock, together);
    const double used = CpuSeconds(router_pid) - cpu;
    for (const auto* report : {&direct, &routed}) {
      if (!report->ok()) {
        std::fprintf(stderr, "%s\n", report->status().ToString().c_str());
        return 1;
      }
      std::printf("%s: %s %lld failed, %.0f tokens/s", report == &direct ? "direct" : "routed",
                  (**report)["verdict"].get<std::string>().c_str(),
                  (**report)["failed"].get<long long>(),
                  (**report)["output_throughput"].get<double>());
      for (const std::string& f : figures) {
        std::printf(", %s %.3f", f.c_str(), (**report)[f].get<double>());
      }
      std::printf("\n");
    }
    for (size_t i = 0; i < figures.size(); ++i) {
      added[i].push_back((*routed)[figures[i]].get<double>() - (*direct)[figures[i]].get<double>());
    }
    per_core.push_back((*routed)["total_output_tokens"].get<double>() / std::max(used, 1e-3));
  }
  for (size_t i = 0; i < figures.size(); ++i) {
    std::printf("added to %s: %.3f\n", figures[i].c_str(), Median(added[i]));
  }
  std::printf("relayed per second of the router's CPU time: %.0f tokens\n", Median(per_core));
  return 0;
}

}  // namespace
}  // namespace switchyard

int main(int argc, char** argv) {
  const bool together = argc == 10 && std::string_view(argv[9]) == "together";
  if (argc == 9 || together) return switchyard::Main(argv, together);
  std::fputs(
      "usage: relay_main WORKER ROUTER ROUTER_PID RATE REQUESTS INPUT OUTPUT ROUNDS [together]\n",
      stderr);
  return 2;
}
