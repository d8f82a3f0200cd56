// switchyard top: a running cluster as its router sees it, once a second.
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <map>
#include <thread>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "cli/api_key.h"
#include "cli/command.h"
#include "cli/flags.h"
#include "cluster/grpc_server.h"
#include "common/clock.h"
#include "common/status_macros.h"
#include "proto/inference.grpc.pb.h"

namespace switchyard {
namespace {

constexpr absl::Duration kTimeout = absl::Seconds(5);
constexpr int kBarWidth = 20;

class TopCommand final : public Command {
 public:
  std::string name() const override { return "top"; }
  std::string help() const override { return "shows a running cluster: ranks, queues, KV blocks"; }

  void AddFlags(CLI::App& app) override {
    app.footer(kApiKeyHelp);
    app.add_option("--grpc", address_, "the router")->check(IsAddress())->capture_default_str();
    app.add_option("--interval", interval_seconds_, "seconds")
        ->check(CLI::Range(0.1, 3600.0))
        ->capture_default_str();
    app.add_option("--count", count_, "how often; 0: until interrupted")
        ->check(CLI::Range(0, 1 << 30))
        ->capture_default_str();
  }

  absl::StatusOr<int> Run(const CLI::App&) override {
    const auto stub = v1::Router::NewStub(DialChannel(address_));
    const MonotonicClock clock;
    v1::Load last;
    absl::Time last_at = absl::InfinitePast(), away_since = absl::InfinitePast();
    for (int i = 0; count_ == 0 || i < count_; ++i) {
      if (i > 0)
        std::this_thread::sleep_for(absl::ToChronoNanoseconds(absl::Seconds(interval_seconds_)));
      // Whoever never answered is more likely to have another address than to come.
      const bool known = last_at != absl::InfinitePast();
      absl::StatusOr<v1::Load> load = Ask(*stub, /*wait=*/!known);
      if (!load.ok()) {
        if (!known || !absl::IsUnavailable(load.status())) return load.status();
        if (away_since == absl::InfinitePast()) away_since = absl::Now();
        Show(absl::StrFormat("the router at %s: unreachable since %s\n", address_,
                             absl::FormatTime("%H:%M:%S", away_since, absl::LocalTimeZone())));
        continue;
      }
      away_since = absl::InfinitePast();
      const absl::Time now = clock.Now();
      Show(Picture(*load, last, known ? absl::ToDoubleSeconds(now - last_at) : 0));
      last = *std::move(load);
      last_at = now;
    }
    return 0;
  }

 private:
  // kUnavailable: it does not answer; with `wait` it has kTimeout for that.
  absl::StatusOr<v1::Load> Ask(v1::Router::Stub& stub, bool wait) const {
    grpc::ClientContext context;
    context.set_wait_for_ready(wait);
    context.set_deadline(std::chrono::system_clock::now() + absl::ToChronoMilliseconds(kTimeout));
    SendApiKey(&context);
    v1::Load load;
    const grpc::Status s = stub.GetLoad(&context, {}, &load);
    if (s.error_code() == grpc::StatusCode::DEADLINE_EXCEEDED) {
      return absl::UnavailableError(absl::StrCat(
          "the router at ", address_, " does not answer within ", absl::FormatDuration(kTimeout)));
    }
    RETURN_IF_ERROR(FromGrpc(s));
    return load;
  }
  static void Show(const std::string& picture) {
    // Home and clear: the terminal keeps one picture.
    std::printf("%s%s", isatty(STDOUT_FILENO) ? "\033[H\033[J" : "", picture.c_str());
    std::fflush(stdout);
  }
  // `seconds` since `last`; 0: there is none.
  static std::string Picture(const v1::Load& load, const v1::Load& last, double seconds) {
    std::map<std::string, uint64_t> steps_before;
    for (const v1::WorkerLoad& w : last.workers()) steps_before[w.address()] = w.steps();
    std::string text = absl::StrFormat(
        "requests: %d on ranks, %d waiting\n\n%-8s %-24s %-6s %8s %8s %9s  KV blocks\n",
        load.requests_running(), load.requests_waiting(), "role", "address", "state", "running",
        "waiting", "steps/s");
    for (const v1::WorkerLoad& w : load.workers()) {
      const auto before = steps_before.find(w.address());
      // A rank that was started anew counts from 0.
      const bool known = seconds > 0 && before != steps_before.end() && w.steps() >= before->second;
      const double rate = known ? static_cast<double>(w.steps() - before->second) / seconds : 0;
      absl::StrAppendFormat(&text, "%-8s %-24s %-6s %8d %8d %9.1f  %s\n", w.role(), w.address(),
                            w.alive() ? "alive" : "away", w.running(), w.waiting(), rate,
                            Blocks(w));
    }
    return text;
  }
  static std::string Blocks(const v1::WorkerLoad& w) {
    if (!w.alive() || w.kv_blocks_total() <= 0) return "";
    const int used = std::clamp(w.kv_blocks_total() - w.kv_blocks_free(), 0, w.kv_blocks_total());
    const int filled = static_cast<int>(int64_t{kBarWidth} * used / w.kv_blocks_total());
    std::string text =
        absl::StrCat("[", std::string(filled, '#'), std::string(kBarWidth - filled, '.'), "] ",
                     used, " of ", w.kv_blocks_total());
    if (w.kv_blocks_leased() > 0) absl::StrAppend(&text, ", ", w.kv_blocks_leased(), " leased");
    if (w.kv_blocks_quarantined() > 0) {
      absl::StrAppend(&text, ", ", w.kv_blocks_quarantined(), " quarantined");
    }
    return text;
  }

  std::string address_ = "127.0.0.1:50051";
  double interval_seconds_ = 1;
  int count_ = 0;
};

}  // namespace

std::unique_ptr<Command> MakeTop() { return std::make_unique<TopCommand>(); }

}  // namespace switchyard
