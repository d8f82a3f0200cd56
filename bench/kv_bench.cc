#include "bench/kv_bench.h"

#include <sched.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <map>
#include <numeric>
#include <random>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "bench/kv_ways.h"
#include "bench/peer_text.h"
#include "bench/spread.h"
#include "common/clock.h"
#include "common/status_macros.h"
#include "kvtransfer/lane.h"
#include "kvtransfer/wire.h"

namespace switchyard {
namespace {

using Json = nlohmann::ordered_json;

constexpr const char* kWays[] = {"shm", "raw shm", "put posix", "tcp", "put tcp", "socket"};
struct Ratio {
  const char *name, *over, *under;
};
constexpr Ratio kRatios[] = {{"raw shm / put posix", "raw shm", "put posix"},
                             {"raw shm / NT copy", "raw shm", "NT copy"},
                             {"shm / raw shm", "shm", "raw shm"},
                             {"tcp / put tcp", "tcp", "put tcp"},
                             {"tcp / socket", "tcp", "socket"}};

// Each end of a lane to a core of its own, where there are two: else the ends of a lane may share
// one for a while, and one run would not compare with the next.
void Pin(bool sender) {
  cpu_set_t allowed, mine;
  if (sched_getaffinity(0, sizeof allowed, &allowed) != 0) return;
  int first = -1, last = -1;
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (!CPU_ISSET(cpu, &allowed)) continue;
    if (first < 0) first = cpu;
    last = cpu;
  }
  CPU_ZERO(&mine);
  CPU_SET(sender ? first : last, &mine);
  (void)sched_setaffinity(0, sizeof mine, &mine);  // without it the ranges are wider
}

std::vector<BlockId> Shuffled(int n, uint64_t seed) {
  std::vector<BlockId> blocks;
  for (int i = 0; i < n; ++i) blocks.push_back(BlockId(i));
  std::shuffle(blocks.begin(), blocks.end(), std::mt19937_64(seed));
  return blocks;
}

KvPages PagesOf(const BenchKvOptions& o, int block_bytes) {
  KvPages pages;
  pages.layout = {.kind = KvLayout::Kind::kMla,
                  .layers = o.layers,
                  .k_dim = block_bytes / 32,  // 16 tokens of BF16
                  .v_dim = block_bytes / 64};
  const auto blocks = static_cast<int>((size_t(o.mib) << 20) / pages.layout.BlockBytesAllLayers());
  pages.from = Shuffled(blocks, 5);
  pages.to = Shuffled(blocks, 3);
  return pages;
}

// The first word of block i of the prompt in a layer.
uint64_t Word(int layer, size_t i) { return uint64_t(layer) << 32 | (i + 1); }

template <typename Each>
void ForEachWord(const KvPages& pages, const std::vector<BlockId>& places, Each each) {
  for (int l = 0; l < pages.layout.layers; ++l) {
    for (size_t i = 0; i < places.size(); ++i) each(l, places[i], Word(l, i));
  }
}

bool Holds(const KvPages& pages, const std::byte* cache) {
  const size_t bytes = pages.layout.BlockBytes();
  bool holds = true;
  ForEachWord(pages, pages.to, [&](int layer, BlockId block, uint64_t word) {
    const size_t at = (static_cast<size_t>(layer) * pages.to.size() + block.value()) * bytes;
    holds &= std::memcmp(cache + at, &word, sizeof word) == 0;
  });
  return holds;
}

// ---- the other process: for each size, each way is made, tried, and then moves when told to
absl::Status Receive(const BenchKvOptions& o, int fd) {
  for (const int block_bytes : o.block_bytes) {
    const KvPages pages = PagesOf(o, block_bytes);
    std::map<std::string, std::unique_ptr<KvWay>> ways;
    for (std::string name; !(name = ReceiveText(fd)).empty() && name != "next";) {
      std::unique_ptr<KvWay>& way = ways[name];
      const bool first = way == nullptr;
      if (first) {
        ASSIGN_OR_RETURN(way, MakeKvWay(name, /*sender=*/false, fd, pages, nullptr));
      }
      RETURN_IF_ERROR(way->Move());
      if (first && way->received() != nullptr && !Holds(pages, way->received())) {
        return absl::DataLossError(name + ": blocks that arrived are not those that were sent");
      }
    }
  }
  return absl::OkStatus();
}

// ---- this process
class Sender {
 public:
  Sender(const KvPages& pages, int fd)
      : pages_(pages),
        fd_(fd),
        kv_(pages.layout, static_cast<int>(pages.from.size())),
        other_(pages.layout, static_cast<int>(pages.from.size())) {
    std::memset(kv_.Layer(0), 1, pages.bytes());
    std::memset(other_.Layer(0), 1, pages.bytes());
    ForEachWord(pages, pages.from, [&](int layer, BlockId block, uint64_t word) {
      std::memcpy(kv_.Block(layer, block.value()), &word, sizeof word);
    });
  }

  absl::Status Make() {
    for (const char* name : kWays) {
      SendText(fd_, name);
      ASSIGN_OR_RETURN(ways_[name], MakeKvWay(name, /*sender=*/true, fd_, pages_, &kv_));
      RETURN_IF_ERROR(ways_[name]->Move());
    }
    return absl::OkStatus();
  }

  // Bytes per second of everything, once.
  absl::StatusOr<std::map<std::string, double>> Turn() {
    std::map<std::string, double> speeds;
    for (const char* name : kWays) {
      SendText(fd_, name);
      absl::Status status;
      speeds[name] = Speed([&] { status = ways_.at(name)->Move(); });
      RETURN_IF_ERROR(status);
    }
    speeds["memcpy"] =
        Speed([&] { Copy([](auto* d, auto* s, size_t n) { std::memcpy(d, s, n); }); });
    speeds["NT copy"] = Speed([&] {
      Copy(CopyNonTemporal);
      FenceStores();
    });
    speeds["memcpy + xxh3"] = Speed([&] {
      Copy([&](auto* d, auto* s, size_t n) {
        std::memcpy(d, s, n);
        sink_ += BlockChecksum({d, n});
      });
    });
    return speeds;
  }

 private:
  template <typename Work>
  double Speed(Work work) {
    const absl::Time start = clock_.Now();
    work();
    return static_cast<double>(pages_.bytes()) / absl::ToDoubleSeconds(clock_.Now() - start);
  }
  // One thread, block by block in the transfer's order.
  template <typename CopyOne>
  void Copy(CopyOne copy) {
    const size_t bytes = pages_.layout.BlockBytes();
    for (int l = 0; l < pages_.layout.layers; ++l) {
      for (size_t i = 0; i < pages_.from.size(); ++i) {
        copy(other_.Block(l, pages_.to[i].value()), kv_.Block(l, pages_.from[i].value()), bytes);
      }
    }
  }

  const KvPages& pages_;
  const int fd_;
  MonotonicClock clock_;
  KvStorage kv_, other_;
  std::map<std::string, std::unique_ptr<KvWay>> ways_;
  uint64_t sink_ = 0;
};

absl::StatusOr<Json> MeasureSize(const BenchKvOptions& o, int block_bytes, int fd) {
  const KvPages pages = PagesOf(o, block_bytes);
  Sender sender(pages, fd);
  RETURN_IF_ERROR(sender.Make());
  std::map<std::string, std::vector<double>> speeds;
  for (int turn = 0; turn < o.turns; ++turn) {
    ASSIGN_OR_RETURN(const auto once, sender.Turn());
    for (const auto& [name, speed] : once) speeds[name].push_back(speed);
  }
  SendText(fd, "next");
  Json report = {
      {"block_bytes", block_bytes}, {"gb_per_s", Json::object()}, {"ratios", Json::object()}};
  std::string line = absl::StrFormat("blocks of %d bytes, GB/s:", block_bytes);
  for (const auto& [name, values] : speeds) {
    report["gb_per_s"][name] = Median(values) / 1e9;
    absl::StrAppendFormat(&line, "  %s %.2f", name, Median(values) / 1e9);
  }
  if (o.progress) o.progress(line);
  for (const Ratio& ratio : kRatios) {
    std::vector<double> values;
    for (int t = 0; t < o.turns; ++t) {
      values.push_back(speeds[ratio.over][t] / speeds[ratio.under][t]);
    }
    const Spread s = Summarise(std::move(values));
    report["ratios"][ratio.name] = {{"median", s.median}, {"min", s.lowest}, {"max", s.highest}};
    if (o.progress) {
      o.progress(absl::StrFormat("  %-20s %.2f (%.2f to %.2f)", ratio.name, s.median, s.lowest,
                                 s.highest));
    }
  }
  return report;
}

}  // namespace

absl::StatusOr<Json> RunBenchKv(const BenchKvOptions& o) {
  for (const int bytes : o.block_bytes) {
    if (bytes % 64 != 0 || (int64_t{o.mib} << 20) < int64_t{bytes} * o.layers) {
      return absl::InvalidArgumentError(absl::StrCat("block_bytes is ", bytes,
                                                     ", must be a multiple of 64, and ", o.layers,
                                                     " layers of it fit into ", o.mib, " MiB"));
    }
  }
  int fds[2];
  if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) != 0) {
    return absl::ErrnoToStatus(errno, "socketpair");
  }
  const pid_t pid = fork();
  if (pid < 0) return absl::ErrnoToStatus(errno, "fork");
  if (pid == 0) {
    close(fds[0]);
    Pin(/*sender=*/false);
    const absl::Status status = Receive(o, fds[1]);
    if (!status.ok()) SendText(fds[1], status.ToString());
    _exit(status.ok() ? 0 : 1);
  }
  close(fds[1]);
  Pin(/*sender=*/true);
  Json sizes = Json::array();
  absl::Status status;
  for (const int block_bytes : o.block_bytes) {
    absl::StatusOr<Json> one = MeasureSize(o, block_bytes, fds[0]);
    status = one.status();
    if (!status.ok()) break;
    sizes.push_back(*std::move(one));
  }
  if (!status.ok()) kill(pid, SIGKILL);
  close(fds[0]);
  waitpid(pid, nullptr, 0);
  RETURN_IF_ERROR(status);
  return Json{{"mib", o.mib}, {"layers", o.layers}, {"turns", o.turns}, {"sizes", sizes}};
}

}  // namespace switchyard
