// KV transfer between two processes, GB/s per lane, beside what one core of this machine can copy
// in the same run. usage: kv_benchmark [MiB per transfer, default 256]
//
// A transfer is timed from the first Push until the receiver has answered Commit: staged, hashed,
// moved, copied into place, hashed again and compared. The best of kRepeats counts.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "absl/time/clock.h"
#include "kvtransfer/kv_transfer.h"
#include "kvtransfer/testing.h"
#include "kvtransfer/transport.h"

namespace switchyard {
namespace {

using namespace switchyard::testing;  // NOLINT: the vocabulary of this file

constexpr int kLayers = 16, kRepeats = 5;

KvLayout LayoutOf(uint64_t large) { return large ? LargeLayout(kLayers) : TinyLayout(kLayers); }

KvTarget Target(int n, int blocks) {
  return {{"bench", n}, blocks * 16, ShuffledBlocks(blocks, 3), std::vector<uint32_t>(blocks, 1)};
}

int ReceiverMain(int fd) {
  const std::string lane = ReceiveText(fd);
  const uint64_t large = ReceiveNumber(fd);
  const int blocks = static_cast<int>(ReceiveNumber(fd));
  MonotonicClock clock;
  KvStorage kv(LayoutOf(large), blocks);
  KvReceiverOptions options;
  options.numerics_id = std::string("n");  // GCC 12 misreads the plain literal
  options.lanes = {lane};
  auto receiver =
      KvReceiver::Create(options, &kv, &clock, [](const KvTarget&, bool, absl::Status) {});
  if (!receiver.ok()) return 1;
  auto answer = Hello(receiver->get(), ReceiveHello(fd));
  if (!answer.ok()) return 1;
  SendAnswer(fd, *answer);
  for (int n = 1; n <= kRepeats; ++n) {
    auto session = Open(receiver->get(), answer->peer_token, Target(n, blocks));
    SendNumber(fd, session.ok() ? *session : 0);
    const uint64_t digest = ReceiveNumber(fd);
    auto target = Commit(receiver->get(), answer->peer_token, *session, digest);
    SendText(fd, target.ok() ? "ok" : target.status().ToString());
  }
  return 0;
}

// GB/s of the best run, or 0 with a message.
double MeasureLane(const std::string& lane, KvStorage* kv, bool large) {
  OtherProcess other("receiver");
  SendText(other.fd(), lane);
  SendNumber(other.fd(), large);
  SendNumber(other.fd(), kv->blocks());
  MonotonicClock clock;
  KvSenderOptions options;
  options.lanes = {lane};
  auto sender = KvSender::Create(options, kv, &clock);
  if (!sender.ok()) {
    std::printf("%s: %s\n", lane.c_str(), sender.status().ToString().c_str());
    return 0;
  }
  SendHello(other.fd(), (*sender)->MakeHello());
  const KvHelloAnswer answer = ReceiveAnswer(other.fd());
  (*sender)->Connect(answer);
  const std::vector<BlockId> blocks = ShuffledBlocks(kv->blocks(), 5);
  absl::Duration best = absl::InfiniteDuration();
  for (int n = 1; n <= kRepeats; ++n) {
    const AttemptKey key = {"bench", n};
    const uint64_t session = ReceiveNumber(other.fd());
    SendFuture done = Prepare(sender->get(), key, kv->blocks());
    (*sender)->Begin(key, answer.peer_token, session, std::vector<uint32_t>(kv->blocks(), 1));
    const absl::Time start = absl::Now();
    for (int l = 0; l < kLayers; ++l) (*sender)->Push(key, l, 0, blocks);
    auto result = Await(std::move(done));
    SendNumber(other.fd(), result.ok() ? result->digest : 0);
    const std::string answer_text = ReceiveText(other.fd());
    if (!result.ok() || answer_text != "ok") {
      std::printf("%s: %s; %s\n", lane.c_str(), result.status().ToString().c_str(),
                  answer_text.c_str());
      return 0;
    }
    best = std::min(best, absl::Now() - start);
  }
  return kv->layout().BlockBytesAllLayers() * double(kv->blocks()) / 1e9 /
         absl::ToDoubleSeconds(best);
}

// One thread, block by block in the transfer's order.
template <typename Copy>
double MeasureCopy(const KvStorage& from, const KvStorage& to, Copy copy) {
  const std::vector<BlockId> source = ShuffledBlocks(from.blocks(), 5);
  const std::vector<BlockId> target = ShuffledBlocks(from.blocks(), 3);
  const size_t bytes = from.layout().BlockBytes();
  absl::Duration best = absl::InfiniteDuration();
  for (int n = 0; n < kRepeats; ++n) {
    const absl::Time start = absl::Now();
    for (int l = 0; l < kLayers; ++l) {
      for (size_t i = 0; i < source.size(); ++i) {
        copy(to.Block(l, target[i].value()), from.Block(l, source[i].value()), bytes);
      }
    }
    best = std::min(best, absl::Now() - start);
  }
  return bytes * double(kLayers) * from.blocks() / 1e9 / absl::ToDoubleSeconds(best);
}

int Main(int mib) {
  std::printf("%-8s %-10s %10s %10s %14s %10s %10s\n", "block", "transfer", "memcpy", "NT copy",
              "memcpy+xxh3", "tcp", "shm");
  for (bool large : {false, true}) {
    const KvLayout layout = LayoutOf(large);
    const auto blocks = static_cast<int>((size_t(mib) << 20) / layout.BlockBytesAllLayers());
    KvStorage from(layout, blocks), to(layout, blocks);
    for (int l = 0; l < kLayers; ++l) {
      for (int i = 0; i < blocks; ++i) {
        FillBlock(from, l, BlockId(i), 1, i);
        FillBlock(to, l, BlockId(i), 2, i);
      }
    }
    const double plain =
        MeasureCopy(from, to, [](auto* d, auto* s, size_t n) { std::memcpy(d, s, n); });
    const double streaming = MeasureCopy(from, to, CopyNonTemporal);
    uint64_t sink = 0;
    const double hashed = MeasureCopy(from, to, [&](auto* d, auto* s, size_t n) {
      std::memcpy(d, s, n);
      sink += BlockChecksum({d, n});
    });
    const double tcp = MeasureLane("tcp", &from, large), shm = MeasureLane("shm", &from, large);
    std::printf("%-8zu %6d MiB %10.2f %10.2f %14.2f %10.2f %10.2f   GB/s%s\n", layout.BlockBytes(),
                mib, plain, streaming, hashed, tcp, shm, sink == 1 ? " " : "");
  }
  return 0;
}

}  // namespace
}  // namespace switchyard

int main(int argc, char** argv) {
  auto [role, fd] = switchyard::testing::RoleOf(argc, argv);
  if (role == "receiver") return switchyard::ReceiverMain(fd);
  const int mib = argc > 1 ? std::atoi(argv[1]) : 256;
  if (mib < 1 || mib > 65536) return std::fprintf(stderr, "MiB must be 1 to 65536\n"), 2;
  return switchyard::Main(mib);
}
