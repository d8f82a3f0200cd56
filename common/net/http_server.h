// common/net/http_server.h: an HTTP/1.1 server for answers that stream. Bounded in connections,
// bytes and time, whatever a client does. One request at a time per connection (pipelined ones
// wait). A read stays pending while an answer is made, so that a client that hangs up is noticed.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "common/net/tls.h"

namespace switchyard {

struct HttpRequest {
  std::string method;  // "GET" for HEAD too: the server drops the body of the answer
  std::string path;    // without host and query, as sent (not percent-decoded)
  std::string query;   // what follows '?'
  std::string body;
  std::vector<std::pair<std::string, std::string>> headers;  // as sent

  // The value of a header, whatever the case of its name; empty if there is none.
  std::string_view Header(std::string_view name) const;
};

struct HttpResponse {
  int status = 200;
  std::string content_type = "application/json";
  std::string body;
  std::vector<std::pair<std::string, std::string>> headers;  // more of them; trusted text
};

// {"error":{"message":…,"type":…,"param":…,"code":…}}, the form of every error of ours. Empty
// `param` and `code` become null. Bytes that are not UTF-8 become U+FFFD.
HttpResponse HttpError(int status, std::string_view message,
                       std::string_view type = "invalid_request_error", std::string_view param = {},
                       std::string_view code = {});

// Answers one request. Thread-safe; may outlive the server (then nothing is sent). Dropping the
// last reference without an answer sends 500; amid a stream it cuts the connection, so that the
// client can't take a part for the whole.
class HttpResponder {
 public:
  virtual ~HttpResponder() = default;
  // The whole answer. False if the client is gone or an answer was begun before.
  virtual bool Send(HttpResponse response) = 0;
  // Begins an answer that is written piece by piece (chunked; until close for HTTP/1.0).
  // `response.body` is its first piece. False as Send.
  virtual bool StartStream(HttpResponse response) = 0;
  // False if the client is gone, or if more than pending_bytes_max would wait for it: the stream
  // is then broken, the connection closes and on_disconnect is called.
  virtual bool Write(std::string_view piece) = 0;
  // The stream is complete.
  virtual void End() = 0;
  // Called at most once, if the client is gone before the answer is complete: on an I/O thread, or
  // at once if it is gone already. Must not block. Replaces an earlier one.
  virtual void OnDisconnect(std::function<void()> on_disconnect) = 0;
  // Runs `work` on an I/O thread, after the handler and one at a time with other work of this
  // connection: for what a thread that must not compute would otherwise do. False, and `work` is
  // dropped, if the client is gone.
  virtual bool Run(std::function<void()> work) = 0;
};

// Runs on an I/O thread: may compute, must not wait.
using HttpHandler = std::function<void(const HttpRequest&, std::shared_ptr<HttpResponder>)>;

struct HttpRoute {
  std::string method;  // GET also serves HEAD
  std::string path;    // exact
  HttpHandler handler;
  // If given, says whether the request is refused, by its head alone (`body` is empty): before its
  // body is taken into memory, if that has not come with the head. As a handler: must not wait.
  std::function<std::optional<HttpResponse>(const HttpRequest& head)> refuse = nullptr;
};

struct HttpServerOptions {
  std::string host = "127.0.0.1";
  int port = 0;                 // 0: any
  bool next_free_port = false;  // a taken port moves to the next free one of 100
  int io_threads = 2;
  int connections_max = 1024;  // more get 503 and are closed
  uint32_t header_bytes_max = 16 << 10;
  uint64_t body_bytes_max = 16 << 20;
  size_t bodies_bytes_max = 256 << 20;  // of all requests that are being read; more get 503
  // Of all whole answers that clients have not taken; more get 503, but for small ones.
  size_t answers_bytes_max = 256 << 20;
  size_t pending_bytes_max = 8 << 20;               // written by a handler, not taken by the client
  absl::Duration read_timeout = absl::Seconds(10);  // of a whole request, from its first byte
  absl::Duration idle_timeout = absl::Seconds(60);  // between requests
  // Origins whose pages may read the answers (CORS); "*" is all. Empty: no other site's.
  std::vector<std::string> allowed_origins = {};
  absl::Duration write_timeout = absl::Seconds(30);  // without the client taking a byte
  TlsOptions tls = {};
};

class HttpServer {
 public:
  // Listens and serves at once. Errors: kAlreadyExists for a taken port, kInvalidArgument for a bad
  // option, host, certificate or key, with the value.
  static absl::StatusOr<std::unique_ptr<HttpServer>> Create(const HttpServerOptions& options,
                                                            std::vector<HttpRoute> routes);
  // Stop with no grace.
  virtual ~HttpServer() = default;
  virtual int port() const = 0;
  virtual int connections() const = 0;
  // Requests whose answer is not made, or not yet taken by the client's side.
  virtual int answers() const = 0;
  // Connections close after their present answer, idle ones now; new ones are still accepted, for
  // one request each.
  virtual void StartDrain() = 0;
  // Stops accepting, waits up to `grace` for answers that are under way, cuts the rest (their
  // on_disconnect is called) and joins the threads. Not from an I/O thread. Idempotent.
  virtual void Stop(absl::Duration grace) = 0;
};

}  // namespace switchyard
