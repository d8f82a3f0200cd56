// common/net/http_client.h: HTTP/1.1 calls whose answers may stream, on one thread.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace switchyard {

struct HttpCall {
  std::string method = "GET", path, body;      // body: JSON
  absl::Duration timeout = absl::Seconds(10);  // of the whole call
  size_t bytes_max = size_t{1} << 30;          // of the answer
  // All on the client's thread; must not block.
  std::function<void()> on_start;  // before the first byte leaves; may be empty
  // False: cancel the call. May be empty.
  std::function<bool(std::string_view piece)> on_piece;
  // Once. The HTTP status when the answer is whole; else why not: kUnavailable (no connection,
  // cut), kDeadlineExceeded, kCancelled, kInvalidArgument (not HTTP).
  std::function<void(absl::StatusOr<int>)> on_end;
};

// Thread-safe. Connections are kept and used again.
class HttpClient {
 public:
  // `address`: host:port; resolved at each connect. `api_key`: sent as a bearer token, unless
  // empty.
  explicit HttpClient(const std::string& address, const std::string& api_key = "");
  ~HttpClient();  // cancels what is under way and waits for it
  HttpClient(const HttpClient&) = delete;

  void Start(HttpCall call);
  void CancelAll();
  // One whole answer of status 200, at most `bytes_max`. kUnavailable, kNotFound (another status).
  absl::StatusOr<std::string> Get(const std::string& path, absl::Duration timeout,
                                  size_t bytes_max = 16 << 20);
  // The answer's status; at most 64 KiB of it are read.
  absl::StatusOr<int> Post(const std::string& path, std::string body, absl::Duration timeout);

 private:
  absl::StatusOr<int> Wait(HttpCall call);

  struct Impl;
  const std::shared_ptr<Impl> impl_;
};

}  // namespace switchyard
