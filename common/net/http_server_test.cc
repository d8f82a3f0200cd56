#include "common/net/http_server.h"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <future>
#include <nlohmann/json.hpp>
#include <thread>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/mutex.h"
#include "common/net/http_server_test_client.h"

namespace switchyard {
namespace {

// A place where handlers leave responders for the test.
class Shelf {
 public:
  void Put(std::shared_ptr<HttpResponder> responder) {
    MutexLock lock(mu_);
    responder_ = std::move(responder);
  }
  std::shared_ptr<HttpResponder> Take() {
    EXPECT_TRUE(Eventually([this] {
      MutexLock lock(mu_);
      return responder_ != nullptr;
    }));
    MutexLock lock(mu_);
    return std::exchange(responder_, nullptr);
  }

 private:
  Mutex mu_;
  std::shared_ptr<HttpResponder> responder_ ABSL_GUARDED_BY(mu_);
};

HttpResponse Text(std::string body) {
  return {.status = 200, .content_type = "text/plain", .body = std::move(body), .headers = {}};
}

class HttpServerTest : public testing::Test {
 protected:
  void Start(HttpServerOptions options = {}) {
    const auto echo = [](const HttpRequest& request, std::shared_ptr<HttpResponder> responder) {
      responder->Send(Text(absl::StrCat(request.query, "|", request.body)));
    };
    const auto held = [this](const HttpRequest&, std::shared_ptr<HttpResponder> responder) {
      shelf_.Put(std::move(responder));
    };
    const auto dropped = [](const HttpRequest&, std::shared_ptr<HttpResponder>) {};
    const auto thrown = [](const HttpRequest&, std::shared_ptr<HttpResponder>) {
      throw std::runtime_error("a library threw");
    };
    auto server = HttpServer::Create(options, {{"GET", "/echo", echo},
                                               {"POST", "/echo", echo},
                                               {"GET", "/held", held},
                                               {"GET", "/dropped", dropped},
                                               {"GET", "/thrown", thrown}});
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
  }
  std::string Roundtrip(std::string_view bytes) {
    HttpTestClient client(server_->port());
    client.Send(bytes);
    return client.ReadResponse();
  }

  Shelf shelf_;
  std::unique_ptr<HttpServer> server_;
};

TEST_F(HttpServerTest, AnswersGetPostHeadAndOptions) {
  Start();
  EXPECT_TRUE(
      absl::EndsWith(Roundtrip("GET /echo?a=1 HTTP/1.1\r\nHost: x\r\n\r\n"), "\r\n\r\na=1|"));
  EXPECT_TRUE(absl::EndsWith(
      Roundtrip("POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello"), "|hello"));
  EXPECT_TRUE(absl::EndsWith(Roundtrip("POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: "
                                       "chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"),
                             "|abcde"));
  HttpTestClient head(server_->port());
  head.Send("HEAD /echo?a=1 HTTP/1.1\r\nConnection: close\r\n\r\n");
  const std::string answer = head.ReadAll();
  EXPECT_TRUE(absl::StrContains(answer, "Content-Length: 4\r\n")) << answer;
  EXPECT_TRUE(absl::EndsWith(answer, "\r\n\r\n"));
  const std::string options = Roundtrip("OPTIONS /echo HTTP/1.1\r\n\r\n");
  EXPECT_TRUE(absl::StartsWith(options, "HTTP/1.1 204 ")) << options;
  EXPECT_TRUE(absl::StrContains(options, "Allow: GET, HEAD, OPTIONS, POST\r\n")) << options;
}

TEST_F(HttpServerTest, UnknownPathsAndMethodsAreJsonErrors) {
  Start();
  const std::string missing = Roundtrip("GET /\"nowhere HTTP/1.1\r\n\r\n");
  EXPECT_TRUE(absl::StartsWith(missing, "HTTP/1.1 404 Not Found\r\n")) << missing;
  const auto body = nlohmann::json::parse(missing.substr(missing.find("\r\n\r\n") + 4));
  EXPECT_EQ(body["error"]["message"], "no such path: /\"nowhere");
  EXPECT_TRUE(body["error"]["param"].is_null());
  const std::string wrong = Roundtrip("DELETE /held HTTP/1.1\r\n\r\n");
  EXPECT_TRUE(absl::StartsWith(wrong, "HTTP/1.1 405 ")) << wrong;
  EXPECT_TRUE(absl::StrContains(wrong, "Allow: GET, HEAD, OPTIONS\r\n")) << wrong;
  EXPECT_TRUE(absl::StartsWith(Roundtrip("hello\r\n\r\n"), "HTTP/1.1 400 "));
}

TEST_F(HttpServerTest, DroppedAndThrowingHandlersAre500) {
  Start();
  EXPECT_TRUE(absl::StartsWith(Roundtrip("GET /dropped HTTP/1.1\r\n\r\n"), "HTTP/1.1 500 "));
  EXPECT_TRUE(absl::StrContains(Roundtrip("GET /thrown HTTP/1.1\r\n\r\n"), "a library threw"));
}

TEST_F(HttpServerTest, PipelinedRequestsAreAnsweredInOrder) {
  Start();
  HttpTestClient client(server_->port());
  std::string bytes;
  for (int i = 0; i < 200; ++i) absl::StrAppend(&bytes, "GET /echo?", i, " HTTP/1.1\r\n\r\n");
  client.Send(bytes);
  for (int i = 0; i < 200; ++i) {
    EXPECT_TRUE(absl::EndsWith(client.ReadResponse(), absl::StrCat("\r\n\r\n", i, "|")));
  }
  // A held answer holds back those behind it.
  client.Send("GET /held HTTP/1.1\r\n\r\nGET /echo?after HTTP/1.1\r\n\r\n");
  shelf_.Take()->Send(Text("first"));
  EXPECT_TRUE(absl::EndsWith(client.ReadResponse(), "first"));
  EXPECT_TRUE(absl::EndsWith(client.ReadResponse(), "after|"));
}

TEST_F(HttpServerTest, RequestInSingleBytes) {
  Start();
  HttpTestClient client(server_->port());
  for (const char c : std::string("POST /echo HTTP/1.1\r\nContent-Length: 2\r\n\r\nok")) {
    client.Send({&c, 1});
  }
  EXPECT_TRUE(absl::EndsWith(client.ReadResponse(), "|ok"));
}

TEST_F(HttpServerTest, ExpectContinueIsToldToGoOn) {
  Start();
  HttpTestClient client(server_->port());
  client.Send("POST /echo HTTP/1.1\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n");
  EXPECT_EQ(client.ReadUntil("\r\n\r\n"), "HTTP/1.1 100 Continue\r\n\r\n");
  client.Send("ok");
  EXPECT_TRUE(absl::EndsWith(client.ReadResponse(), "|ok"));
}

TEST_F(HttpServerTest, SlowRequestsAreCutAtTheDeadline) {
  Start({.read_timeout = absl::Seconds(1)});
  for (const std::string_view slow : {"GET /echo HTTP/1.1\r\nX: ",
                                      "POST /echo HTTP/1.1\r\nContent-"
                                      "Length: 100\r\n\r\nabc"}) {
    HttpTestClient client(server_->port());
    client.Send(slow);
    std::atomic<bool> over = false;
    std::thread drip([&] {  // each byte is in time, the whole is not
      while (!over) {
        client.Send("x");
        std::this_thread::sleep_for(std::chrono::milliseconds(20));
      }
    });
    const absl::Time start = absl::Now();
    EXPECT_TRUE(absl::StartsWith(client.ReadAll(), "HTTP/1.1 408 "));
    EXPECT_LT(absl::Now() - start, absl::Seconds(5));
    over = true;
    drip.join();
  }
}

TEST_F(HttpServerTest, IdleConnectionsAreClosed) {
  Start({.idle_timeout = absl::Milliseconds(100)});
  HttpTestClient client(server_->port());
  client.Send("GET /echo HTTP/1.1\r\n\r\n");
  EXPECT_FALSE(client.ReadResponse().empty());
  EXPECT_EQ(client.ReadAll(), "");
  EXPECT_TRUE(Eventually([this] { return server_->connections() == 0; }));
}

TEST_F(HttpServerTest, OversizeHeaderAndBodyAreRefused) {
  Start({.header_bytes_max = 1024, .body_bytes_max = 1000});
  EXPECT_TRUE(absl::StartsWith(
      Roundtrip(absl::StrCat("GET /echo HTTP/1.1\r\nX: ", std::string(2000, 'x'), "\r\n\r\n")),
      "HTTP/1.1 431 "));
  const std::string exact =
      absl::StrCat("POST /echo HTTP/1.1\r\nContent-Length: 1000\r\n\r\n", std::string(1000, 'x'));
  EXPECT_TRUE(absl::StartsWith(Roundtrip(exact), "HTTP/1.1 200 "));
  // The answer arrives although the client goes on to send its body.
  HttpTestClient client(server_->port());
  client.Send("POST /echo HTTP/1.1\r\nContent-Length: 4000000\r\n\r\n");
  client.Send(std::string(4000000, 'x'));
  const std::string answer = client.ReadAll();
  EXPECT_TRUE(absl::StartsWith(answer, "HTTP/1.1 413 ")) << answer;
  EXPECT_TRUE(absl::StrContains(answer, "the body has more than 1000 bytes")) << answer;
  EXPECT_TRUE(absl::StartsWith(
      Roundtrip(absl::StrCat("POST /echo HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n7d0\r\n",
                             std::string(2000, 'x'), "\r\n0\r\n\r\n")),
      "HTTP/1.1 413 "));
  // Chunk extensions count too.
  EXPECT_TRUE(absl::StartsWith(
      Roundtrip(absl::StrCat("POST /echo HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1;",
                             std::string(200000, 'x'))),
      "HTTP/1.1 431 "));
}

TEST_F(HttpServerTest, StreamsChunks) {
  Start();
  HttpTestClient client(server_->port());
  client.Send("GET /held HTTP/1.1\r\n\r\n");
  auto responder = shelf_.Take();
  EXPECT_FALSE(responder->Write("too early"));
  EXPECT_TRUE(responder->StartStream({.status = 200,
                                      .content_type = "text/event-stream",
                                      .body = "a",
                                      .headers = {{"X-A", "b"}}}));
  EXPECT_FALSE(responder->Send(Text("twice")));
  EXPECT_TRUE(absl::StrContains(client.ReadUntil("\r\n\r\n"), "X-A: b\r\n"));
  EXPECT_EQ(client.ReadUntil("1\r\na\r\n"), "1\r\na\r\n");
  EXPECT_TRUE(responder->Write("hello"));
  EXPECT_TRUE(responder->Write(""));
  EXPECT_EQ(client.ReadUntil("hello\r\n"), "5\r\nhello\r\n");
  responder->End();
  EXPECT_FALSE(responder->Write("too late"));
  EXPECT_EQ(client.ReadUntil("0\r\n\r\n"), "0\r\n\r\n");
  client.Send("GET /echo?next HTTP/1.1\r\n\r\n");  // the connection lives on
  EXPECT_TRUE(absl::EndsWith(client.ReadResponse(), "next|"));
  // HTTP/1.0 knows no chunks: the end of the connection ends the answer.
  HttpTestClient old(server_->port());
  old.Send("GET /held HTTP/1.0\r\n\r\n");
  auto second = shelf_.Take();
  EXPECT_TRUE(second->StartStream(Text("one ")));
  EXPECT_TRUE(second->Write("two"));
  second->End();
  const std::string answer = old.ReadAll();
  EXPECT_TRUE(absl::EndsWith(answer, "\r\n\r\none two")) << answer;
  EXPECT_FALSE(absl::StrContains(answer, "chunked"));
}

TEST_F(HttpServerTest, AbandonedStreamIsCutWithoutAnEnd) {
  Start();
  HttpTestClient client(server_->port());
  client.Send("GET /held HTTP/1.1\r\n\r\n");
  ASSERT_TRUE(shelf_.Take()->StartStream(Text("part")));
  EXPECT_FALSE(absl::StrContains(client.ReadAll(), "0\r\n\r\n"));
}

TEST_F(HttpServerTest, DisconnectIsNoticedWhileNothingIsWritten) {
  Start();
  for (const bool streaming : {false, true}) {
    HttpTestClient client(server_->port());
    client.Send("GET /held HTTP/1.1\r\n\r\n");
    auto responder = shelf_.Take();
    std::atomic<int> calls = 0;
    responder->OnDisconnect([&calls] { ++calls; });
    if (streaming) {
      responder->StartStream(Text("x"));
      client.ReadUntil("x\r\n");
    }
    EXPECT_EQ(calls, 0);
    client.Close();
    EXPECT_TRUE(Eventually([&] { return calls == 1; }));
    EXPECT_FALSE(responder->Send(Text("late")));
    EXPECT_FALSE(responder->Write("late"));
    responder->OnDisconnect([&calls] { ++calls; });  // told at once
    EXPECT_EQ(calls, 2);
  }
}

TEST_F(HttpServerTest, WorkRunsInOrderUntilTheClientIsGone) {
  Start();
  HttpTestClient client(server_->port());
  client.Send("GET /held HTTP/1.1\r\n\r\n");
  auto responder = shelf_.Take();
  std::string order;  // only touched on the connection's strand, until the answer
  for (int i = 0; i < 5; ++i) {
    EXPECT_TRUE(responder->Run([&order, i] { absl::StrAppend(&order, i); }));
  }
  EXPECT_TRUE(responder->Run([&order, responder] { responder->Send(Text(order)); }));
  EXPECT_TRUE(absl::EndsWith(client.ReadResponse(), "\r\n\r\n01234"));
  client.Close();
  EXPECT_TRUE(Eventually([&] { return !responder->Run([] {}); }));
}

TEST_F(HttpServerTest, CompleteAnswersAreNoDisconnect) {
  Start();
  std::atomic<int> calls = 0;
  {
    HttpTestClient client(server_->port());
    client.Send("GET /held HTTP/1.1\r\n\r\n");
    auto responder = shelf_.Take();
    responder->OnDisconnect([&calls] { ++calls; });
    EXPECT_TRUE(responder->Send(Text("done")));
    EXPECT_TRUE(absl::EndsWith(client.ReadResponse(), "done"));
  }
  EXPECT_TRUE(Eventually([this] { return server_->connections() == 0; }));
  EXPECT_EQ(calls, 0);
}

TEST_F(HttpServerTest, StreamThatIsNotReadBreaksAtTheBound) {
  Start({.pending_bytes_max = 1 << 20});
  HttpTestClient client(server_->port());
  client.Send("GET /held HTTP/1.1\r\n\r\n");
  auto responder = shelf_.Take();
  std::atomic<int> calls = 0;
  responder->OnDisconnect([&calls] { ++calls; });
  ASSERT_TRUE(responder->StartStream(Text("x")));
  const std::string piece(64 << 10, 'x');
  size_t written = 0;
  while (responder->Write(piece)) {
    written += piece.size();
    ASSERT_LT(written, size_t{1} << 30);
  }
  EXPECT_GE(written, (1u << 20) - piece.size());
  EXPECT_TRUE(Eventually([&] { return calls == 1; }));
  EXPECT_FALSE(absl::StrContains(client.ReadAll(), "\r\n0\r\n\r\n"));
}

TEST_F(HttpServerTest, ClientThatTakesNothingIsCut) {
  Start({.pending_bytes_max = 64 << 20, .write_timeout = absl::Milliseconds(200)});
  HttpTestClient client(server_->port());
  client.Send("GET /held HTTP/1.1\r\n\r\n");
  auto responder = shelf_.Take();
  std::atomic<int> calls = 0;
  responder->OnDisconnect([&calls] { ++calls; });
  ASSERT_TRUE(responder->StartStream(Text(std::string(32 << 20, 'x'))));
  EXPECT_TRUE(Eventually([&] { return calls == 1; }));
}

TEST_F(HttpServerTest, LargeStreamArrivesWhole) {
  Start();
  HttpTestClient client(server_->port());
  client.Send("GET /held HTTP/1.0\r\n\r\n");
  auto responder = shelf_.Take();
  std::string sent = "begin";
  ASSERT_TRUE(responder->StartStream(Text(sent)));
  std::thread writer([&] {
    for (int i = 0; i < 20000; ++i) {
      const std::string piece = absl::StrCat(i, ",");
      sent += piece;
      if (!responder->Write(piece)) break;
    }
    responder->End();
  });
  const std::string answer = client.ReadAll();
  writer.join();
  EXPECT_TRUE(absl::EndsWith(answer, sent));
}

TEST_F(HttpServerTest, ConnectionsAboveTheLimitGet503) {
  Start({.connections_max = 3});
  std::vector<std::unique_ptr<HttpTestClient>> clients;
  for (int i = 0; i < 3; ++i) {
    clients.push_back(std::make_unique<HttpTestClient>(server_->port()));
    clients.back()->Send("GET /echo HTTP/1.1\r\n\r\n");
    EXPECT_TRUE(absl::StartsWith(clients.back()->ReadResponse(), "HTTP/1.1 200 "));
  }
  HttpTestClient refused(server_->port());
  refused.Send("GET /echo HTTP/1.1\r\n\r\n");
  const std::string answer = refused.ReadAll();
  EXPECT_TRUE(absl::StartsWith(answer, "HTTP/1.1 503 ")) << answer;
  clients.clear();
  EXPECT_TRUE(Eventually([this] {
    return absl::StartsWith(Roundtrip("GET /echo HTTP/1.1\r\n\r\n"), "HTTP/1.1 200 ");
  }));
}

TEST_F(HttpServerTest, BodiesThatNobodyWantsAreNotAwaited) {
  Start();
  const std::string begin = " HTTP/1.1\r\nContent-Length: 1000000\r\n\r\n{";
  for (const auto& [request, status] : {std::pair("POST /nowhere", "404"), {"POST /held", "405"}}) {
    HttpTestClient client(server_->port());
    client.Send(request + begin);
    EXPECT_TRUE(absl::StartsWith(client.ReadAll(), absl::StrCat("HTTP/1.1 ", status)));
  }
}

TEST_F(HttpServerTest, BodiesThatAreReadAreBoundedTogether) {
  Start({.io_threads = 1, .bodies_bytes_max = 300'000});
  const std::string head = "POST /echo HTTP/1.1\r\nContent-Length: 200000\r\n\r\n";
  std::vector<std::unique_ptr<HttpTestClient>> clients;
  for (int i = 0; i < 2; ++i) {
    clients.push_back(std::make_unique<HttpTestClient>(server_->port()));
    clients.back()->Send(head + std::string(199'999, 'x'));
  }
  const std::string small = Roundtrip("POST /echo HTTP/1.1\r\nContent-Length: 2\r\n\r\nab");
  EXPECT_TRUE(absl::EndsWith(small, "|ab")) << "small ones are taken";
  // Whichever of them was read last is refused, the other one is not when its rest comes.
  std::vector<std::future<std::string>> answers;
  for (const auto& client : clients) {
    answers.push_back(std::async(std::launch::async, [&] { return client->ReadResponse(); }));
  }
  const auto answered = [&](size_t i) {
    return answers[i].wait_for(std::chrono::milliseconds(10)) == std::future_status::ready;
  };
  size_t refused = 0;
  while (!answered(refused)) refused = 1 - refused;
  EXPECT_TRUE(absl::StartsWith(answers[refused].get(), "HTTP/1.1 503 "));
  clients[1 - refused]->Send("x");
  EXPECT_TRUE(absl::StartsWith(answers[1 - refused].get(), "HTTP/1.1 200 "));
  clients.clear();
  EXPECT_TRUE(absl::StartsWith(Roundtrip(head + std::string(200'000, 'x')), "HTTP/1.1 200 "));
}

TEST_F(HttpServerTest, AnswersThatNobodyTakesAreBoundedTogether) {
  Start({.answers_bytes_max = 20 << 20});
  const std::string head = "POST /echo HTTP/1.1\r\nContent-Length: 15000000\r\n\r\n";
  const std::string body(15'000'000, 'x');
  HttpTestClient idle(server_->port());  // sockets hold less than that: the rest waits
  idle.Send(head + body);
  EXPECT_TRUE(absl::StartsWith(idle.ReadUntil("\r\n\r\n"), "HTTP/1.1 200 "));
  HttpTestClient second(server_->port());
  second.Send(head + body);
  EXPECT_TRUE(absl::StartsWith(second.ReadResponse(), "HTTP/1.1 503 "));
  EXPECT_TRUE(absl::EndsWith(Roundtrip("GET /echo?a HTTP/1.1\r\n\r\n"), "a|"));
  idle.Close();
  EXPECT_TRUE(Eventually([&] {
    second.Send(head + body);
    return absl::StartsWith(second.ReadResponse(), "HTTP/1.1 200 ");
  }));
}

TEST_F(HttpServerTest, ManyConnectionsAtOnce) {
  Start({.io_threads = 4});
  std::vector<std::thread> threads;
  std::atomic<int> good = 0;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      std::vector<std::unique_ptr<HttpTestClient>> clients;
      for (int i = 0; i < 50; ++i)
        clients.push_back(std::make_unique<HttpTestClient>(server_->port()));
      for (int round = 0; round < 3; ++round) {
        for (int i = 0; i < 50; ++i) {
          clients[i]->Send(absl::StrCat("GET /echo?", t, "-", i, " HTTP/1.1\r\n\r\n"));
        }
        for (int i = 0; i < 50; ++i) {
          good += absl::EndsWith(clients[i]->ReadResponse(), absl::StrCat("\n", t, "-", i, "|"));
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(good, 600);
}

TEST_F(HttpServerTest, StopLetsAnswersFinish) {
  Start();
  HttpTestClient busy(server_->port()), idle(server_->port());
  busy.Send("GET /held HTTP/1.1\r\n\r\n");
  auto responder = shelf_.Take();
  std::thread stop([this] { server_->Stop(absl::Seconds(10)); });
  EXPECT_EQ(idle.ReadAll(), "");
  EXPECT_TRUE(responder->Send(Text("done")));
  const std::string answer = busy.ReadAll();
  EXPECT_TRUE(absl::StrContains(answer, "Connection: close\r\n")) << answer;
  EXPECT_TRUE(absl::EndsWith(answer, "done"));
  busy.Close();
  stop.join();
}

TEST_F(HttpServerTest, StopCutsWhatDoesNotFinish) {
  Start();
  HttpTestClient client(server_->port());
  client.Send("GET /held HTTP/1.1\r\n\r\n");
  auto responder = shelf_.Take();
  std::atomic<int> calls = 0;
  responder->OnDisconnect([&calls] { ++calls; });
  server_->Stop(absl::Milliseconds(50));
  EXPECT_EQ(calls, 1);
  server_.reset();
  EXPECT_FALSE(responder->Send(Text("to nobody")));  // outlives the server
}

TEST_F(HttpServerTest, DrainKeepsListeningButNotConnections) {
  Start();
  server_->StartDrain();
  HttpTestClient client(server_->port());
  client.Send("GET /echo?still HTTP/1.1\r\n\r\n");
  const std::string answer = client.ReadAll();
  EXPECT_TRUE(absl::EndsWith(answer, "still|")) << answer;
  EXPECT_TRUE(absl::StrContains(answer, "Connection: close\r\n"));
}

TEST_F(HttpServerTest, CountsAnswersUntilTheClientHasThem) {
  Start();
  HttpTestClient idle(server_->port()), client(server_->port());
  client.Send("GET /held HTTP/1.1\r\n\r\n");
  auto responder = shelf_.Take();
  EXPECT_EQ(server_->answers(), 1);
  constexpr size_t kBytes = 64 << 20;  // more than the kernel's buffers take
  responder->Send(Text(std::string(kBytes, 'x')));
  std::this_thread::sleep_for(std::chrono::milliseconds(100));
  EXPECT_EQ(server_->answers(), 1);
  EXPECT_GT(client.ReadResponse().size(), kBytes);
  EXPECT_TRUE(Eventually([this] { return server_->answers() == 0; }));
}

TEST_F(HttpServerTest, TakenPorts) {
  Start();
  auto taken = HttpServer::Create({.port = server_->port()}, {});
  EXPECT_EQ(taken.status().code(), absl::StatusCode::kAlreadyExists) << taken.status();
  EXPECT_TRUE(absl::StrContains(taken.status().message(), absl::StrCat(server_->port())));
  auto next = HttpServer::Create({.port = server_->port(), .next_free_port = true}, {});
  ASSERT_TRUE(next.ok()) << next.status();
  EXPECT_GT((*next)->port(), server_->port());
  EXPECT_FALSE(HttpServer::Create({.port = 70000}, {}).ok());
  EXPECT_FALSE(HttpServer::Create({.host = "192.0.2.1"}, {}).ok());
}

TEST_F(HttpServerTest, ATargetMayBeAWholeUrl) {
  Start();
  const auto get = [this](const std::string& target) {
    return Roundtrip("GET " + target + " HTTP/1.1\r\nHost: x\r\n\r\n");
  };
  EXPECT_TRUE(absl::EndsWith(get("http://example.com:80/echo?a=1"), "\r\n\r\na=1|"));
  EXPECT_TRUE(absl::EndsWith(get("HTTPS://x/echo"), "\r\n\r\n|"));
  EXPECT_TRUE(absl::StrContains(get("http://x"), "no such path: /"));
  EXPECT_TRUE(absl::StrContains(get("http://x?q"), "no such path: /"));
}

TEST_F(HttpServerTest, OnlyAllowedOriginsMayReadAnswers) {
  const std::string get = "GET /echo HTTP/1.1\r\nHost: x\r\nOrigin: ";
  const std::string preflight =
      "OPTIONS /echo HTTP/1.1\r\nHost: x\r\nAccess-Control-Request-Method: POST\r\n"
      "Access-Control-Request-Headers: authorization,x-a\r\nOrigin: ";
  Start({.allowed_origins = {"https://a.example"}});
  const std::string good = Roundtrip(get + "https://a.example\r\n\r\n");
  EXPECT_TRUE(absl::StrContains(good, "Access-Control-Allow-Origin: https://a.example\r\n"))
      << good;
  EXPECT_FALSE(absl::StrContains(good, "Allow-Methods")) << good;
  const std::string asked = Roundtrip(preflight + "https://a.example\r\n\r\n");
  EXPECT_TRUE(absl::StartsWith(asked, "HTTP/1.1 204")) << asked;
  EXPECT_TRUE(absl::StrContains(asked, "Allow-Headers: authorization,x-a\r\n")) << asked;
  for (const char* origin : {"https://b.example\r\n\r\n", "https://a.example.b\r\n\r\n"}) {
    EXPECT_FALSE(absl::StrContains(Roundtrip(get + origin), "Access-Control")) << origin;
    EXPECT_FALSE(absl::StrContains(Roundtrip(preflight + origin), "Access-Control")) << origin;
  }
  Start({.allowed_origins = {"*"}});
  EXPECT_TRUE(absl::StrContains(Roundtrip(get + "https://b.example\r\n\r\n"),
                                "Access-Control-Allow-Origin: *\r\n"));
  EXPECT_FALSE(absl::StrContains(Roundtrip("GET /echo HTTP/1.1\r\nHost: x\r\n\r\n"), "Access-"));
}

}  // namespace
}  // namespace switchyard
