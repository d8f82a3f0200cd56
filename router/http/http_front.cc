#include "router/http/http_front.h"

#include <atomic>
#include <nlohmann/json.hpp>
#include <random>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/net/http_server.h"
#include "common/status_macros.h"
#include "common/version.h"
#include "router/http/openai_fields.h"
#include "router/http/openai_job.h"
#include "router/http/openai_request.h"
#include "router/http/openai_response.h"
#include "text/chat_template.h"

namespace switchyard {
namespace {

using Json = nlohmann::ordered_json;
using Responder = std::shared_ptr<HttpResponder>;

// They tokenize and make JSON; the engine's threads are in other processes.
constexpr char kChatPath[] = "/v1/chat/completions";
constexpr char kDebugPath[] = "/debug/requests";  // an admin's, if there are admin keys
constexpr int kIoThreads = 4;
constexpr absl::Duration kStopGrace = absl::Seconds(1);

HttpResponse JsonResponse(const Json& json) {
  return {.status = 200,
          .content_type = "application/json",
          .body = json.dump(-1, ' ', false, Json::error_handler_t::replace),
          .headers = {}};
}

Json ToJson(const std::vector<RequestStatus>& requests) {
  Json list = Json::array();
  for (const RequestStatus& r : requests) {
    list.push_back({{"request_id", r.id},
                    {"state", r.running ? "running" : "waiting"},
                    {"age_seconds", absl::ToDoubleSeconds(r.age)},
                    {"attempt", r.attempt},
                    {"prompt_tokens", r.prompt_tokens},
                    {"tokens", r.tokens},
                    {"max_tokens", r.max_tokens},
                    {"priority", r.priority},
                    {"prefill_worker", r.prefill_worker},
                    {"decode_worker", r.decode_worker},
                    {"trace_id", r.trace_id}});
  }
  return {{"requests", std::move(list)}};
}

// The checkpoint's chat template with its special tokens' names; empty if it has none. A template
// that can't be read fails chat, not the rest.
std::function<absl::StatusOr<std::string>(const Json&)> ChatRenderer(const std::string& model_dir) {
  nlohmann::json special_tokens = nlohmann::json::object();
  auto loaded = LoadChatTemplate(model_dir, &special_tokens);
  if (absl::IsNotFound(loaded.status())) return nullptr;
  if (!loaded.ok()) {
    return
        [status = loaded.status()](const Json&) -> absl::StatusOr<std::string> { return status; };
  }
  std::shared_ptr<const ChatTemplate> chat = *std::move(loaded);
  return [chat, names = std::make_shared<const Json>(special_tokens)](const Json& context) {
    Json whole = *names;
    whole.update(context);
    return chat->Render(whole);
  };
}

// The core would name a field that the client did not send, and count what is appended.
absl::Status CheckRequestId(const std::string& id, const ApiRequest& request) {
  const size_t choices = request.choices.size();
  const size_t longest = choices > 1 ? absl::StrCat("-", choices - 1).size() : 0;
  if (id.size() + longest <= kRequestIdBytesMax) return absl::OkStatus();
  return FieldError(request.request_id.empty() ? "X-Request-Id" : "request_id",
                    absl::StrCat("has ", id.size(), " bytes, must have at most ",
                                 kRequestIdBytesMax - longest, " with ", choices, " answers"));
}

}  // namespace

struct HttpFront::Impl {
  Impl(RouterCore* core, const HttpFrontOptions& options)
      : core(core),
        keys(options.api_keys, options.admin_keys),
        render_chat(ChatRenderer(options.model_dir)),
        boot(std::random_device()()) {}

  std::vector<HttpRoute> OwnRoutes();
  std::vector<HttpRoute> ApiRoutes();
  // A route that needs a key, if there are any.
  HttpRoute Guarded(std::string method, std::string path, HttpHandler handler) const;
  // What a body is read against now: a worker's registration may change the model's description.
  ApiContext Api() const;
  void Generate(const HttpRequest& http, absl::StatusOr<ApiRequest> request, Responder responder);
  Json Model() const;
  HttpResponse Ready() const;
  HttpResponse Tokenize(const std::string& body) const;
  HttpResponse Detokenize(const std::string& body) const;

  RouterCore* const core;
  const ApiKeys keys;
  const std::function<absl::StatusOr<std::string>(const Json&)> render_chat;
  const uint32_t boot;  // tells ids of this process from those of the one before
  std::atomic<uint64_t> requests = 0;
  // Last: their threads use the rest.
  std::unique_ptr<HttpServer> metrics;  // null: none
  std::unique_ptr<HttpServer> server;
};

HttpRoute HttpFront::Impl::Guarded(std::string method, std::string path,
                                   HttpHandler handler) const {
  const bool for_admins = path == kDebugPath;
  return {std::move(method), std::move(path), std::move(handler),
          [this, for_admins](const HttpRequest& head) -> std::optional<HttpResponse> {
            const std::string_view key = head.Header("Authorization");
            if (for_admins && keys.Allows(key) && !keys.AllowsAdmin(key)) {
              return HttpError(403, "an admin key is wanted here", "permission_error");
            }
            if (keys.Allows(key)) return std::nullopt;
            HttpResponse refusal =
                HttpError(401, "a valid API key is wanted as \"Authorization: Bearer KEY\"",
                          "authentication_error", {}, "invalid_api_key");
            refusal.headers.emplace_back("WWW-Authenticate", "Bearer");
            return refusal;
          }};
}

ApiContext HttpFront::Impl::Api() const {
  return {.model = &core->model(),
          .limits = &core->limits(),
          .tokenizer = core->tokenizer(),
          .render_chat = render_chat,
          .admit = [core = core](int priority, absl::Duration deadline) {
            return core->CheckAdmission(priority, deadline);
          }};
}

void HttpFront::Impl::Generate(const HttpRequest& http, absl::StatusOr<ApiRequest> request,
                               Responder responder) {
  std::string id = request.ok() ? request->request_id : "";
  if (id.empty()) id = std::string(http.Header("X-Request-Id"));
  if (id.empty()) {
    id = absl::StrCat(http.path == kChatPath ? "chatcmpl-" : "cmpl-",
                      absl::Hex(boot, absl::kZeroPad8), "-", ++requests);
  }
  if (request.ok()) {
    if (absl::Status status = CheckRequestId(id, *request); !status.ok()) request = status;
  }
  if (!request.ok()) {
    responder->Send(WithRequestId(id, ErrorResponse(request.status())));
    return;
  }
  const auto trace = ParseTraceparent(http.Header("traceparent"));
  for (ClientRequest& choice : request->choices) choice.trace = trace;
  std::make_shared<OpenAiJob>(core, *std::move(request), std::move(id), std::move(responder))
      ->Start();
}

Json HttpFront::Impl::Model() const {
  const ModelDescription& model = core->model();
  return {{"id", model.id},
          {"object", "model"},
          {"created", model.created_unix_seconds},
          {"owned_by", "switchyard"},
          {"root", model.id},
          {"parent", nullptr},
          {"max_model_len", model.max_model_len}};
}

HttpResponse HttpFront::Impl::Ready() const {
  const RouterStatus status = core->status();
  if (status.ready) return JsonResponse({{"status", "ready"}});
  return HttpError(503, status.not_ready_because, "service_unavailable_error");
}

HttpResponse HttpFront::Impl::Tokenize(const std::string& body) const {
  const absl::StatusOr<std::vector<TokenId>> ids = ParseTokenize(body, Api());
  if (!ids.ok()) return ErrorResponse(ids.status());
  return JsonResponse(
      {{"count", ids->size()}, {"max_model_len", core->model().max_model_len}, {"tokens", *ids}});
}

HttpResponse HttpFront::Impl::Detokenize(const std::string& body) const {
  const absl::StatusOr<std::string> text = ParseDetokenize(body, Api());
  if (!text.ok()) return ErrorResponse(text.status());
  return JsonResponse({{"prompt", *text}});
}

// What tells of the router itself: nobody needs a key.
std::vector<HttpRoute> HttpFront::Impl::OwnRoutes() {
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
      get("/metrics",
          [this] {
            return HttpResponse{.status = 200,
                                .content_type = "text/plain; version=0.0.4; charset=utf-8",
                                .body = core->MetricsText(),
                                .headers = {}};
          }),
  };
}

std::vector<HttpRoute> HttpFront::Impl::ApiRoutes() {
  return {
      Guarded(
          "GET", "/v1/models",
          [this](const HttpRequest&, Responder responder) {
            responder->Send(JsonResponse({{"object", "list"}, {"data", Json::array({Model()})}}));
          }),
      Guarded("GET", absl::StrCat("/v1/models/", core->model().id),
              [this](const HttpRequest&, Responder responder) {
                responder->Send(JsonResponse(Model()));
              }),
      Guarded("GET", kDebugPath,
              [this](const HttpRequest&, Responder responder) {
                core->ListRequests([responder](const std::vector<RequestStatus>& requests) {
                  responder->Send(JsonResponse(ToJson(requests)));
                });
              }),
      Guarded("POST", "/v1/completions",
              [this](const HttpRequest& request, Responder responder) {
                Generate(request, ParseCompletion(request.body, Api()), std::move(responder));
              }),
      Guarded("POST", kChatPath,
              [this](const HttpRequest& request, Responder responder) {
                Generate(request, ParseChatCompletion(request.body, Api()), std::move(responder));
              }),
      Guarded("POST", "/tokenize",
              [this](const HttpRequest& request, Responder responder) {
                responder->Send(Tokenize(request.body));
              }),
      Guarded("POST", "/detokenize",
              [this](const HttpRequest& request, Responder responder) {
                responder->Send(Detokenize(request.body));
              }),
  };
}

absl::StatusOr<std::unique_ptr<HttpFront>> HttpFront::Create(RouterCore* core,
                                                             const HttpFrontOptions& options) {
  auto impl = std::make_unique<Impl>(core, options);
  HttpServerOptions server;
  server.host = options.host;
  server.port = options.port;
  server.next_free_port = options.next_free_port;
  server.allowed_origins = options.allowed_origins;
  server.tls = options.tls;
  server.io_threads = kIoThreads;
  server.body_bytes_max = core->limits().body_bytes_max;
  std::vector<HttpRoute> routes = impl->OwnRoutes();
  if (options.metrics_port >= 0) {
    HttpServerOptions own;
    own.host = options.host;
    own.port = options.metrics_port;
    ASSIGN_OR_RETURN(impl->metrics, HttpServer::Create(own, routes));
  }
  for (HttpRoute& route : impl->ApiRoutes()) routes.push_back(std::move(route));
  ASSIGN_OR_RETURN(impl->server, HttpServer::Create(server, std::move(routes)));
  return std::unique_ptr<HttpFront>(new HttpFront(std::move(impl)));
}

HttpFront::HttpFront(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
HttpFront::~HttpFront() {
  impl_->server->Stop(kStopGrace);
  if (impl_->metrics != nullptr) impl_->metrics->Stop(absl::ZeroDuration());
}

int HttpFront::port() const { return impl_->server->port(); }
int HttpFront::answers() const { return impl_->server->answers(); }
void HttpFront::StartDrain() { impl_->server->StartDrain(); }

}  // namespace switchyard
