#include "bench/raw_pipe.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <utility>

namespace switchyard {
namespace {

class SocketPipe final : public Pipe {
 public:
  explicit SocketPipe(int fd) : fd_(fd) {}
  ~SocketPipe() override { close(fd_); }
  size_t Write(const std::byte* from, size_t bytes) override {
    return Count(send(fd_, from, bytes, MSG_DONTWAIT | MSG_NOSIGNAL));
  }
  size_t Read(std::byte* to, size_t bytes) override {
    return Count(recv(fd_, to, bytes, MSG_DONTWAIT));
  }

 private:
  static size_t Count(ssize_t n) { return n > 0 ? static_cast<size_t>(n) : 0; }
  const int fd_;
};

std::unique_ptr<Pipe> SocketOf(int fd) {
  if (fd < 0) return nullptr;
  const int one = 1;
  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
  return std::make_unique<SocketPipe>(fd);
}

sockaddr_in Loopback(uint16_t port) {
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(port);
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  return address;
}

}  // namespace

absl::StatusOr<LoopbackListener> LoopbackListener::Create() {
  sockaddr_in address = Loopback(0);
  socklen_t size = sizeof address;
  auto* const any = reinterpret_cast<sockaddr*>(&address);
  const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (fd < 0 || bind(fd, any, size) != 0 || listen(fd, 1) != 0 ||
      getsockname(fd, any, &size) != 0) {
    const absl::Status status = absl::ErrnoToStatus(errno, "loopback socket");
    if (fd >= 0) close(fd);
    return status;
  }
  return LoopbackListener(fd, ntohs(address.sin_port));
}

LoopbackListener::LoopbackListener(LoopbackListener&& other) noexcept
    : fd_(std::exchange(other.fd_, -1)), port_(other.port_) {}

LoopbackListener::~LoopbackListener() {
  if (fd_ >= 0) close(fd_);
}

std::unique_ptr<Pipe> LoopbackListener::Accept() const {
  pollfd wait = {fd_, POLLIN, 0};
  return poll(&wait, 1, 10'000) == 1 ? SocketOf(accept(fd_, nullptr, nullptr)) : nullptr;
}

std::unique_ptr<Pipe> ConnectLoopback(uint16_t port) {
  const sockaddr_in address = Loopback(port);
  const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (fd < 0) return nullptr;
  if (connect(fd, reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) {
    close(fd);
    return nullptr;
  }
  return SocketOf(fd);
}

}  // namespace switchyard
