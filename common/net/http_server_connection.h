// common/net/http_server_connection.h: private to the HTTP server: one connection, and what all of
// them share.
#pragma once

#include <array>
#include <atomic>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ssl/context.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/http/parser.hpp>
#include <boost/beast/http/string_body.hpp>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "common/mutex.h"
#include "common/net/http_server.h"
#include "common/net/http_server_stream.h"

namespace switchyard::http_internal {

class Connection;

// Lives as long as the last connection or responder, which may be longer than the server.
struct Shared {
  HttpServerOptions options;
  std::vector<HttpRoute> routes;
  boost::asio::io_context io;
  std::unique_ptr<boost::asio::ssl::context> tls;  // null: in clear
  std::atomic<bool> draining = false;
  std::atomic<size_t> bodies_bytes = 0;  // that connections have in memory
  std::atomic<size_t> answers_bytes = 0;
  Mutex mu;
  bool stopping ABSL_GUARDED_BY(mu) = false;
  CondVar none_left;
  std::map<Connection*, std::weak_ptr<Connection>> connections ABSL_GUARDED_BY(mu);
};

// What is marked "strand" runs or is touched on the connection's strand alone; what responders
// share with it is under mu_.
class Connection : public std::enable_shared_from_this<Connection> {
 public:
  // `refuse`: too many connections; answers 503 and closes.
  Connection(std::shared_ptr<Shared> shared, Stream::Socket socket, bool refuse);
  ~Connection();

  // Any thread.
  void Start();
  void Drain();  // close once the present answer is out
  void Cut();    // close now
  bool answering();

  // What a responder calls, on any thread. `exchange` numbers the connection's requests: the
  // responder of an earlier one reaches nobody.
  bool Begin(uint64_t exchange, HttpResponse response, bool stream);
  bool Write(uint64_t exchange, std::string_view piece);
  void End(uint64_t exchange);
  void OnDisconnect(uint64_t exchange, std::function<void()> on_disconnect);
  bool Run(std::function<void()> work);
  void Abandon(uint64_t exchange);

 private:
  using Parser = boost::beast::http::request_parser<boost::beast::http::string_body>;
  enum class Answer { kNone, kAwaited, kStreaming, kComplete };

  // Strand.
  void Begun();  // the first request may come
  void ExpectRequest();
  void Read();
  void OnRead(boost::system::error_code error, size_t bytes);
  void OnPeerGone();
  void Parse();
  void OnRequest();
  HttpRequest Head() const;
  // What a request gets whose body nobody needs; null: *handler is its.
  std::optional<HttpResponse> Refusal(const HttpRequest& head, const HttpHandler** handler) const;
  std::optional<HttpResponse> EarlyRefusal();
  void CountBody(size_t bytes);
  void Reject(HttpResponse response, std::string cors_headers = "");
  void Flush();
  void SendSome();
  void AnswerComplete();
  void Linger();
  void Close();
  void OnTimeout(const boost::asio::steady_timer* timer);
  void Arm(boost::asio::steady_timer* timer, absl::Duration timeout);
  static void Disarm(boost::asio::steady_timer* timer);

  // Of the whole answer that is not taken; 0: none.
  void CountAnswer(size_t bytes) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void PostFlush() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  std::string HeadOf(const HttpResponse& response, bool stream) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void AppendPiece(std::string_view piece) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  const std::shared_ptr<Shared> shared_;
  const bool refuse_;

  // Strand. A read fills read_bytes_, never buffer_, so parsing need not wait for a read to end.
  Stream socket_;
  boost::asio::steady_timer read_timer_, write_timer_;
  std::array<char, 16 << 10> read_bytes_;
  boost::beast::flat_buffer buffer_;
  std::optional<Parser> parser_;
  bool awaits_request_ = false;  // what arrives belongs to parser_'s request
  bool continue_sent_ = false;
  bool head_checked_ = false;
  size_t body_bytes_ = 0;  // of parser_'s request, as the sum in shared_ has them
  bool reading_ = false;   // a read is pending
  bool lingering_ = false;
  bool closed_ = false;
  std::string writing_;  // of the pending write; empty: none is pending
  size_t written_ = 0;   // bytes of it that the client took

  Mutex mu_;
  uint64_t exchange_ ABSL_GUARDED_BY(mu_) = 0;
  Answer answer_ ABSL_GUARDED_BY(mu_) = Answer::kNone;
  bool gone_ ABSL_GUARDED_BY(mu_) = false;
  bool keep_alive_ ABSL_GUARDED_BY(mu_) = true;
  bool head_only_ ABSL_GUARDED_BY(mu_) = false;  // the request was a HEAD
  bool http10_ ABSL_GUARDED_BY(mu_) = false;
  std::string cors_headers_ ABSL_GUARDED_BY(mu_);  // lines of the answer to this request
  bool flush_posted_ ABSL_GUARDED_BY(mu_) = false;
  std::string out_ ABSL_GUARDED_BY(mu_);  // waits for the pending write
  size_t in_flight_bytes_ ABSL_GUARDED_BY(mu_) = 0;
  size_t answer_bytes_ ABSL_GUARDED_BY(mu_) = 0;  // as the sum in shared_ has them
  std::function<void()> on_disconnect_ ABSL_GUARDED_BY(mu_);
};

std::shared_ptr<HttpResponder> MakeResponder(std::shared_ptr<Connection> connection,
                                             uint64_t exchange);

}  // namespace switchyard::http_internal
