#include "common/net/http_client.h"

#include <boost/asio/connect.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/post.hpp>
#include <boost/beast/core.hpp>
#include <boost/beast/http.hpp>
#include <future>
#include <optional>
#include <set>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"

namespace switchyard {
namespace {

namespace asio = boost::asio;
namespace beast = boost::beast;
namespace http = beast::http;
using Error = beast::error_code;
constexpr size_t kIdleMax = 1024;  // kept connections

absl::Status FromError(const Error& e, const char* what) {
  const std::string text = absl::StrCat(what, ": ", e.message());
  if (e == beast::error::timeout) return absl::DeadlineExceededError(text);
  if (e == asio::error::operation_aborted) return absl::CancelledError(text);
  if (e.category() == http::make_error_code(http::error::bad_version).category() &&
      e != http::error::end_of_stream && e != http::error::partial_message) {
    return absl::InvalidArgumentError(text);
  }
  return absl::UnavailableError(text);
}

}  // namespace

struct HttpClient::Impl : std::enable_shared_from_this<HttpClient::Impl> {
  class Call;

  Impl(const std::string& address, const std::string& api_key) : resolver(io) {
    const size_t colon = address.rfind(':');
    host = address.substr(0, colon);
    port = colon == std::string::npos ? "80" : address.substr(colon + 1);
    if (host.starts_with('[') && host.ends_with(']')) host = host.substr(1, host.size() - 2);
    if (!api_key.empty()) authorization = "Bearer " + api_key;
  }

  asio::io_context io{1};
  std::optional<asio::executor_work_guard<asio::io_context::executor_type>> work{
      asio::make_work_guard(io)};
  asio::ip::tcp::resolver resolver;
  std::string host, port, authorization;
  // The thread's:
  std::vector<std::unique_ptr<beast::tcp_stream>> idle;
  std::set<std::shared_ptr<Call>> calls;
  std::thread thread;  // last
};

// connect (or take a kept connection) → write → read pieces → end.
class HttpClient::Impl::Call : public std::enable_shared_from_this<HttpClient::Impl::Call> {
 public:
  Call(std::shared_ptr<Impl> client, HttpCall call)
      : client_(std::move(client)), call_(std::move(call)), deadline_(Deadline(call_.timeout)) {}

  void Start() {
    if (call_.on_start) call_.on_start();
    request_.method_string(call_.method);
    request_.target(call_.path);
    request_.version(11);
    request_.set(http::field::host, client_->host);
    request_.set(http::field::user_agent, "switchyard");
    if (!client_->authorization.empty()) {
      request_.set(http::field::authorization, client_->authorization);
    }
    if (!call_.body.empty()) request_.set(http::field::content_type, "application/json");
    request_.body() = std::move(call_.body);
    request_.prepare_payload();
    parser_.body_limit(call_.bytes_max);
    if (!client_->idle.empty()) {
      stream_ = std::move(client_->idle.back());
      client_->idle.pop_back();
      kept_ = true;
      return Write();
    }
    Connect();
  }
  void Cancel() {
    cancelled_ = true;
    if (stream_ != nullptr) stream_->cancel();
  }

 private:
  static std::chrono::steady_clock::time_point Deadline(absl::Duration d) {
    return std::chrono::steady_clock::now() +
           absl::ToChronoNanoseconds(std::min(d, absl::Hours(24)));
  }

  void Connect() {
    kept_ = false;
    stream_ = std::make_unique<beast::tcp_stream>(client_->io);
    client_->resolver.async_resolve(
        client_->host, client_->port,
        [self = shared_from_this()](const Error& e,
                                    const asio::ip::tcp::resolver::results_type& found) {
          if (self->Failed(e, "resolve")) return;
          self->stream_->expires_at(self->deadline_);
          self->stream_->async_connect(
              found, [self](const Error& error, const asio::ip::tcp::endpoint&) {
                if (self->Failed(error, "connect")) return;
                Error ignored;
                self->stream_->socket().set_option(asio::ip::tcp::no_delay(true), ignored);
                self->Write();
              });
        });
  }

  void Write() {
    stream_->expires_at(deadline_);
    http::async_write(*stream_, request_, [self = shared_from_this()](const Error& e, size_t) {
      if (!self->Retried(e) && !self->Failed(e, "write")) self->Read();
    });
  }

  void Read() {
    http::async_read_some(*stream_, buffer_, parser_,
                          [self = shared_from_this()](const Error& e, size_t) { self->OnRead(e); });
  }

  void OnRead(const Error& e) {
    if (Retried(e)) return;
    std::string& body = parser_.get().body();
    if (!body.empty()) {
      if (call_.on_piece && !call_.on_piece(body)) Cancel();
      body.clear();
    }
    if (Failed(e, "read")) return;
    if (!parser_.is_done()) {
      // While there is always more to read, the stream's own timer gets no turn.
      if (std::chrono::steady_clock::now() < deadline_) return Read();
      return End(FromError(beast::error::timeout, "read"));
    }
    if (parser_.get().keep_alive() && client_->idle.size() < kIdleMax) {
      client_->idle.push_back(std::move(stream_));
    }
    End(static_cast<int>(parser_.get().result_int()));
  }

  // A kept connection that the server has closed meanwhile: once more, on a new one.
  bool Retried(const Error& e) {
    const bool closed = e == http::error::end_of_stream || e == asio::error::connection_reset ||
                        e == asio::error::broken_pipe;
    if (!kept_ || !closed || parser_.got_some() || cancelled_) return false;
    buffer_.clear();
    Connect();
    return true;
  }
  bool Failed(const Error& e, const char* what) {
    if (cancelled_) {
      End(absl::CancelledError("cancelled"));
      return true;
    }
    if (!e) return false;
    End(FromError(e, what));
    return true;
  }
  void End(absl::StatusOr<int> result) {
    if (std::exchange(ended_, true)) return;
    client_->calls.erase(shared_from_this());
    call_.on_end(std::move(result));
  }

  const std::shared_ptr<Impl> client_;
  HttpCall call_;
  const std::chrono::steady_clock::time_point deadline_;
  std::unique_ptr<beast::tcp_stream> stream_;
  http::request<http::string_body> request_;
  beast::flat_buffer buffer_;
  http::response_parser<http::string_body> parser_;
  bool kept_ = false, cancelled_ = false, ended_ = false;
};

HttpClient::HttpClient(const std::string& address, const std::string& api_key)
    : impl_(std::make_shared<Impl>(address, api_key)) {
  impl_->thread = std::thread([impl = impl_.get()] { impl->io.run(); });
}

HttpClient::~HttpClient() {
  CancelAll();
  asio::post(impl_->io, [impl = impl_.get()] {
    impl->idle.clear();
    impl->work.reset();
  });
  impl_->thread.join();
}

void HttpClient::Start(HttpCall call) {
  asio::post(impl_->io, [impl = impl_, call = std::move(call)]() mutable {
    auto running = std::make_shared<Impl::Call>(impl, std::move(call));
    impl->calls.insert(running);
    running->Start();
  });
}

void HttpClient::CancelAll() {
  asio::post(impl_->io, [impl = impl_.get()] {
    for (const auto& call : impl->calls) call->Cancel();
  });
}

absl::StatusOr<int> HttpClient::Wait(HttpCall call) {
  auto done = std::make_shared<std::promise<absl::StatusOr<int>>>();
  auto result = done->get_future();
  call.on_end = [done](absl::StatusOr<int> status) { done->set_value(std::move(status)); };
  Start(std::move(call));
  return result.get();
}

absl::StatusOr<std::string> HttpClient::Get(const std::string& path, absl::Duration timeout,
                                            size_t bytes_max) {
  std::string body;
  HttpCall call;
  call.path = path;
  call.timeout = timeout;
  call.bytes_max = bytes_max;
  call.on_piece = [&body](std::string_view piece) {
    body.append(piece);
    return true;
  };
  ASSIGN_OR_RETURN(const int status, Wait(std::move(call)));
  if (status != 200) return absl::NotFoundError(absl::StrCat(path, ": status ", status));
  return body;
}

absl::StatusOr<int> HttpClient::Post(const std::string& path, std::string body,
                                     absl::Duration timeout) {
  HttpCall call;
  call.method = "POST";
  call.path = path;
  call.body = std::move(body);
  call.timeout = timeout;
  call.bytes_max = 64 << 10;
  return Wait(std::move(call));
}

}  // namespace switchyard
