#include "bench/peer_text.h"

#include <sys/socket.h>

#include <cstdint>

namespace switchyard {
namespace {

constexpr size_t kTextMax = 1 << 20;

}  // namespace

bool SendText(int fd, const std::string& text) {
  const uint64_t size = text.size();
  return send(fd, &size, sizeof size, MSG_NOSIGNAL) == sizeof size &&
         send(fd, text.data(), size, MSG_NOSIGNAL) == static_cast<ssize_t>(size);
}

std::string ReceiveText(int fd) {
  uint64_t size = 0;
  if (recv(fd, &size, sizeof size, MSG_WAITALL) != sizeof size || size > kTextMax) return "";
  std::string text(size, '\0');
  if (size > 0 && recv(fd, text.data(), size, MSG_WAITALL) != static_cast<ssize_t>(size)) return "";
  return text;
}

}  // namespace switchyard
