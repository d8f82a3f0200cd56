// The front over real sockets. The core behind it is the test itself: it takes what the front
// submits and says when what happens, as no real core could be told to.
#include "router/http/http_front.h"

#include <gtest/gtest.h>

#include <atomic>
#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/mutex.h"
#include "common/net/http_server_test_client.h"

namespace switchyard {
namespace {

using Json = nlohmann::json;

class ScriptedCore final : public RouterCore {
 public:
  ScriptedCore() {
    auto loaded = Tokenizer::Load("models/fables-7m");
    EXPECT_TRUE(loaded.ok()) << loaded.status();
    tokenizer_ = *std::move(loaded);
    model_ = {.id = "fables-7m",
              .architecture = "",
              .numerics_id = "",
              .vocab_size = tokenizer_->vocab_size(),
              .max_model_len = 2048,
              .eos_token_ids = {0},
              .created_unix_seconds = 1700000000};
  }

  absl::StatusOr<std::string> Submit(ClientRequest request, Sink sink) override {
    MutexLock lock(mu_);
    if (submissions_left_-- <= 0) return refusal_;
    const std::string id = request.request_id;
    if (!running_.emplace(id, Running{std::move(request), std::move(sink)}).second) {
      return absl::AlreadyExistsError(absl::StrCat("request_id ", id, " is in use"));
    }
    return id;
  }
  bool Abort(const std::string& id) override {
    MutexLock lock(mu_);
    aborted_.insert(id);
    return running_.erase(id) > 0;
  }
  const ModelDescription& model() const override { return model_; }
  const Tokenizer* tokenizer() const override { return tokenizer_.get(); }
  const RouterLimits& limits() const override { return limits_; }
  RouterStatus status() const override {
    RouterStatus status;
    status.ready = ready_;
    status.not_ready_because = ready_ ? "" : "no decode worker is alive";
    return status;
  }
  void ListRequests(std::function<void(std::vector<RequestStatus>)> done) override {
    RequestStatus request;
    request.id = "r-1";
    request.running = true;
    done({request});
  }
  void StartDrain() override {}
  std::string MetricsText() const override { return "switchyard_up 1\n"; }

  // The next requests are taken, those after them refused.
  void RefuseAfter(int submissions, absl::Status refusal) {
    MutexLock lock(mu_);
    submissions_left_ = submissions;
    refusal_ = std::move(refusal);
  }
  void set_ready(bool ready) { ready_ = ready; }
  // Waits for that many running requests and returns their ids in order.
  std::vector<std::string> WaitFor(size_t count) {
    std::vector<std::string> ids;
    EXPECT_TRUE(Eventually([&] {
      MutexLock lock(mu_);
      ids.clear();
      for (const auto& [id, running] : running_) ids.push_back(id);
      return ids.size() == count;
    }));
    return ids;
  }
  ClientRequest request(const std::string& id) {
    MutexLock lock(mu_);
    return running_.at(id).request;
  }
  void Say(const std::string& id, const std::string& text, TokenId token, bool first = false) {
    ClientUpdate update;
    update.first = first;
    update.seed = 7;
    update.text = text;
    update.tokens = {{token, -0.5f, 1, {}}};
    SinkOf(id, /*ends=*/false)(update);
  }
  void Finish(const std::string& id, ClientUpdate::Finish finish, absl::Status error = {}) {
    ClientUpdate update;
    update.finish = finish;
    update.error = std::move(error);
    update.completion_tokens = 2;
    SinkOf(id, /*ends=*/true)(update);
  }
  bool aborted(const std::string& id) {
    MutexLock lock(mu_);
    return aborted_.count(id) > 0;
  }

 private:
  struct Running {
    ClientRequest request;
    Sink sink;
  };
  Sink SinkOf(const std::string& id, bool ends) {
    MutexLock lock(mu_);
    Sink sink = running_.at(id).sink;
    if (ends) running_.erase(id);
    return sink;
  }

  std::unique_ptr<Tokenizer> tokenizer_;
  ModelDescription model_;
  RouterLimits limits_;
  std::atomic<bool> ready_ = true;
  Mutex mu_;
  int submissions_left_ ABSL_GUARDED_BY(mu_) = 1 << 20;
  absl::Status refusal_ ABSL_GUARDED_BY(mu_);
  std::map<std::string, Running> running_ ABSL_GUARDED_BY(mu_);
  std::set<std::string> aborted_ ABSL_GUARDED_BY(mu_);
};

class HttpFrontTest : public testing::Test {
 protected:
  HttpFrontTest() { Start({}); }
  void Start(HttpFrontOptions options) {
    options.model_dir = "models/fables-7m";
    auto front = HttpFront::Create(&core_, options);
    EXPECT_TRUE(front.ok()) << front.status();
    front_ = *std::move(front);
  }
  static std::string Post(const std::string& path, const std::string& body) {
    return absl::StrCat("POST ", path, " HTTP/1.1\r\nContent-Length: ", body.size(), "\r\n\r\n",
                        body);
  }
  // Status line and headers, and the body after them.
  std::string Ask(const std::string& request) {
    HttpTestClient client(front_->port());
    client.Send(request);
    return client.ReadResponse();
  }
  std::string Get(const std::string& path) {
    return Ask(absl::StrCat("GET ", path, " HTTP/1.1\r\n\r\n"));
  }
  static Json Body(const std::string& response) {
    return Json::parse(response.substr(response.find("\r\n\r\n") + 4));
  }
  static int Status(const std::string& response) {
    return response.size() < 12 ? 0 : std::stoi(response.substr(9, 3));
  }

  ScriptedCore core_;
  std::unique_ptr<HttpFront> front_;
};

TEST_F(HttpFrontTest, InformationEndpoints) {
  EXPECT_EQ(Body(Get("/health"))["status"], "ok");
  EXPECT_EQ(Body(Get("/v1/models"))["data"][0]["id"], "fables-7m");
  EXPECT_EQ(Body(Get("/v1/models"))["data"][0]["max_model_len"], 2048);
  EXPECT_EQ(Body(Get("/v1/models/fables-7m")), Body(Get("/v1/models"))["data"][0]);
  EXPECT_TRUE(Body(Get("/version"))["version"].is_string());
  EXPECT_TRUE(absl::EndsWith(Get("/metrics"), "switchyard_up 1\n"));
  const Json listed = Body(Get("/debug/requests"))["requests"];
  ASSERT_EQ(listed.size(), 1u);
  EXPECT_EQ(listed[0]["request_id"], "r-1");
  EXPECT_EQ(listed[0]["state"], "running");
  EXPECT_EQ(Status(Get("/readyz")), 200);
  core_.set_ready(false);
  const std::string away = Get("/readyz");
  EXPECT_EQ(Status(away), 503);
  EXPECT_EQ(Body(away)["error"]["message"], "no decode worker is alive");
  EXPECT_EQ(Status(Get("/health")), 200);
  EXPECT_EQ(Status(Get("/v1/completions")), 405);
  EXPECT_EQ(Status(Get("/v2")), 404);
}

TEST_F(HttpFrontTest, TokenizeAndDetokenize) {
  const Json tokens = Body(Ask(Post("/tokenize", R"({"prompt":"Once upon a time"})")));
  EXPECT_EQ(tokens["count"], tokens["tokens"].size());
  EXPECT_EQ(tokens["max_model_len"], 2048);
  const Json text = Body(Ask(Post("/detokenize", Json({{"tokens", tokens["tokens"]}}).dump())));
  EXPECT_EQ(text["prompt"], "<|endoftext|>Once upon a time");
  EXPECT_EQ(Status(Ask(Post("/tokenize", "{"))), 400);
  EXPECT_EQ(Status(Ask(Post("/detokenize", "{}"))), 400);
}

TEST_F(HttpFrontTest, WholeCompletion) {
  HttpTestClient client(front_->port());
  client.Send(Post("/v1/completions", R"({"prompt":[5,6],"max_tokens":2,"request_id":"mine"})"));
  ASSERT_EQ(core_.WaitFor(1), std::vector<std::string>{"mine"});
  EXPECT_EQ(core_.request("mine").max_tokens, 2);
  core_.Say("mine", "a", 8, true);
  core_.Say("mine", "b", 9);
  core_.Finish("mine", ClientUpdate::Finish::kLength);
  const Json body = Body(client.ReadResponse());
  EXPECT_EQ(body["id"], "mine");
  EXPECT_EQ(body["choices"][0]["text"], "ab");
  EXPECT_EQ(body["usage"]["total_tokens"], 4);
  EXPECT_EQ(body["switchyard"]["seed"], 7);
}

TEST_F(HttpFrontTest, BatchStreamsUnderIndicesAndEndsOnce) {
  HttpTestClient client(front_->port());
  client.Send(
      Post("/v1/completions",
           R"({"prompt":[[5],[6]],"stream":true,"stream_options":{"include_usage":true}})"));
  const std::vector<std::string> ids = core_.WaitFor(2);
  EXPECT_TRUE(absl::EndsWith(ids[0], "-0") && absl::EndsWith(ids[1], "-1")) << ids[0];
  core_.Say(ids[1], "x", 8, true);
  EXPECT_TRUE(absl::StrContains(client.ReadUntil("\n\n"), "text/event-stream"));
  core_.Finish(ids[1], ClientUpdate::Finish::kStop);
  EXPECT_TRUE(absl::StrContains(client.ReadUntil("\n\n"), R"("finish_reason":"stop")"));
  core_.Say(ids[0], "y", 9, true);
  core_.Finish(ids[0], ClientUpdate::Finish::kStop);
  const std::string rest = client.ReadUntil("0\r\n\r\n");
  EXPECT_TRUE(absl::StrContains(rest, R"("index":0,"text":"y")")) << rest;
  EXPECT_TRUE(absl::StrContains(rest, R"("prompt_tokens":2)")) << rest;
  EXPECT_TRUE(absl::EndsWith(rest, "data: [DONE]\n\n\r\n0\r\n\r\n")) << rest;
}

TEST_F(HttpFrontTest, ChatUsesTheCheckpointsTemplate) {
  HttpTestClient client(front_->port());
  client.Send(Post("/v1/chat/completions",
                   R"({"messages":[{"role":"user","content":"Once"},
                                   {"role":"user","content":"upon"}]})"));
  const std::vector<std::string> ids = core_.WaitFor(1);
  // The template has an empty line there; trim_blocks takes the newline after a block.
  EXPECT_EQ(core_.request(ids[0]).prompt_ids,
            *core_.tokenizer()->Encode("<|endoftext|>Once\nupon", false));
  core_.Say(ids[0], " a time", 8, true);
  core_.Finish(ids[0], ClientUpdate::Finish::kStop);
  EXPECT_EQ(Body(client.ReadResponse())["choices"][0]["message"],
            Json({{"role", "assistant"}, {"content", " a time"}}));
}

TEST_F(HttpFrontTest, ClientThatHangsUpAbortsEveryChoice) {
  for (const char* stream : {"false", "true"}) {
    HttpTestClient client(front_->port());
    client.Send(
        Post("/v1/completions", absl::StrCat(R"({"prompt":[[5],[6]],"stream":)", stream, "}")));
    const std::vector<std::string> ids = core_.WaitFor(2);
    core_.Say(ids[0], "x", 8, true);
    EXPECT_FALSE(core_.aborted(ids[0]));
    client.Close();
    EXPECT_TRUE(Eventually([&] { return core_.aborted(ids[0]) && core_.aborted(ids[1]); }));
  }
}

TEST_F(HttpFrontTest, ClientThatHangsUpLeavesAnothersReusedIdAlone) {
  HttpTestClient client(front_->port()), second(front_->port());
  client.Send(Post("/v1/completions", R"({"prompt":[[5],[6]],"stream":true,"request_id":"z"})"));
  core_.WaitFor(2);
  core_.Finish("z-0", ClientUpdate::Finish::kLength);
  second.Send(Post("/v1/completions", R"({"prompt":[7],"request_id":"z-0"})"));
  core_.WaitFor(2);
  client.Close();
  EXPECT_TRUE(Eventually([&] { return core_.aborted("z-1"); }));
  EXPECT_FALSE(core_.aborted("z-0"));
  core_.WaitFor(1);
  core_.Finish("z-0", ClientUpdate::Finish::kLength);
  EXPECT_EQ(Status(second.ReadResponse()), 200);
}

TEST_F(HttpFrontTest, RefusalsBecomeStatusesAndAbortTheRestOfTheBatch) {
  core_.RefuseAfter(1, absl::ResourceExhaustedError("4096 requests are waiting"));
  const std::string full =
      Ask(Post("/v1/completions", R"({"prompt":[[5],[6]],"stream":true,"request_id":"r"})"));
  EXPECT_EQ(Status(full), 429);
  EXPECT_TRUE(absl::StrContains(full, "Retry-After: 1\r\n")) << full;
  EXPECT_EQ(Body(full)["error"]["message"], "4096 requests are waiting");
  EXPECT_TRUE(core_.aborted("r-0"));
  core_.RefuseAfter(0, absl::UnavailableError("draining"));
  EXPECT_EQ(Status(Ask(Post("/v1/completions", R"({"prompt":[5]})"))), 503);
  const std::string bad = Ask(Post("/v1/completions", R"({"prompt":[5],"n":0})"));
  EXPECT_EQ(Status(bad), 400);
  EXPECT_EQ(Body(bad)["error"]["param"], "n");
  for (const auto& [length, n, status] : {std::tuple(129, 1, 400), std::tuple(127, 2, 400)}) {
    const std::string header = absl::StrCat(
        "POST /v1/completions HTTP/1.1\r\nX-Request-Id: ", std::string(length, 'i'), "\r\n");
    std::string ask = Post("/v1/completions", absl::StrCat(R"({"prompt":[5],"n":)", n, "}"));
    ask.replace(0, ask.find("\r\n") + 2, header);
    const std::string long_id = Ask(ask);
    EXPECT_EQ(Status(long_id), status);
    EXPECT_EQ(Body(long_id)["error"]["param"], "X-Request-Id");
    EXPECT_TRUE(absl::StrContains(long_id, absl::StrCat(length, " bytes"))) << long_id;
  }
}

TEST_F(HttpFrontTest, ErrorsBeforeTheFirstTokenAreStatusesAndLaterOnesEvents) {
  HttpTestClient client(front_->port());
  const std::string ask = Post("/v1/completions", R"({"prompt":[5],"stream":true})");
  client.Send(ask);
  core_.Finish(core_.WaitFor(1)[0], ClientUpdate::Finish::kError,
               absl::UnavailableError("no worker is left"));
  EXPECT_EQ(Status(client.ReadResponse()), 503);
  client.Send(ask);
  const std::string id = core_.WaitFor(1)[0];
  core_.Say(id, "x", 8, true);
  core_.Finish(id, ClientUpdate::Finish::kError, absl::DeadlineExceededError("after 600 s"));
  const std::string stream = client.ReadUntil("0\r\n\r\n");
  EXPECT_EQ(Status(stream), 200);
  EXPECT_TRUE(absl::StrContains(stream, R"(data: {"error":{"message":"after 600 s")")) << stream;
  EXPECT_TRUE(absl::StrContains(stream, "data: [DONE]"));
}

TEST_F(HttpFrontTest, TheErrorOfOneChoiceEndsTheOthers) {
  for (const bool stream : {false, true}) {
    const std::string id = stream ? "s" : "w";
    HttpTestClient client(front_->port());
    client.Send(
        Post("/v1/completions",
             Json({{"prompt", Json::array({5})}, {"n", 2}, {"request_id", id}, {"stream", stream}})
                 .dump()));
    core_.WaitFor(2);
    core_.Say(id + "-1", "x", 8, true);
    if (stream) client.ReadUntil("\n\n");
    core_.Finish(id + "-0", ClientUpdate::Finish::kError, absl::UnavailableError("none is left"));
    if (stream) {
      EXPECT_TRUE(absl::StrContains(client.ReadUntil("0\r\n\r\n"), "none is left"));
    } else {
      EXPECT_EQ(Status(client.ReadResponse()), 503);
    }
    EXPECT_TRUE(Eventually([&] { return core_.aborted(id + "-1"); }));
  }
}

TEST_F(HttpFrontTest, DestructionCutsAndAborts) {
  HttpTestClient client(front_->port());
  client.Send(Post("/v1/completions", R"({"prompt":[5],"stream":true,"request_id":"r"})"));
  core_.WaitFor(1);
  core_.Say("r", "x", 8, true);
  client.ReadUntil("\n\n");
  front_->StartDrain();
  front_.reset();  // cuts the stream
  EXPECT_TRUE(core_.aborted("r"));
  EXPECT_FALSE(absl::StrContains(client.ReadAll(), "[DONE]"));
}

TEST_F(HttpFrontTest, TheRequestIdComesBack) {
  const std::string body = R"({"prompt":[1],"max_tokens":2})";
  const auto post = [&](const std::string& header, const std::string& text) {
    return absl::StrCat("POST /v1/completions HTTP/1.1\r\n", header,
                        "Content-Length: ", text.size(), "\r\n\r\n", text);
  };
  HttpTestClient client(front_->port());
  client.Send(post("X-Request-Id: mine\r\n", body));
  core_.Finish(core_.WaitFor(1)[0], ClientUpdate::Finish::kLength);
  std::string answer = client.ReadResponse();
  EXPECT_TRUE(absl::StrContains(answer, "X-Request-Id: mine\r\n")) << answer;
  EXPECT_EQ(Body(answer)["id"], "mine");
  // The body's own name goes before; one that cannot stand in a header is left out there.
  client.Send(post("X-Request-Id: mine\r\n", R"({"prompt":[1],"request_id":"a\r\nEvil: 1"})"));
  EXPECT_EQ(core_.WaitFor(1)[0], "a\r\nEvil: 1");
  core_.Finish(core_.WaitFor(1)[0], ClientUpdate::Finish::kLength);
  answer = client.ReadResponse();
  EXPECT_FALSE(absl::StrContains(answer, "Evil: 1\r\n")) << answer;
  EXPECT_FALSE(absl::StrContains(answer, "X-Request-Id")) << answer;
  client.Send(post("x-request-id: wrong\r\n", "{}"));
  answer = client.ReadResponse();
  EXPECT_EQ(Status(answer), 400);
  EXPECT_TRUE(absl::StrContains(answer, "X-Request-Id: wrong\r\n")) << answer;
}

TEST_F(HttpFrontTest, SamplesShareSeedAndPrompt) {
  HttpTestClient client(front_->port());
  client.Send(Post("/v1/completions", R"({"prompt":[1,2],"n":3,"request_id":"s"})"));
  const std::vector<std::string> ids = core_.WaitFor(3);
  EXPECT_EQ(ids, (std::vector<std::string>{"s-0", "s-1", "s-2"}));
  for (size_t i = 0; i < 3; ++i) {
    const ClientRequest request = core_.request(ids[i]);
    EXPECT_TRUE(request.seed_given);
    EXPECT_EQ(request.sampling.seed, core_.request(ids[0]).sampling.seed);
    EXPECT_EQ(request.sampling.sample, i);
  }
  for (const std::string& id : ids) core_.Finish(id, ClientUpdate::Finish::kLength);
  const Json body = Body(client.ReadResponse());
  EXPECT_EQ(body["choices"].size(), 3u);
  EXPECT_EQ(body["choices"][2]["index"], 2);
  EXPECT_EQ(body["usage"]["prompt_tokens"], 2);  // once
  EXPECT_EQ(body["usage"]["completion_tokens"], 6);
}

TEST_F(HttpFrontTest, WithKeysOnlyHealthIsOpen) {
  Start({.api_keys = {"secret"}, .allowed_origins = {"https://a.example"}});
  for (const char* path : {"/health", "/readyz", "/version", "/metrics"}) {
    EXPECT_EQ(Status(Get(path)), 200) << path;
  }
  const std::string refused = Get("/v1/models");
  EXPECT_EQ(Status(refused), 401);
  EXPECT_TRUE(absl::StrContains(refused, "WWW-Authenticate: Bearer\r\n"));
  EXPECT_EQ(Body(refused)["error"]["code"], "invalid_api_key");
  for (const char* path : {"/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize"}) {
    EXPECT_EQ(Status(Ask(Post(path, "{}"))), 401) << path;
  }
  // Before the body has come.
  HttpTestClient slow(front_->port());
  slow.Send(
      "POST /v1/completions HTTP/1.1\r\nContent-Length: 1000000\r\n"
      "Origin: https://a.example\r\n\r\n{");
  const std::string early = slow.ReadAll();
  EXPECT_EQ(Status(early), 401);
  EXPECT_TRUE(absl::StrContains(early, "Access-Control-Allow-Origin: https://a.example")) << early;
  const auto with_key = [this](const std::string& key) {
    return Status(Ask("GET /v1/models HTTP/1.1\r\nAuthorization: Bearer " + key + "\r\n\r\n"));
  };
  EXPECT_EQ(with_key("secret"), 200);
  EXPECT_EQ(with_key("secrets"), 401);
  // A page's preflight has no key.
  const std::string preflight =
      Ask("OPTIONS /v1/models HTTP/1.1\r\nOrigin: https://a.example\r\n"
          "Access-Control-Request-Method: GET\r\n\r\n");
  EXPECT_EQ(Status(preflight), 204);
  EXPECT_TRUE(absl::StrContains(preflight, "Access-Control-Allow-Origin: https://a.example"));
}

}  // namespace
}  // namespace switchyard
