// common/net/http_server_test_client.h: for tests of HTTP servers.
#pragma once

#include <boost/asio.hpp>
#include <chrono>
#include <functional>
#include <string>
#include <string_view>
#include <thread>
#include <utility>

namespace switchyard {

// A client that speaks bytes: what a test needs to send is often not HTTP. Reads give up after 10
// s.
class HttpTestClient {
 public:
  explicit HttpTestClient(int port) : socket_(io_) {
    socket_.connect({boost::asio::ip::address_v4::loopback(), static_cast<uint16_t>(port)});
    const timeval limit = {.tv_sec = 10, .tv_usec = 0};
    setsockopt(socket_.native_handle(), SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
  }
  void Send(std::string_view bytes) {
    boost::system::error_code ignored;  // the server may have closed: the answer tells
    boost::asio::write(socket_, boost::asio::buffer(bytes.data(), bytes.size()), ignored);
  }
  // What arrives until `end` does, or the connection's end.
  std::string ReadUntil(std::string_view end) {
    while (in_.find(end) == std::string::npos) {
      if (!ReadSome()) return std::exchange(in_, "");
    }
    const size_t size = in_.find(end) + end.size();
    std::string out = in_.substr(0, size);
    in_.erase(0, size);
    return out;
  }
  std::string ReadAll() {
    while (ReadSome()) {
    }
    return std::exchange(in_, "");
  }
  // One answer with a Content-Length.
  std::string ReadResponse() {
    std::string out = ReadUntil("\r\n\r\n");
    const size_t at = out.find("Content-Length: ");
    if (at == std::string::npos) return out;
    const size_t length = std::stoul(out.substr(at + 16));
    while (in_.size() < length && ReadSome()) {
    }
    out += in_.substr(0, length);
    in_.erase(0, length);
    return out;
  }
  void Close() { socket_.close(); }

 private:
  bool ReadSome() {
    char bytes[65536];
    const ssize_t n = ::recv(socket_.native_handle(), bytes, sizeof(bytes), 0);
    if (n > 0) in_.append(bytes, static_cast<size_t>(n));
    return n > 0;
  }

  boost::asio::io_context io_;
  boost::asio::ip::tcp::socket socket_;
  std::string in_;
};

inline bool Eventually(const std::function<bool()>& condition) {
  for (int i = 0; i < 1000; ++i) {
    if (condition()) return true;
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  return false;
}

}  // namespace switchyard
