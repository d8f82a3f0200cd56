// OpenAI's /v1/completions with token-id prompts, streamed: ours, vLLM's, SGLang's.
#include <nlohmann/json.hpp>
#include <thread>

#include "absl/strings/str_cat.h"
#include "bench/backend.h"
#include "bench/sse.h"
#include "common/net/http_client.h"

namespace switchyard {
namespace {

using Json = nlohmann::json;
constexpr size_t kErrorBytesMax = 300;      // shown of a refusal
constexpr uint64_t kUsageMax = 10'000'000;  // tokens; more is not believed

// One request; lives on the client's thread.
class Completion {
 public:
  Completion(LoadRequest request, const Clock* clock, LoadBackend::Done done)
      : drop_after_(request.drop_after),
        events_max_(EventsMax(request.item)),
        intended_(request.start + request.intended),
        clock_(clock),
        done_(std::move(done)) {
    record_.prompt_tokens = static_cast<int>(request.item.prompt_ids.size());
    record_.cut = request.item.cut;
    record_.intended = request.intended;
    OnStart();
  }

  // Once more when the client's thread takes it up: all streams are its, and it may be behind.
  void OnStart() { record_.sent_late = clock_->Now() - intended_; }

  // False: the driver wants no more of it.
  bool OnPiece(std::string_view piece) {
    if (begin_.size() < kErrorBytesMax) begin_.append(piece.substr(0, kErrorBytesMax));
    if (!events_.Push(piece, [this](std::string_view data) { OnEvent(data); })) {
      record_.error = "an event is longer than 1 MiB";
      return false;
    }
    if (chunks_ > events_max_) {
      record_.error = kEndless;
      return false;
    }
    return drop_after_ == 0 || chunks_ < drop_after_;
  }

  void OnEnd(absl::StatusOr<int> status) {
    record_.e2e = (chunks_ > 0 ? last_ : clock_->Now()) - intended_;
    record_.output_tokens = usage_tokens_ > 0 ? usage_tokens_ : chunks_;
    record_.dropped = absl::IsCancelled(status.status()) && record_.error.empty();
    if (!status.ok()) {
      if (!absl::IsCancelled(status.status()))
        record_.error = std::string(status.status().message());
    } else if (*status != 200) {
      record_.error = absl::StrCat(*status, ": ", begin_);
    } else if (record_.error.empty() && !finished_) {
      record_.error = "the stream ended without a finish reason";
    }
    done_(std::move(record_));
  }

 private:
  void OnEvent(std::string_view data) {
    if (data == "[DONE]") return;
    const absl::Time now = clock_->Now();
    const Json event = Json::parse(data, nullptr, /*allow_exceptions=*/false);
    if (!event.is_object()) {
      record_.error = "an event is not a JSON object";
      return;
    }
    if (const auto error = event.find("error"); error != event.end() && record_.error.empty()) {
      record_.error =
          error->dump(-1, ' ', false, Json::error_handler_t::replace).substr(0, kErrorBytesMax);
    }
    if (const auto usage = event.find("usage"); usage != event.end() && usage->is_object()) {
      const auto tokens = usage->find("completion_tokens");
      if (tokens != usage->end() && tokens->is_number_unsigned() &&
          tokens->get<uint64_t>() <= kUsageMax) {
        usage_tokens_ = tokens->get<int>();
      }
    }
    const auto choices = event.find("choices");
    if (choices == event.end() || !choices->is_array() || choices->empty()) return;
    if (chunks_++ == 0) {
      record_.ttft = now - intended_;
    } else {
      record_.itls.push_back(now - last_);
    }
    last_ = now;
    const Json& choice = choices->front();
    const auto reason = choice.is_object() ? choice.find("finish_reason") : choice.end();
    finished_ = finished_ || (choice.is_object() && reason != choice.end() && reason->is_string());
  }

  const int drop_after_;
  const int64_t events_max_;
  const absl::Time intended_;
  const Clock* const clock_;
  const LoadBackend::Done done_;
  SseReader events_;
  RequestRecord record_;
  absl::Time last_;
  std::string begin_;
  int chunks_ = 0, usage_tokens_ = 0;
  bool finished_ = false;
};

class HttpBackend final : public LoadBackend {
 public:
  HttpBackend(const BackendOptions& options, const Clock* clock)
      : options_(options), clock_(clock), client_(options.address, options.api_key) {}
  const char* name() const override { return "openai"; }

  absl::StatusOr<BackendModel> AwaitReady(absl::Duration limit) override {
    const absl::Time until = clock_->Now() + limit;
    absl::StatusOr<std::string> body;
    for (;;) {
      body = client_.Get("/v1/models", std::max(absl::Seconds(1), until - clock_->Now()));
      if (body.ok()) break;
      if (clock_->Now() >= until) {
        return absl::UnavailableError(
            absl::StrCat("the server at ", options_.address, " does not answer /v1/models (waited ",
                         absl::FormatDuration(limit), "): ", body.status().message()));
      }
      std::this_thread::sleep_for(std::chrono::milliseconds(100));
    }
    return ModelOf(*body);
  }

  void Start(LoadRequest request, Done done) override {
    const WorkItem& item = request.item;
    Json body = {{"model", model_},
                 {"prompt", item.prompt_ids},
                 {"max_tokens", item.output_len},
                 {"temperature", options_.temperature},
                 {"seed", request.seed},
                 {"stream", true},
                 {"stream_options", {{"include_usage", true}}}};
    if (options_.ignore_eos) body["ignore_eos"] = true;  // vLLM's, and ours
    HttpCall call;
    call.method = "POST";
    call.path = options_.endpoint;
    call.body = body.dump();
    call.timeout = options_.timeout;
    auto completion = std::make_shared<Completion>(std::move(request), clock_, std::move(done));
    call.on_start = [completion] { completion->OnStart(); };
    call.on_piece = [completion](std::string_view piece) { return completion->OnPiece(piece); };
    call.on_end = [completion](absl::StatusOr<int> status) {
      completion->OnEnd(std::move(status));
    };
    client_.Start(std::move(call));
  }
  void CancelAll() override { client_.CancelAll(); }

 private:
  absl::StatusOr<BackendModel> ModelOf(const std::string& body) {
    const Json json = Json::parse(body, nullptr, /*allow_exceptions=*/false);
    const auto data = json.is_object() ? json.find("data") : json.end();
    if (!json.is_object() || data == json.end() || !data->is_array()) {
      return absl::UnavailableError("/v1/models: has no list \"data\"");
    }
    for (const Json& entry : *data) {
      if (!entry.is_object() || !entry.contains("id") || !entry["id"].is_string()) continue;
      const std::string id = entry["id"];
      if (!options_.model.empty() && id != options_.model) continue;
      model_ = id;
      BackendModel model{.id = id, .vocab_size = 0, .tokens_max = 0};
      const auto len = entry.find("max_model_len");
      if (len != entry.end() && len->is_number_integer()) model.tokens_max = len->get<int>();
      return model;
    }
    return absl::NotFoundError(
        absl::StrCat("--model is ", options_.model, ", not among /v1/models"));
  }

  const BackendOptions options_;
  const Clock* const clock_;
  std::string model_;
  HttpClient client_;  // last: its thread uses the rest
};

}  // namespace

std::unique_ptr<LoadBackend> MakeHttpBackend(const BackendOptions& options, const Clock* clock) {
  return std::make_unique<HttpBackend>(options, clock);
}

}  // namespace switchyard
