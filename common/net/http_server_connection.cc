#include "common/net/http_server_connection.h"

#include <algorithm>
#include <boost/asio/buffer.hpp>
#include <boost/asio/post.hpp>
#include <boost/beast/http/status.hpp>
#include <chrono>
#include <cstring>
#include <exception>
#include <set>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace switchyard::http_internal {
namespace {

namespace asio = boost::asio;
namespace http = boost::beast::http;
using boost::system::error_code;

// Pipelined bytes that are read ahead while an answer is made; more stay in the kernel.
constexpr size_t kReadAheadBytes = 64 << 10;
// After a last answer the client may still be sending: closing at once would reset the connection
// and take the answer with it.
constexpr absl::Duration kLinger = absl::Seconds(2);
// Bodies that are taken whatever others send.
constexpr size_t kSmallBodyBytes = 64 << 10;

HttpResponse ParseError(error_code error, const HttpServerOptions& options) {
  if (error == http::error::body_limit) {
    return HttpError(413,
                     absl::StrCat("the body has more than ", options.body_bytes_max, " bytes"));
  }
  if (error == http::error::header_limit) {
    return HttpError(431,
                     absl::StrCat("the header has more than ", options.header_bytes_max, " bytes"));
  }
  if (error == http::error::bad_version) return HttpError(505, "HTTP/1.1 or HTTP/1.0 is spoken");
  return HttpError(400, absl::StrCat("not an HTTP request: ", error.message()));
}

// A target may be a whole URL, as proxies send it: its scheme and host say nothing here.
std::string PathOf(std::string target) {
  for (const char* scheme : {"http://", "https://"}) {
    if (!absl::StartsWithIgnoreCase(target, scheme)) continue;
    const size_t begin = target.find_first_of("/?", std::strlen(scheme));
    if (begin == std::string::npos) return "/";
    return target[begin] == '/' ? target.substr(begin) : "/" + target.substr(begin);
  }
  return target;
}

// What lets a page of an allowed origin read the answer (the Fetch standard's CORS protocol).
std::string CorsHeaders(const HttpRequest& request, bool preflight,
                        const std::vector<std::string>& allowed) {
  const std::string_view origin = request.Header("Origin");
  if (origin.empty()) return "";
  const bool any = std::find(allowed.begin(), allowed.end(), "*") != allowed.end();
  if (!any && std::find(allowed.begin(), allowed.end(), origin) == allowed.end()) return "";
  std::string out = absl::StrCat("Access-Control-Allow-Origin: ", any ? "*" : std::string(origin),
                                 "\r\nVary: Origin\r\n"
                                 "Access-Control-Expose-Headers: X-Request-Id, Retry-After\r\n");
  if (!preflight) return out;
  out += "Access-Control-Allow-Methods: GET, POST\r\nAccess-Control-Max-Age: 600\r\n";
  // Those that the page asks for: no header is refused here.
  const std::string_view headers = request.Header("Access-Control-Request-Headers");
  if (!headers.empty()) {
    absl::StrAppend(&out, "Access-Control-Allow-Headers: ", std::string(headers), "\r\n");
  }
  return out;
}

}  // namespace

Connection::Connection(std::shared_ptr<Shared> shared, Stream::Socket socket, bool refuse)
    : shared_(std::move(shared)),
      refuse_(refuse),
      socket_(std::move(socket), shared_->tls.get()),
      read_timer_(socket_.get_executor()),
      write_timer_(socket_.get_executor()) {}

Connection::~Connection() {
  CountBody(0);
  MutexLock lock(shared_->mu);
  shared_->connections.erase(this);
  shared_->none_left.NotifyAll();
}

void Connection::Start() {
  asio::post(socket_.get_executor(), [self = shared_from_this()] {
    if (!self->socket_.has_tls()) return self->Begun();
    self->Arm(&self->read_timer_, self->shared_->options.read_timeout);
    self->socket_.Handshake([self](error_code error) { error ? self->Close() : self->Begun(); });
  });
}

void Connection::Begun() {
  if (!refuse_) return ExpectRequest();
  Reject(HttpError(
      503, absl::StrCat("more than ", shared_->options.connections_max, " connections are open"),
      "server_error"));
}

void Connection::Drain() {
  asio::post(socket_.get_executor(), [self = shared_from_this()] {
    const bool idle = self->awaits_request_ && self->buffer_.size() == 0 &&
                      self->parser_.has_value() && !self->parser_->got_some();
    if (idle) self->Close();
  });
}

void Connection::Cut() {
  asio::post(socket_.get_executor(), [self = shared_from_this()] { self->Close(); });
}

// ---- requests

void Connection::ExpectRequest() {
  if (closed_) return;
  const HttpServerOptions& options = shared_->options;
  const bool first = !parser_.has_value();
  parser_.emplace();
  parser_->header_limit(options.header_bytes_max);
  parser_->body_limit(options.body_bytes_max);
  parser_->eager(true);
  awaits_request_ = true;
  continue_sent_ = head_checked_ = false;
  const bool idle = buffer_.size() == 0 && !first;
  Arm(&read_timer_, idle ? options.idle_timeout : options.read_timeout);
  if (buffer_.size() > 0) Parse();
  Read();
}

void Connection::Read() {
  if (reading_ || closed_ || (!awaits_request_ && buffer_.size() >= kReadAheadBytes)) return;
  reading_ = true;
  socket_.ReadSome(
      asio::buffer(read_bytes_),
      [self = shared_from_this()](error_code error, size_t bytes) { self->OnRead(error, bytes); });
}

void Connection::OnRead(error_code error, size_t bytes) {
  reading_ = false;
  if (closed_) return;
  if (lingering_) return error ? Close() : Read();
  if (error) return OnPeerGone();
  if (awaits_request_ && buffer_.size() == 0 && !parser_->got_some()) {
    Arm(&read_timer_, shared_->options.read_timeout);  // the first byte of a request
  }
  buffer_.commit(asio::buffer_copy(buffer_.prepare(bytes), asio::buffer(read_bytes_, bytes)));
  if (awaits_request_) Parse();
  Read();
}

// The client sends no more. A client that only closed its half is taken for gone, unless its answer
// is complete and on its way.
void Connection::OnPeerGone() {
  {
    MutexLock lock(mu_);
    keep_alive_ = false;
    if (answer_ == Answer::kComplete) return;
  }
  Close();
}

void Connection::Parse() {
  error_code error;
  while (!parser_->is_done() && buffer_.size() > 0) {
    const size_t used = parser_->put(buffer_.data(), error);
    buffer_.consume(used);
    if (error == http::error::need_more) error = {};
    if (error || used == 0) break;
  }
  if (!error && !parser_->is_done() && buffer_.size() > kReadAheadBytes) {
    error = http::error::header_limit;  // a chunk's extensions without end
  }
  if (!error && parser_->is_header_done() && parser_->get().version() != 10 &&
      parser_->get().version() != 11) {
    error = http::error::bad_version;
  }
  if (error) return Reject(ParseError(error, shared_->options));
  CountBody(parser_->get().body().size());
  if (parser_->is_done()) return OnRequest();
  if (!parser_->is_header_done()) return;
  if (auto refusal = EarlyRefusal()) {
    const HttpRequest head = Head();
    return Reject(*std::move(refusal),
                  CorsHeaders(head, head.method == "OPTIONS", shared_->options.allowed_origins));
  }
  if (continue_sent_) return;
  if (boost::beast::iequals(parser_->get()[http::field::expect], "100-continue")) {
    continue_sent_ = true;
    MutexLock lock(mu_);
    out_ += "HTTP/1.1 100 Continue\r\n\r\n";
    PostFlush();
  }
}

// While the body is still on its way.
std::optional<HttpResponse> Connection::EarlyRefusal() {
  const size_t limit = shared_->options.bodies_bytes_max;
  if (body_bytes_ > kSmallBodyBytes && shared_->bodies_bytes > limit) {
    return HttpError(
        503, absl::StrCat("the bodies that are being read have more than ", limit, " bytes"),
        "service_unavailable_error");
  }
  if (std::exchange(head_checked_, true)) return std::nullopt;
  const HttpHandler* handler = nullptr;
  return Refusal(Head(), &handler);
}

void Connection::CountBody(size_t bytes) {
  shared_->bodies_bytes += bytes - body_bytes_;  // modulo 2^64
  body_bytes_ = bytes;
}

// An answer to what is not taken as a request; then the connection closes.
void Connection::Reject(HttpResponse response, std::string cors_headers) {
  awaits_request_ = false;
  Disarm(&read_timer_);
  parser_.reset();
  CountBody(0);
  uint64_t exchange;
  {
    MutexLock lock(mu_);
    answer_ = Answer::kAwaited;
    keep_alive_ = head_only_ = false;
    cors_headers_ = std::move(cors_headers);
    exchange = exchange_;
  }
  Begin(exchange, std::move(response), /*stream=*/false);
}

HttpRequest Connection::Head() const {
  const auto& message = parser_->get();
  HttpRequest request;
  request.method = std::string(message.method_string());
  if (request.method == "HEAD") request.method = "GET";
  request.path = PathOf(std::string(message.target()));
  if (const size_t mark = request.path.find('?'); mark != std::string::npos) {
    request.query = request.path.substr(mark + 1);
    request.path.resize(mark);
  }
  for (const auto& field : message) {
    request.headers.emplace_back(field.name_string(), field.value());
  }
  return request;
}

void Connection::OnRequest() {
  awaits_request_ = false;
  Disarm(&read_timer_);
  auto& message = parser_->get();
  HttpRequest request = Head();
  request.body = std::move(message.body());
  uint64_t exchange;
  {
    MutexLock lock(mu_);
    answer_ = Answer::kAwaited;
    keep_alive_ = message.keep_alive();
    http10_ = message.version() == 10;
    head_only_ = message.method() == http::verb::head;
    cors_headers_ =
        CorsHeaders(request, request.method == "OPTIONS", shared_->options.allowed_origins);
    exchange = exchange_;
  }
  auto responder = MakeResponder(shared_from_this(), exchange);
  try {
    const HttpHandler* handler = nullptr;
    if (auto refusal = Refusal(request, &handler)) {
      responder->Send(*std::move(refusal));
    } else {
      (*handler)(request, responder);
    }
  } catch (const std::exception& e) {  // bad_alloc, or a library's that a handler let through
    responder->Send(HttpError(500, e.what(), "server_error"));
  }
  CountBody(0);
}

std::optional<HttpResponse> Connection::Refusal(const HttpRequest& request,
                                                const HttpHandler** handler) const {
  const bool options = request.method == "OPTIONS";
  std::set<std::string> allowed;
  for (const HttpRoute& route : shared_->routes) {
    if (route.path != request.path && !(options && request.path == "*")) continue;
    if (route.method == request.method) {
      *handler = &route.handler;
      return route.refuse ? route.refuse(request) : std::nullopt;
    }
    allowed.insert(route.method);
    if (route.method == "GET") allowed.insert("HEAD");
  }
  if (allowed.empty()) return HttpError(404, absl::StrCat("no such path: ", request.path));
  allowed.insert("OPTIONS");
  HttpResponse response{.status = 204, .content_type = "", .body = "", .headers = {}};
  if (!options) {
    response = HttpError(405, absl::StrCat(request.path, " does not take ", request.method));
  }
  response.headers.emplace_back("Allow", absl::StrJoin(allowed, ", "));
  return response;
}

// ---- writing

void Connection::Flush() {
  bool complete;
  {
    MutexLock lock(mu_);
    flush_posted_ = false;
    if (closed_ || !writing_.empty()) return;
    writing_.swap(out_);
    in_flight_bytes_ = writing_.size();
    complete = writing_.empty() && answer_ == Answer::kComplete;
  }
  written_ = 0;
  if (complete) return AnswerComplete();
  if (!writing_.empty()) SendSome();
}

void Connection::SendSome() {
  Arm(&write_timer_, shared_->options.write_timeout);
  socket_.WriteSome(asio::buffer(writing_.data() + written_, writing_.size() - written_),
                    [self = shared_from_this()](error_code error, size_t bytes) {
                      if (self->closed_) return;
                      if (error) return self->Close();
                      self->written_ += bytes;
                      if (self->written_ < self->writing_.size()) return self->SendSome();
                      Disarm(&self->write_timer_);
                      self->writing_.clear();
                      self->Flush();
                    });
}

void Connection::AnswerComplete() {
  bool keep;
  {
    MutexLock lock(mu_);
    ++exchange_;
    answer_ = Answer::kNone;
    CountAnswer(0);
    keep = keep_alive_ && !shared_->draining;
  }
  if (keep) return ExpectRequest();
  Linger();
}

// ---- the end

void Connection::Linger() {
  lingering_ = true;
  socket_.EndWriting(shared_from_this());
  buffer_.consume(buffer_.size());
  Arm(&read_timer_, kLinger);
  Read();
}

void Connection::Close() {
  if (closed_) return;
  closed_ = true;
  socket_.Close();
  Disarm(&read_timer_);
  Disarm(&write_timer_);
  std::function<void()> on_disconnect;
  {
    MutexLock lock(mu_);
    gone_ = true;
    out_.clear();
    CountAnswer(0);
    on_disconnect = std::exchange(on_disconnect_, nullptr);
  }
  if (on_disconnect) on_disconnect();
  MutexLock lock(shared_->mu);
  shared_->connections.erase(this);
  shared_->none_left.NotifyAll();
}

void Connection::Arm(asio::steady_timer* timer, absl::Duration timeout) {
  timer->expires_after(absl::ToChronoNanoseconds(timeout));
  timer->async_wait([self = shared_from_this(), timer](error_code error) {
    // A wait that had ended before the timer was moved still arrives here.
    if (!error && timer->expiry() <= std::chrono::steady_clock::now()) self->OnTimeout(timer);
  });
}

void Connection::OnTimeout(const asio::steady_timer* timer) {
  const bool amid_request =
      timer == &read_timer_ && awaits_request_ && parser_.has_value() && parser_->got_some();
  if (closed_ || !amid_request) return Close();
  Reject(HttpError(408, absl::StrCat("the request was not whole within ",
                                     absl::FormatDuration(shared_->options.read_timeout))));
}

void Connection::Disarm(asio::steady_timer* timer) {
  timer->expires_at(std::chrono::steady_clock::time_point::max());
}

}  // namespace switchyard::http_internal
