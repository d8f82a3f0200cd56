#include "router/http/http_front.h"

#include <atomic>
#include <nlohmann/json.hpp>
#include <random>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/net/http_server.h"
#include "common/status_macros.h"
#include "router/http/openai_job.h"
#include "router/http/openai_request.h"
#include "router/http/openai_response.h"
#include "text/chat_template.h"

namespace switchyard {
namespace {

using Json = nlohmann::ordered_json;
using Responder = std::shared_ptr<HttpResponder>;

constexpr char kVersion[] = "0.1.0";
// They tokenize and make JSON; the engine's threads are in other processes.
constexpr int kIoThreads = 4;
constexpr absl::Duration kStopGrace = absl::Seconds(1);

HttpResponse JsonResponse(const Json& json) {
  return {.status = 200,
          .content_type = "application/json",
          .body = json.dump(-1, ' ', false, Json::error_handler_t::replace),
          .headers = {}};
}

// The checkpoint's chat template with its special tokens' names; empty if it has none. A template
// that can't be read fails chat, not the rest.
std::function<absl::StatusOr<std::string>(const nlohmann::json&)> ChatRenderer(
    const std::string& model_dir) {
  nlohmann::json special_tokens = nlohmann::json::object();
  auto loaded = LoadChatTemplate(model_dir, &special_tokens);
  if (absl::IsNotFound(loaded.status())) return nullptr;
  if (!loaded.ok()) {
    return [status = loaded.status()](const nlohmann::json&) -> absl::StatusOr<std::string> {
      return status;
    };
  }
  std::shared_ptr<const ChatTemplate> chat = *std::move(loaded);
  return [chat, special_tokens](const nlohmann::json& context) {
    nlohmann::json whole = special_tokens;
    whole.update(context);
    return chat->Render(whole);
  };
}

}  // namespace

struct HttpFront::Impl {
  Impl(RouterCore* core, const std::string& model_dir)
      : core(core),
        api{.model = &core->model(),
            .limits = &core->limits(),
            .tokenizer = core->tokenizer(),
            .render_chat = ChatRenderer(model_dir)},
        boot(std::random_device()()) {}

  std::vector<HttpRoute> Routes();
  void Generate(const absl::StatusOr<ApiRequest>& request, Responder responder);
  HttpResponse Models() const;
  HttpResponse Ready() const;
  HttpResponse Tokenize(const std::string& body) const;
  HttpResponse Detokenize(const std::string& body) const;

  RouterCore* const core;
  const ApiContext api;
  const uint32_t boot;  // tells ids of this process from those of the one before
  std::atomic<uint64_t> requests = 0;
  std::unique_ptr<HttpServer> server;  // last: its threads use the rest
};

void HttpFront::Impl::Generate(const absl::StatusOr<ApiRequest>& request, Responder responder) {
  if (!request.ok()) {
    responder->Send(ErrorResponse(request.status()));
    return;
  }
  std::string id = request->request_id;
  if (id.empty()) {
    id = absl::StrCat(request->chat ? "chatcmpl-" : "cmpl-", absl::Hex(boot, absl::kZeroPad8), "-",
                      ++requests);
  }
  std::make_shared<OpenAiJob>(core, *request, std::move(id), std::move(responder))->Start();
}

HttpResponse HttpFront::Impl::Models() const {
  const ModelDescription& model = core->model();
  const Json entry = {{"id", model.id},
                      {"object", "model"},
                      {"created", model.created_unix_seconds},
                      {"owned_by", "switchyard"},
                      {"root", model.id},
                      {"parent", nullptr},
                      {"max_model_len", model.max_model_len}};
  return JsonResponse({{"object", "list"}, {"data", Json::array({entry})}});
}

HttpResponse HttpFront::Impl::Ready() const {
  const RouterStatus status = core->status();
  if (status.ready) return JsonResponse({{"status", "ready"}});
  return HttpError(503, status.not_ready_because, "service_unavailable_error");
}

HttpResponse HttpFront::Impl::Tokenize(const std::string& body) const {
  const absl::StatusOr<std::vector<TokenId>> ids = ParseTokenize(body, api);
  if (!ids.ok()) return ErrorResponse(ids.status());
  return JsonResponse(
      {{"count", ids->size()}, {"max_model_len", core->model().max_model_len}, {"tokens", *ids}});
}

HttpResponse HttpFront::Impl::Detokenize(const std::string& body) const {
  const absl::StatusOr<std::string> text = ParseDetokenize(body, api);
  if (!text.ok()) return ErrorResponse(text.status());
  return JsonResponse({{"prompt", *text}});
}

std::vector<HttpRoute> HttpFront::Impl::Routes() {
  const auto get = [](const char* path, auto answer) {
    return HttpRoute{"GET", path, [answer](const HttpRequest&, Responder responder) {
                       responder->Send(answer());
                     }};
  };
  return {
      get("/health",
          [] {
            return JsonResponse({{"status", "ok"}});
          }),
      get("/readyz", [this] { return Ready(); }),
      get("/version",
          [] {
            return JsonResponse({{"version", kVersion}});
          }),
      get("/v1/models", [this] { return Models(); }),
      get("/metrics",
          [this] {
            return HttpResponse{.status = 200,
                                .content_type = "text/plain; version=0.0.4; charset=utf-8",
                                .body = core->MetricsText(),
                                .headers = {}};
          }),
      {"POST", "/v1/completions",
       [this](const HttpRequest& request, Responder responder) {
         Generate(ParseCompletion(request.body, api), std::move(responder));
       }},
      {"POST", "/v1/chat/completions",
       [this](const HttpRequest& request, Responder responder) {
         Generate(ParseChatCompletion(request.body, api), std::move(responder));
       }},
      {"POST", "/tokenize",
       [this](const HttpRequest& request, Responder responder) {
         responder->Send(Tokenize(request.body));
       }},
      {"POST", "/detokenize",
       [this](const HttpRequest& request, Responder responder) {
         responder->Send(Detokenize(request.body));
       }},
  };
}

absl::StatusOr<std::unique_ptr<HttpFront>> HttpFront::Create(RouterCore* core,
                                                             const std::string& model_dir,
                                                             const std::string& host, int port,
                                                             bool next_free_port) {
  auto impl = std::make_unique<Impl>(core, model_dir);
  HttpServerOptions options;
  options.host = host;
  options.port = port;
  options.next_free_port = next_free_port;
  options.io_threads = kIoThreads;
  options.body_bytes_max = core->limits().body_bytes_max;
  ASSIGN_OR_RETURN(impl->server, HttpServer::Create(options, impl->Routes()));
  return std::unique_ptr<HttpFront>(new HttpFront(std::move(impl)));
}

HttpFront::HttpFront(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
HttpFront::~HttpFront() { impl_->server->Stop(kStopGrace); }

int HttpFront::port() const { return impl_->server->port(); }
void HttpFront::StartDrain() { impl_->server->StartDrain(); }

}  // namespace switchyard
