#include "common/net/http_server.h"

#include <algorithm>
#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/strand.hpp>
#include <chrono>
#include <nlohmann/json.hpp>
#include <thread>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "common/net/http_server_connection.h"
#include "common/status_macros.h"

namespace switchyard {
namespace {

namespace asio = boost::asio;
using asio::ip::tcp;
using boost::system::error_code;
using http_internal::Connection;
using http_internal::Shared;

constexpr int kPortsTried = 100;
// Connections above the limit that are told so at one time; more are closed without a word.
constexpr size_t kRefusalsMax = 64;
// Between two tries to accept when the process is out of file descriptors.
constexpr auto kAcceptPause = std::chrono::milliseconds(50);

class Server final : public HttpServer {
 public:
  Server(const HttpServerOptions& options, std::vector<HttpRoute> routes)
      : shared_(std::make_shared<Shared>()),
        work_(shared_->io.get_executor()),
        acceptor_(asio::make_strand(shared_->io)),
        pause_(acceptor_.get_executor()) {
    shared_->options = options;
    shared_->routes = std::move(routes);
  }
  ~Server() override { Stop(absl::ZeroDuration()); }

  absl::Status Listen();
  void Serve() {
    for (int i = 0; i < shared_->options.io_threads; ++i) {
      threads_.emplace_back([shared = shared_] { shared->io.run(); });
    }
    asio::post(acceptor_.get_executor(), [this] { Accept(); });
  }

  int port() const override { return port_; }
  int connections() const override {
    MutexLock lock(shared_->mu);
    return static_cast<int>(shared_->connections.size());
  }
  int answers() const override {
    const auto all = Connections();
    return static_cast<int>(
        std::count_if(all.begin(), all.end(), [](const auto& c) { return c->answering(); }));
  }
  void StartDrain() override;
  void Stop(absl::Duration grace) override;

 private:
  absl::StatusOr<tcp::endpoint> Resolve();
  void Accept();
  void Adopt(http_internal::Stream::Socket socket);
  std::vector<std::shared_ptr<Connection>> Connections() const;

  const std::shared_ptr<Shared> shared_;
  asio::executor_work_guard<asio::io_context::executor_type> work_;
  tcp::acceptor acceptor_;    // on a strand of its own
  asio::steady_timer pause_;  // same strand
  std::vector<std::thread> threads_;
  int port_ = 0;
};

absl::StatusOr<tcp::endpoint> Server::Resolve() {
  const HttpServerOptions& options = shared_->options;
  error_code error;
  tcp::resolver resolver(shared_->io);
  const auto found =
      resolver.resolve(options.host, absl::StrCat(options.port),
                       tcp::resolver::passive | tcp::resolver::numeric_service, error);
  if (error || found.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat("host ", options.host, " has no address: ", error.message()));
  }
  return found.begin()->endpoint();
}

absl::Status Server::Listen() {
  const HttpServerOptions& options = shared_->options;
  if (options.tls.enabled()) {
    ASSIGN_OR_RETURN(shared_->tls, http_internal::MakeTlsContext(options.tls));
  }
  ASSIGN_OR_RETURN(tcp::endpoint endpoint, Resolve());
  const int tries = options.next_free_port && options.port != 0 ? kPortsTried : 1;
  error_code error;
  for (int i = 0; i < tries && options.port + i <= 65535; ++i) {
    endpoint.port(static_cast<uint16_t>(options.port + i));
    acceptor_.close(error);
    acceptor_.open(endpoint.protocol(), error);
    if (!error) acceptor_.set_option(tcp::acceptor::reuse_address(true), error);
    if (!error) acceptor_.bind(endpoint, error);
    if (!error) acceptor_.listen(asio::socket_base::max_listen_connections, error);
    if (!error) {
      port_ = acceptor_.local_endpoint(error).port();
      return absl::OkStatus();
    }
    if (error != asio::error::address_in_use) break;
  }
  const std::string what =
      absl::StrCat("cannot listen on ", options.host, ":", options.port, ": ", error.message());
  return error == asio::error::address_in_use ? absl::AlreadyExistsError(what)
                                              : absl::InvalidArgumentError(what);
}

void Server::Accept() {
  if (!acceptor_.is_open()) return;
  acceptor_.async_accept(asio::make_strand(shared_->io),
                         [this](error_code error, http_internal::Stream::Socket socket) {
                           if (error == asio::error::operation_aborted) return;
                           if (!error) {
                             Adopt(std::move(socket));
                             return Accept();
                           }
                           pause_.expires_after(kAcceptPause);
                           pause_.async_wait([this](error_code stopped) {
                             if (!stopped) Accept();
                           });
                         });
}

void Server::Adopt(http_internal::Stream::Socket socket) {
  error_code ignored;
  socket.set_option(tcp::no_delay(true), ignored);
  std::shared_ptr<Connection> connection;
  {
    MutexLock lock(shared_->mu);
    const size_t limit = static_cast<size_t>(shared_->options.connections_max);
    const size_t open = shared_->connections.size();
    if (shared_->stopping || open >= limit + kRefusalsMax) return;
    connection = std::make_shared<Connection>(shared_, std::move(socket), open >= limit);
    shared_->connections.emplace(connection.get(), connection);
  }
  connection->Start();
}

std::vector<std::shared_ptr<Connection>> Server::Connections() const {
  std::vector<std::shared_ptr<Connection>> out;
  MutexLock lock(shared_->mu);
  for (const auto& [key, weak] : shared_->connections) {
    if (auto connection = weak.lock()) out.push_back(std::move(connection));
  }
  return out;
}

void Server::StartDrain() {
  shared_->draining = true;
  for (const auto& connection : Connections()) connection->Drain();
}

void Server::Stop(absl::Duration grace) {
  {
    MutexLock lock(shared_->mu);
    if (std::exchange(shared_->stopping, true)) return;
  }
  asio::post(acceptor_.get_executor(), [this] {
    error_code ignored;
    acceptor_.close(ignored);
    pause_.cancel();
  });
  StartDrain();
  const absl::Time deadline = absl::Now() + grace;
  {
    MutexLock lock(shared_->mu);
    while (!shared_->connections.empty() && absl::Now() < deadline) {
      shared_->none_left.WaitFor(shared_->mu, deadline - absl::Now());
    }
  }
  for (const auto& connection : Connections()) connection->Cut();
  work_.reset();  // the threads end when the last connection's handlers have run
  for (std::thread& thread : threads_) thread.join();
  threads_.clear();
}

}  // namespace

std::string_view HttpRequest::Header(std::string_view name) const {
  const absl::string_view wanted(name.data(), name.size());
  for (const auto& [key, value] : headers) {
    if (absl::EqualsIgnoreCase(key, wanted)) return value;
  }
  return {};
}

HttpResponse HttpError(int status, std::string_view message, std::string_view type,
                       std::string_view param, std::string_view code) {
  using Json = nlohmann::ordered_json;
  const auto text_or_null = [](std::string_view text) {
    return text.empty() ? Json() : Json(text);
  };
  const Json body = {{"error",
                      {{"message", message},
                       {"type", type},
                       {"param", text_or_null(param)},
                       {"code", text_or_null(code)}}}};
  HttpResponse response;
  response.status = status;
  response.body = body.dump(-1, ' ', false, Json::error_handler_t::replace);
  return response;
}

absl::StatusOr<std::unique_ptr<HttpServer>> HttpServer::Create(const HttpServerOptions& options,
                                                               std::vector<HttpRoute> routes) {
  if (options.port < 0 || options.port > 65535) {
    return absl::InvalidArgumentError(absl::StrCat("port ", options.port, " is not in 0…65535"));
  }
  if (options.io_threads < 1 || options.connections_max < 1) {
    return absl::InvalidArgumentError(absl::StrCat("io_threads ", options.io_threads,
                                                   " and connections_max ", options.connections_max,
                                                   " must be at least 1"));
  }
  auto server = std::make_unique<Server>(options, std::move(routes));
  RETURN_IF_ERROR(server->Listen());
  server->Serve();
  return server;
}

}  // namespace switchyard
