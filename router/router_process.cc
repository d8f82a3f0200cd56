#include <filesystem>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/clock.h"
#include "common/random_word.h"
#include "common/status_macros.h"
#include "common/telemetry/log.h"
#include "model/config.h"
#include "router/core.h"
#include "router/grpc_front.h"
#include "router/http/http_front.h"
#include "router/router.h"

namespace switchyard {
namespace {

class RouterProcessImpl final : public RouterProcess {
 public:
  explicit RouterProcessImpl(Logger* log) : log_(log != nullptr ? *log : own_log_) {}
  ~RouterProcessImpl() override {
    if (core_) core_->WatchReady(nullptr);
  }

  absl::Status Start(const RouterOptions& options) {
    CoreOptions core;
    RETURN_IF_ERROR(LoadModel(options, &core));
    core.prefill_addresses = options.prefill_addresses;
    core.decode_addresses = options.decode_addresses;
    core.disaggregate = options.disaggregate;
    core.limits = options.limits;
    core.spans = options.spans;
    core.worker_tls = options.worker_tls;
    core.stream_interval = options.stream_interval;
    core.seed = RandomWord();
    ASSIGN_OR_RETURN(core_, Core::Create(std::move(core), &clock_, &log_));
    ASSIGN_OR_RETURN(http_,
                     HttpFront::Create(core_.get(), {.model_dir = options.model_dir,
                                                     .host = options.host,
                                                     .port = options.http_port,
                                                     .next_free_port = options.next_free_port,
                                                     .api_keys = options.api_keys,
                                                     .admin_keys = options.admin_keys,
                                                     .allowed_origins = options.allowed_origins,
                                                     .tls = options.tls,
                                                     .metrics_port = options.metrics_port}));
    ASSIGN_OR_RETURN(grpc_,
                     GrpcFront::Create(core_.get(), {.host = options.host,
                                                     .port = options.grpc_port,
                                                     .next_free_port = options.next_free_port,
                                                     .api_keys = options.api_keys,
                                                     .admin_keys = options.admin_keys,
                                                     .tls = options.tls}));
    core_->WatchReady([this](bool ready) { grpc_->SetServing(ready); });
    return absl::OkStatus();
  }

  int http_port() const override { return http_->port(); }
  int grpc_port() const override { return grpc_->port(); }
  RouterCore& core() override { return *core_; }

  void Drain(absl::Duration notice) override {
    core_->StartDrain();
    http_->StartDrain();
    if (WaitForNone(notice)) return;
    core_->GiveUpAll();
    (void)WaitForNone(absl::Seconds(1));
  }

 private:
  absl::Status LoadModel(const RouterOptions& options, CoreOptions* core) {
    ASSIGN_OR_RETURN(const ModelConfig config, LoadModelConfig(options.model_dir));
    if (options.max_model_len < 0 || options.max_model_len > config.max_position_embeddings) {
      return absl::InvalidArgumentError(
          absl::StrCat("max_model_len is ", options.max_model_len, ", must be 0 or from 2 to ",
                       config.max_position_embeddings, ", the model's max_position_embeddings"));
    }
    absl::StatusOr<std::unique_ptr<Tokenizer>> tokenizer = Tokenizer::Load(options.model_dir);
    if (tokenizer.ok()) {
      tokenizer_ = *std::move(tokenizer);
    } else if (absl::IsNotFound(tokenizer.status())) {
      log_.Info("no tokenizer files: prompts must be token ids");
    } else {
      return tokenizer.status();
    }
    ModelDescription& model = core->model;
    const std::filesystem::path dir = std::filesystem::path(options.model_dir).lexically_normal();
    model.id = !options.served_model_name.empty() ? options.served_model_name
               : dir.has_filename()               ? dir.filename().string()
                                                  : dir.parent_path().filename().string();
    model.architecture = config.architecture;
    model.vocab_size = config.vocab_size;
    model.max_model_len =
        options.max_model_len > 0 ? options.max_model_len : config.max_position_embeddings;
    model.eos_token_ids = config.eos_token_ids;
    model.created_unix_seconds = absl::ToUnixSeconds(absl::Now());
    core->max_model_len_fixed = options.max_model_len > 0;
    core->tokenizer = tokenizer_.get();
    return absl::OkStatus();
  }

  // Whether all requests ended, and their clients got the answers, within `limit`.
  bool WaitForNone(absl::Duration limit) const {
    const absl::Time until = clock_.Now() + limit;
    for (;;) {
      const RouterStatus status = core_->status();
      if (status.running + status.waiting + grpc_->streams() + http_->answers() == 0) return true;
      if (clock_.Now() >= until) return false;
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
    }
  }

  MonotonicClock clock_;
  Logger own_log_{"router", LogLevel::kInfo, LogFormat::kText};
  Logger& log_;
  std::unique_ptr<Tokenizer> tokenizer_;
  // Fronts go before the core that they call.
  std::unique_ptr<Core> core_;
  std::unique_ptr<GrpcFront> grpc_;
  std::unique_ptr<HttpFront> http_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<RouterProcess>> RouterProcess::Create(const RouterOptions& options) {
  auto process = std::make_unique<RouterProcessImpl>(options.log);
  RETURN_IF_ERROR(process->Start(options));
  return process;
}

}  // namespace switchyard
