// Two workers in one process, by real UCX.
#include "common/net/ucx.h"

#include <gtest/gtest.h>
#include <poll.h>
#include <sys/resource.h>

#include <cstring>
#include <fstream>
#include <optional>
#include <string>
#include <vector>

#include "absl/time/clock.h"

namespace switchyard {
namespace {

struct Node {
  explicit Node(const std::string& transport) {
    auto c = UcxContext::Create({.transport = transport, .net_devices = "lo"});
    EXPECT_TRUE(c.ok()) << c.status();
    context = *std::move(c);
    auto w = UcxWorker::Create(context.get());
    EXPECT_TRUE(w.ok()) << w.status();
    worker = *std::move(w);
  }
  std::unique_ptr<UcxContext> context;
  std::unique_ptr<UcxWorker> worker;
};

template <typename Done>
bool Progress(Node* a, Node* b, Done done) {
  const absl::Time deadline = absl::Now() + absl::Seconds(20);
  while (!done()) {
    a->worker->Progress();
    if (b != nullptr) b->worker->Progress();
    if (absl::Now() > deadline) return false;
  }
  return true;
}

std::span<const std::byte> Bytes(const std::string& s) {
  return {reinterpret_cast<const std::byte*>(s.data()), s.size()};
}

TEST(UcxTest, MessagesArriveWholeAndInOrderOverLoopback) {
  Node a("tcp"), b("tcp");
  std::vector<std::string> headers;
  std::vector<size_t> sizes;
  ASSERT_TRUE(b.worker
                  ->SetAmHandler(3,
                                 [&](auto header, auto payload) {
                                   headers.emplace_back(
                                       reinterpret_cast<const char*>(header.data()), header.size());
                                   sizes.push_back(payload.size());
                                 })
                  .ok());
  auto ep = UcxEndpoint::Create(a.worker.get(), b.worker->address(), [](absl::Status) {});
  ASSERT_TRUE(ep.ok()) << ep.status();
  const std::string payload(3 << 20, 'x');
  int done = 0;
  for (size_t n : {size_t{0}, size_t{100}, size_t{70000}, payload.size()}) {
    (*ep)->Send(3, Bytes("h" + std::to_string(n)), Bytes(payload).first(n), [&](absl::Status s) {
      EXPECT_TRUE(s.ok()) << s;
      ++done;
    });
  }
  ASSERT_TRUE(Progress(&a, &b, [&] { return done == 4 && sizes.size() == 4; }));
  EXPECT_EQ(headers, (std::vector<std::string>{"h0", "h100", "h70000", "h3145728"}));
  EXPECT_EQ(sizes, (std::vector<size_t>{0, 100, 70000, 3145728}));
  EXPECT_NE((*ep)->DescribeLanes().find("tcp/lo"), std::string::npos) << (*ep)->DescribeLanes();
}

TEST(UcxTest, MessageWithoutAHandlerIsDropped) {
  Node a("tcp"), b("tcp");
  auto ep = UcxEndpoint::Create(a.worker.get(), b.worker->address(), [](absl::Status) {});
  ASSERT_TRUE(ep.ok());
  (*ep)->Send(UcxWorker::kAmIds - 1, Bytes("h"), {}, [](absl::Status) {});
  int received = 0;
  ASSERT_TRUE(b.worker->SetAmHandler(0, [&](auto, auto) { ++received; }).ok());
  (*ep)->Send(0, Bytes("h"), {}, [](absl::Status) {});
  ASSERT_TRUE(Progress(&a, &b, [&] { return received == 1; }));
}

TEST(UcxTest, PosixContextHasOnlyPosixLanes) {
  Node a("posix"), b("posix");
  auto ep = UcxEndpoint::Create(a.worker.get(), b.worker->address(), [](absl::Status) {});
  ASSERT_TRUE(ep.ok()) << ep.status();
  EXPECT_NE((*ep)->DescribeLanes().find("posix"), std::string::npos) << (*ep)->DescribeLanes();
  EXPECT_EQ((*ep)->DescribeLanes().find("tcp"), std::string::npos) << (*ep)->DescribeLanes();
}

TEST(UcxTest, UnknownDeviceAndTransportAreErrors) {
  EXPECT_EQ(UcxContext::Create({.transport = "tcp", .net_devices = "none7"}).status().code(),
            absl::StatusCode::kUnavailable);
  EXPECT_EQ(UcxContext::Create({.transport = "ib", .net_devices = ""}).status().code(),
            absl::StatusCode::kInvalidArgument);
}

TEST(UcxTest, DamagedAddressIsRefused) {
  Node a("tcp");
  std::string good = a.worker->address();
  for (size_t at = 0; at < good.size(); ++at) {
    std::string bad = good;
    bad[at] ^= 4;
    EXPECT_EQ(UcxEndpoint::Create(a.worker.get(), bad, [](absl::Status) {}).status().code(),
              absl::StatusCode::kInvalidArgument);
  }
  for (const std::string& bad : {std::string(), std::string("x"), std::string(5000, 'x')}) {
    EXPECT_FALSE(UcxEndpoint::Create(a.worker.get(), bad, [](absl::Status) {}).ok());
  }
}

TEST(UcxTest, ErrorCallbackComesOnceWhenThePeerGoes) {
  Node a("tcp");
  std::optional<Node> b("tcp");
  int received = 0, errors = 0;
  ASSERT_TRUE(b->worker->SetAmHandler(1, [&](auto, auto) { ++received; }).ok());
  auto ep = UcxEndpoint::Create(a.worker.get(), b->worker->address(), [&](absl::Status s) {
    EXPECT_EQ(s.code(), absl::StatusCode::kUnavailable) << s;
    ++errors;
  });
  ASSERT_TRUE(ep.ok());
  (*ep)->Send(1, Bytes("h"), {}, [](absl::Status) {});
  ASSERT_TRUE(Progress(&a, &*b, [&] { return received == 1; }));
  b.reset();
  ASSERT_TRUE(Progress(&a, nullptr, [&] { return errors > 0; }));
  // Sends to a lost peer end with an error, and closing does not hang.
  absl::Status last;
  (*ep)->Send(1, Bytes("h"), {}, [&](absl::Status s) { last = s; });
  const absl::Time start = absl::Now();
  ep->reset();
  ASSERT_TRUE(Progress(&a, nullptr, [&] { return !last.ok() && a.worker->closing() == 0; }));
  EXPECT_LT(absl::Now() - start, absl::Seconds(5));
  EXPECT_EQ(errors, 1);
}

TEST(UcxTest, FlushedCloseDeliversWhatWasSent) {
  Node a("tcp"), b("tcp");
  int received = 0;
  ASSERT_TRUE(b.worker->SetAmHandler(1, [&](auto, auto) { ++received; }).ok());
  auto ep = UcxEndpoint::Create(a.worker.get(), b.worker->address(), [](absl::Status) {});
  ASSERT_TRUE(ep.ok());
  const std::string payload(10000, 'x');
  for (int i = 0; i < 20; ++i) (*ep)->Send(1, Bytes("h"), Bytes(payload), [](absl::Status) {});
  (*ep)->Close(/*flush=*/true);
  ASSERT_TRUE(Progress(&a, &b, [&] { return received == 20 && a.worker->closing() == 0; }));
}

// Of all processes: others of the machine may have left some.
// Mappings of this process in /dev/shm, as the kernel tells them.
std::vector<std::string> SharedMemoryMappings() {
  std::vector<std::string> mappings;
  std::ifstream maps("/proc/self/maps");
  for (std::string line; std::getline(maps, line);) {
    if (line.find("/dev/shm/") != line.npos) mappings.push_back(line);
  }
  return mappings;
}

TEST(UcxTest, PeerMapsSharedMemoryThatHasNoName) {
  Node a("posix"), b("posix");
  auto memory = UcxMemory::Create(b.context.get(), 1 << 20);
  ASSERT_TRUE(memory.ok()) << memory.status();
  for (std::byte byte : (*memory)->bytes()) ASSERT_EQ(byte, std::byte{0});
  auto ep = UcxEndpoint::Create(a.worker.get(), b.worker->address(), [](absl::Status) {});
  ASSERT_TRUE(ep.ok()) << ep.status();
  auto mapping = UcxMapping::Create(ep->get(), (*memory)->rkey(),
                                    reinterpret_cast<uint64_t>((*memory)->bytes().data()), 1 << 20);
  ASSERT_TRUE(mapping.ok()) << mapping.status();
  EXPECT_NE((*mapping)->bytes().data(), (*memory)->bytes().data());
  (*mapping)->bytes()[12345] = std::byte{77};
  EXPECT_EQ((*memory)->bytes()[12345], std::byte{77});
  // What has no name cannot be left behind by a SIGKILL.
  const std::vector<std::string> mappings = SharedMemoryMappings();
  EXPECT_FALSE(mappings.empty());
  for (const std::string& mapping : mappings)
    EXPECT_TRUE(mapping.ends_with("(deleted)")) << mapping;
  // The owner lets go; the peer's stores still go to the old pages, which are nobody's.
  memory->reset();
  auto next = UcxMemory::Create(b.context.get(), 1 << 20);
  ASSERT_TRUE(next.ok());
  std::memset((*mapping)->bytes().data(), 0xff, 1 << 20);
  for (std::byte byte : (*next)->bytes()) ASSERT_EQ(byte, std::byte{0});
}

TEST(UcxTest, SleepsUntilAMessageComes) {
  Node a("tcp"), b("tcp");
  int received = 0;
  ASSERT_TRUE(b.worker->SetAmHandler(1, [&](auto, auto) { ++received; }).ok());
  auto ep = UcxEndpoint::Create(a.worker.get(), b.worker->address(), [](absl::Status) {});
  ASSERT_TRUE(ep.ok());
  (*ep)->Send(1, Bytes("h"), {}, [](absl::Status) {});
  ASSERT_TRUE(Progress(&a, &b, [&] { return received == 1; }));
  auto sleep = [&](int ms) {
    while (true) {
      while (b.worker->Progress()) {
      }
      auto armed = b.worker->Arm();
      EXPECT_TRUE(armed.ok()) << armed.status();
      if (*armed) break;
    }
    pollfd fd{b.worker->event_fd(), POLLIN, 0};
    return poll(&fd, 1, ms);
  };
  EXPECT_EQ(sleep(200), 0);
  (*ep)->Send(1, Bytes("h"), {}, [](absl::Status) {});
  EXPECT_EQ(sleep(20000), 1);
  ASSERT_TRUE(Progress(&a, &b, [&] { return received == 2; }));
}

}  // namespace
}  // namespace switchyard
