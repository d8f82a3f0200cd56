// common/net/http_server_stream.h: private to the HTTP server: the bytes of one connection, in
// clear or under TLS.
#pragma once

#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/ssl/context.hpp>
#include <boost/asio/ssl/stream.hpp>
#include <boost/asio/strand.hpp>
#include <memory>
#include <optional>
#include <utility>

#include "absl/status/statusor.h"
#include "common/net/tls.h"

namespace switchyard::http_internal {

// TLS 1.2 or newer. kInvalidArgument says which of the three texts is bad, and why.
absl::StatusOr<std::unique_ptr<boost::asio::ssl::context>> MakeTlsContext(
    const TlsOptions& options);

// Everything on the connection's strand; handlers run there too.
class Stream {
 public:
  using Strand = boost::asio::strand<boost::asio::io_context::executor_type>;
  using Socket = boost::asio::basic_stream_socket<boost::asio::ip::tcp, Strand>;

  // `tls` must outlive it; null: in clear.
  Stream(Socket socket, boost::asio::ssl::context* tls) : socket_(std::move(socket)) {
    if (tls != nullptr) tls_.emplace(socket_, *tls);
  }
  Stream(const Stream&) = delete;

  Strand get_executor() { return socket_.get_executor(); }
  bool has_tls() const { return tls_.has_value(); }

  // Before anything else, if has_tls(). Of all three, `handler` may keep what they use alive.
  template <typename Handler>
  void Handshake(Handler handler) {
    tls_->async_handshake(boost::asio::ssl::stream_base::server, std::move(handler));
  }
  template <typename Buffer, typename Handler>
  void ReadSome(const Buffer& buffer, Handler handler) {
    if (tls_) return tls_->async_read_some(buffer, std::move(handler));
    socket_.async_read_some(buffer, std::move(handler));
  }
  template <typename Buffer, typename Handler>
  void WriteSome(const Buffer& buffer, Handler handler) {
    if (tls_) return tls_->async_write_some(buffer, std::move(handler));
    socket_.async_write_some(buffer, std::move(handler));
  }
  // Says that nothing more will be written; reading goes on.
  template <typename KeepAlive>
  void EndWriting(KeepAlive keep_alive) {
    boost::system::error_code ignored;
    if (!tls_) {
      socket_.shutdown(boost::asio::ip::tcp::socket::shutdown_send, ignored);
      return;
    }
    tls_->async_shutdown([keep_alive](boost::system::error_code) {});
  }
  void Close() {
    boost::system::error_code ignored;
    socket_.close(ignored);
  }

 private:
  Socket socket_;
  std::optional<boost::asio::ssl::stream<Socket&>> tls_;
};

}  // namespace switchyard::http_internal
