// What a responder, on any thread, does to its connection.
#include <boost/asio/post.hpp>
#include <boost/beast/http/status.hpp>
#include <exception>

#include "absl/strings/str_cat.h"
#include "common/net/http_server_connection.h"

namespace switchyard::http_internal {
namespace {

namespace asio = boost::asio;
namespace http = boost::beast::http;

constexpr size_t kSmallAnswer = 64 << 10;  // of 1,024 connections: 64 MiB

class Responder final : public HttpResponder {
 public:
  Responder(std::shared_ptr<Connection> connection, uint64_t exchange)
      : connection_(std::move(connection)), exchange_(exchange) {}
  ~Responder() override { connection_->Abandon(exchange_); }
  bool Send(HttpResponse response) override {
    return connection_->Begin(exchange_, std::move(response), /*stream=*/false);
  }
  bool StartStream(HttpResponse response) override {
    return connection_->Begin(exchange_, std::move(response), /*stream=*/true);
  }
  bool Write(std::string_view piece) override { return connection_->Write(exchange_, piece); }
  void End() override { connection_->End(exchange_); }
  void OnDisconnect(std::function<void()> on_disconnect) override {
    connection_->OnDisconnect(exchange_, std::move(on_disconnect));
  }
  bool Run(std::function<void()> work) override { return connection_->Run(std::move(work)); }

 private:
  const std::shared_ptr<Connection> connection_;
  const uint64_t exchange_;
};

}  // namespace

std::shared_ptr<HttpResponder> MakeResponder(std::shared_ptr<Connection> connection,
                                             uint64_t exchange) {
  return std::make_shared<Responder>(std::move(connection), exchange);
}

std::string Connection::HeadOf(const HttpResponse& response, bool stream) {
  const auto status = http::obsolete_reason(static_cast<http::status>(response.status));
  std::string head = absl::StrCat("HTTP/1.1 ", response.status, " ",
                                  std::string(status.data(), status.size()), "\r\n");
  if (!response.content_type.empty()) {
    absl::StrAppend(&head, "Content-Type: ", response.content_type, "\r\n");
  }
  if (!stream && response.status != 204) {
    absl::StrAppend(&head, "Content-Length: ", response.body.size(), "\r\n");
  } else if (stream && !http10_) {
    head += "Transfer-Encoding: chunked\r\n";
  }
  for (const auto& [name, value] : response.headers) {
    absl::StrAppend(&head, name, ": ", value, "\r\n");
  }
  head += cors_headers_;
  if (!keep_alive_) {
    head += "Connection: close\r\n";
  } else if (http10_) {
    head += "Connection: keep-alive\r\n";
  }
  return head + "\r\n";
}

void Connection::AppendPiece(std::string_view piece) {
  if (piece.empty()) return;  // an empty chunk would end the stream
  if (http10_) {
    out_ += piece;
  } else {
    absl::StrAppend(&out_, absl::Hex(piece.size()), "\r\n",
                    absl::string_view(piece.data(), piece.size()), "\r\n");
  }
}

void Connection::CountAnswer(size_t bytes) {
  shared_->answers_bytes += bytes - answer_bytes_;  // modulo 2^64
  answer_bytes_ = bytes;
}

bool Connection::Begin(uint64_t exchange, HttpResponse response, bool stream) {
  std::function<void()> unused;  // destroyed after the lock: may hold the last responder
  MutexLock lock(mu_);
  if (gone_ || exchange != exchange_ || answer_ != Answer::kAwaited) return false;
  if (!stream && !head_only_) {
    CountAnswer(response.body.size());
    const size_t waiting = shared_->answers_bytes;
    if (answer_bytes_ > kSmallAnswer && waiting > shared_->options.answers_bytes_max) {
      response = HttpError(
          503, absl::StrCat("answers of ", waiting, " bytes wait for their clients to take them"),
          "server_error");
      CountAnswer(response.body.size());
    }
  }
  keep_alive_ = keep_alive_ && !shared_->draining && !(stream && http10_);
  out_ += HeadOf(response, stream);
  if (head_only_) {
    stream = false;
  } else if (stream) {
    AppendPiece(response.body);
  } else {
    out_ += response.body;
  }
  answer_ = stream ? Answer::kStreaming : Answer::kComplete;
  if (!stream) unused = std::exchange(on_disconnect_, nullptr);
  PostFlush();
  return true;
}

bool Connection::Write(uint64_t exchange, std::string_view piece) {
  MutexLock lock(mu_);
  if (gone_ || exchange != exchange_ || answer_ != Answer::kStreaming) return false;
  if (out_.size() + in_flight_bytes_ + piece.size() > shared_->options.pending_bytes_max) {
    Cut();
    return false;
  }
  AppendPiece(piece);
  PostFlush();
  return true;
}

void Connection::End(uint64_t exchange) {
  std::function<void()> unused;
  MutexLock lock(mu_);
  if (gone_ || exchange != exchange_ || answer_ != Answer::kStreaming) return;
  if (!http10_) out_ += "0\r\n\r\n";
  answer_ = Answer::kComplete;
  unused = std::exchange(on_disconnect_, nullptr);
  PostFlush();
}

bool Connection::answering() {
  MutexLock lock(mu_);
  return !gone_ && answer_ != Answer::kNone;
}

void Connection::OnDisconnect(uint64_t exchange, std::function<void()> on_disconnect) {
  {
    MutexLock lock(mu_);
    if (exchange != exchange_ || answer_ == Answer::kComplete) return;
    if (!gone_) return on_disconnect_.swap(on_disconnect);
  }
  on_disconnect();
}

bool Connection::Run(std::function<void()> work) {
  MutexLock lock(mu_);
  if (gone_) return false;
  asio::post(socket_.get_executor(), [self = shared_from_this(), work = std::move(work)] {
    try {
      work();
    } catch (const std::exception&) {  // bad_alloc: this client's answer can't be made
      self->Close();
    }
  });
  return true;
}

void Connection::Abandon(uint64_t exchange) {
  {
    MutexLock lock(mu_);
    if (gone_ || exchange != exchange_ || answer_ == Answer::kComplete) return;
    if (answer_ == Answer::kStreaming) return Cut();
  }
  Begin(exchange, HttpError(500, "the request was dropped", "server_error"), false);
}

// Only while the connection is not gone, so that nothing is posted after the server has stopped.
void Connection::PostFlush() {
  if (gone_ || flush_posted_) return;
  flush_posted_ = true;
  asio::post(socket_.get_executor(), [self = shared_from_this()] { self->Flush(); });
}

}  // namespace switchyard::http_internal
