#include "cli/flags.h"

#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <thread>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "cluster/discovery.h"
#include "common/clock.h"
#include "engine/worker_core.h"

namespace switchyard {
namespace {
constexpr int kThreadsMax = 1024;
constexpr int kModelLenMax = 1 << 24;
}  // namespace

CLI::Validator IsAddress() {
  const auto complaint = [](const std::string& value) {
    const auto host_port = SplitHostPort(value);
    if (host_port.ok() && host_port->second > 0) return std::string();
    return absl::StrCat("\"", value, "\": host:port with a port of 1 to 65535 is wanted");
  };
  return CLI::Validator(complaint, "HOST:PORT");
}

CLI::Validator IsWorkerAddress() {
  const auto complaint = [](const std::string& value) {
    if (Discovery::Create({value}).ok()) return std::string();
    return absl::StrCat("\"", value,
                        "\": host:port, or dns:name:port for all addresses of a name, is wanted");
  };
  return CLI::Validator(complaint, "[dns:]HOST:PORT");
}

CLI::Validator IsWritableFile() {
  const auto complaint = [](const std::string& value) -> std::string {
    const std::filesystem::path path(value);
    const std::string folder = path.has_parent_path() ? path.parent_path().string() : ".";
    std::error_code error;
    if (!path.has_filename() || std::filesystem::is_directory(path, error)) {
      return absl::StrCat("\"", value, "\" names a folder, not a file");
    }
    if (!std::filesystem::is_directory(folder, error)) {
      return absl::StrCat("\"", value, "\": there is no folder ", folder);
    }
    if (std::filesystem::exists(path, error) && !std::filesystem::is_regular_file(path, error)) {
      if (access(value.c_str(), W_OK) == 0) return "";  // a device, a pipe
      return absl::StrCat("\"", value, "\" cannot be written to");
    }
    // Permissions do not tell of all file systems, and for root of none.
    std::string probe = absl::StrCat(folder, "/.switchyard-XXXXXX");
    const int fd = mkstemp(probe.data());
    if (fd < 0) {
      return absl::StrCat("\"", value, "\": the folder ", folder, " cannot be written to");
    }
    close(fd);
    unlink(probe.c_str());
    return "";
  };
  return CLI::Validator(complaint, "FILE");
}

void AddModelFlag(CLI::App& app, std::string* model) {
  app.add_option("model,--model", *model, "the checkpoint's directory")
      ->check(CLI::ExistingDirectory)
      ->option_text("MODEL");
}

void AddConfigFlag(CLI::App& app) {
  static_cast<void>(app.add_option("--config",
                                   "a YAML file whose keys are flags without dashes; the "
                                   "command line goes before it")
                        ->expected(1)
                        ->option_text("FILE"));
}

absl::Status CheckModelGiven(const std::string& model) {
  if (!model.empty()) return absl::OkStatus();
  return absl::InvalidArgumentError("model: a checkpoint's directory is wanted");
}

CLI::Option* AddMaxModelLenFlag(CLI::App& app, int* tokens) {
  const auto complaint = [](const std::string& value) {
    int given = 0;
    if (absl::SimpleAtoi(value, &given) && (given == 0 || (given >= 2 && given <= kModelLenMax))) {
      return std::string();
    }
    return absl::StrCat(value, " is neither 0 (the model's) nor from 2 to ", kModelLenMax);
  };
  return app.add_option("--max-model-len", *tokens, "prompt and answer at most; 0: the model's")
      ->check(CLI::Validator(complaint, "0 or from 2 to the model's"));
}

void EngineFlags::AddTo(CLI::App& app) {
  const std::string group = "Engine";
  AddMaxModelLenFlag(app, &engine.max_model_len)->group(group);
  app.add_option("--max-num-batched-tokens", engine.max_num_batched_tokens, "rows of one step")
      ->check(CLI::Range(1, 1 << 16))
      ->capture_default_str()
      ->group(group);
  app.add_option("--prefill-chunk", engine.prefill_chunk, "prompt rows of a request in one step")
      ->check(CLI::Range(1, 1 << 16))
      ->capture_default_str()
      ->group(group);
  app.add_option("--block-size", engine.block_size, "tokens of a KV block")
      ->check(CLI::Range(1, 1024))
      ->capture_default_str()
      ->group(group);
  app.add_option("--kv-blocks", engine.kv_blocks,
                 "KV blocks of a rank; 0: as needed, 1 GiB at most")
      ->check(CLI::Range(0, 1 << 30))
      ->group(group);
  app.add_option("--max-num-seqs", engine.max_num_seqs, "sequences that run at once")
      ->check(CLI::Range(1, 1 << 16))
      ->capture_default_str()
      ->group(group);
  app.add_flag("--enable-prefix-caching,!--no-enable-prefix-caching", engine.prefix_caching,
               "share the KV of prompts that begin alike; on unless told otherwise")
      ->group(group);
  app.add_option("--threads", threads, "compute threads of a rank; 0: one per core")
      ->check(CLI::Range(0, kThreadsMax))
      ->group(group);
  app.add_option("--device", device, "where the model computes: cpu, or cuda (docs/cuda.md)")
      ->check(CLI::IsMember({"cpu", "cuda"}))
      ->capture_default_str()
      ->group(group);
  app.add_option("--device-index", device_index, "which of the machine's devices")
      ->check(CLI::Range(0, 1023))
      ->capture_default_str()
      ->group(group);
  app.add_option("--dtype", dtype, "of weights, activations and KV")
      ->check(CLI::IsMember({"bfloat16", "float32"}))
      ->capture_default_str()
      ->group(group);
  app.add_option("--quantization", quantization,
                 "int8, int4: projections and experts as integers of as many bits, a half or a "
                 "quarter of the memory")
      ->check(CLI::IsMember({"none", "int8", "int4"}))
      ->capture_default_str()
      ->group(group);
  app.add_option("--mla", mla,
                 "multi-head latent attention. auto: of prompts with expanded keys and values, of "
                 "generated tokens absorbed; absorbed: of all tokens")
      ->check(CLI::IsMember({"absorbed", "auto"}))
      ->capture_default_str()
      ->group(group);
  app.add_option("--kernels", kernels, "")
      ->check(CLI::IsMember({"auto", "reference", "avx2", "avx512", "avx512_vnni", "avx512_bf16"}))
      ->capture_default_str()
      ->group(group);
  app.add_option("--load-format", load_format,
                 "dummy: weights from a fixed seed, no checkpoint read")
      ->check(CLI::IsMember({"auto", "dummy"}))
      ->capture_default_str()
      ->group(group);
  app.add_option("--weights-cache", weights_cache,
                 "keeps packed weights here, and the next start reads them instead of packing")
      ->check(CLI::ExistingDirectory)
      ->option_text("DIR")
      ->group(group);
  AddNumericsTo(app);
}

void EngineFlags::AddNumericsTo(CLI::App& app) {
  const char group[] = "Expert parallelism";
  app.add_option(
         "--ep-payload", payload,
         "how tokens travel to experts. int8: half of bfloat16's bytes, and tokens are "
         "rounded to it on one rank too; auto: so where --quantization does it anyway, else "
         "as --dtype says")
      ->check(CLI::IsMember({"auto", "dtype", "int8"}))
      ->capture_default_str()
      ->group(group);
  app.add_option("--ep-combine", combine,
                 "how expert outputs return. reduced: one row from each rank instead of one from "
                 "each expert; the same request gives other bits when experts are placed otherwise")
      ->check(CLI::IsMember({"unreduced", "reduced"}))
      ->capture_default_str()
      ->group(group);
}

std::vector<std::string> EngineFlags::Names() {
  return {"max-model-len", "max-num-batched-tokens",
          "prefill-chunk", "block-size",
          "kv-blocks",     "max-num-seqs",
          "threads",       "device",
          "device-index",  "dtype",
          "quantization",  "mla",
          "kernels",       "load-format",
          "weights-cache", "ep-payload",
          "ep-combine",    "enable-prefix-caching"};
}

ModelOptions EngineFlags::Model() const {
  ModelOptions options;
  options.device = device == "cuda" ? Device::kCuda : Device::kCpu;
  options.device_index = device_index;
  options.kernels = kernels;
  options.dtype = dtype == "float32" ? DType::kFloat32 : DType::kBfloat16;
  if (quantization == "int8") options.quantization = WeightFormat::kInt8;
  if (quantization == "int4") options.quantization = WeightFormat::kInt4;
  options.mla = mla == "auto" ? MlaForms::kAuto : MlaForms::kAbsorbed;
  options.ep_payload = payload == "int8"    ? EpPayload::kInt8
                       : payload == "dtype" ? EpPayload::kDtype
                                            : EpPayload::kAuto;
  options.reduced_combine = combine == "reduced";
  options.threads =
      threads > 0 ? threads : std::clamp<int>(std::thread::hardware_concurrency(), 1, kThreadsMax);
  options.max_model_len = engine.max_model_len;
  options.max_batch_tokens = engine.max_num_batched_tokens;
  options.dummy_weights = load_format == "dummy";
  options.weights_cache = weights_cache;
  return options;
}

void LogFlags::AddTo(CLI::App& app) {
  app.add_option("--log-level", level, "")
      ->check(CLI::IsMember({"debug", "info", "warning", "error"}))
      ->capture_default_str()
      ->group("Logging");
  app.add_flag("--json-logs", json, "log lines as JSON")->group("Logging");
}

std::vector<std::string> LogFlags::Names() { return {"log-level", "json-logs"}; }

std::unique_ptr<Logger> LogFlags::Make(const std::string& name) const {
  return std::make_unique<Logger>(name, ParseLogLevel(level).value_or(LogLevel::kInfo),
                                  json ? LogFormat::kJson : LogFormat::kText);
}

void AddKvLaneFlag(CLI::App& app, std::string* lane) {
  app.add_option("--kv-lane", *lane, "how KV goes from prefill to decode")
      ->check(CLI::IsMember({"auto", "shm", "tcp"}))
      ->capture_default_str();
}

std::vector<std::string> KvLanes(const std::string& lane) {
  if (lane == "auto") return {"shm", "tcp"};
  return {lane};
}

// strtoull, behind the flag's conversion, takes −1 for 2^64 − 1.
CLI::Validator IsSeed() {
  const auto complaint = [](const std::string& value) {
    uint64_t seed = 0;
    if (absl::SimpleAtoi(value, &seed)) return std::string();
    return absl::StrCat(value, " is not an integer from 0 to 2^64 - 1");
  };
  return CLI::Validator(complaint, "0 to 2^64 - 1");
}

void SamplingFlags::AddTo(CLI::App& app) {
  app.add_option("--prompt", prompt, "text");
  app.add_option("--prompt-ids", prompt_ids, "token ids instead: 1,2,3")->delimiter(',');
  app.add_option("--max-tokens", max_tokens, "")
      ->check(CLI::Range(1, 1 << 24))
      ->capture_default_str();
  app.add_option("--temperature", sampling.temperature, "0: greedy")
      ->check(CLI::Range(0.0, double{kTemperatureMax}))
      ->capture_default_str();
  app.add_option("--top-k", sampling.top_k, "0: off")->check(CLI::Range(0, 1 << 30));
  app.add_option("--top-p", sampling.top_p, "1: off")->check(CLI::Range(0.0, 1.0));
  app.add_option("--min-p", sampling.min_p, "of the best token's probability; 0: off")
      ->check(CLI::Range(0.0, 1.0));
  for (auto [name, value] : {std::pair("--presence-penalty", &sampling.presence_penalty),
                             std::pair("--frequency-penalty", &sampling.frequency_penalty)}) {
    app.add_option(name, *value, "of tokens that were generated; 0: off")
        ->check(CLI::Range(-kPenaltyMax, kPenaltyMax));
  }
  app.add_option("--repetition-penalty", sampling.repetition_penalty,
                 "of prompt and generated tokens; 1: off")
      ->check(CLI::Range(1e-6f, kRepetitionPenaltyMax));
  app.add_option("--seed", sampling.seed, "")->check(IsSeed())->capture_default_str();
  app.add_option("--min-tokens", min_tokens, "nothing ends the answer before so many")
      ->check(CLI::Range(0, 1 << 24));
  app.add_option("--stop-token-ids", stop_token_ids, "end the answer: 1,2,3")->delimiter(',');
  app.add_flag("--ignore-eos", ignore_eos, "go on past the end of the text");
}

std::function<void(size_t, size_t)> LoadProgress(const std::string& what, Logger* json) {
  struct State {
    MonotonicClock clock;
    absl::Time next = clock.Now() + absl::Milliseconds(200);  // a small model needs no bar
    bool shown = false;
  };
  auto state = std::make_shared<State>();
  const bool terminal = json == nullptr && isatty(STDERR_FILENO) != 0;
  return [=](size_t done, size_t total) {
    const absl::Time now = state->clock.Now();
    if (total == 0 || (now < state->next && !(state->shown && done == total))) return;
    state->next = now + (terminal ? absl::Milliseconds(100) : absl::Seconds(2));
    state->shown = true;
    const int percent =
        static_cast<int>(100.0 * static_cast<double>(done) / static_cast<double>(total));
    const double mib = static_cast<double>(total) / (1 << 20);
    if (json != nullptr) {
      return json->Info("loading weights", {{"percent", percent}, {"of_mib", mib}});
    }
    if (!terminal) {
      std::fprintf(stderr, "%s: weights %d%% of %.0f MiB\n", what.c_str(), percent, mib);
      return;
    }
    const std::string bar(percent / 4, '#');
    std::fprintf(stderr, "\r%s: weights [%-25s] %3d%% of %.0f MiB%s", what.c_str(), bar.c_str(),
                 percent, mib, done == total ? "\n" : "");
  };
}

}  // namespace switchyard
