// cli/flags.h: flags that several commands share. Each group adds its flags to a command and turns
// what was given into the options of the library behind it.
#pragma once

#include <CLI/CLI.hpp>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/telemetry/log.h"
#include "engine/worker_options.h"
#include "kernels/sample.h"

namespace switchyard {

// A value that is host:port and can be dialed: the port is 1…65535.
CLI::Validator IsAddress();
// The same, or all addresses of a name (cluster/discovery.h).
CLI::Validator IsWorkerAddress();
// A file that could be written: its folder exists and lets us make one (it is tried).
CLI::Validator IsWritableFile();

CLI::Validator IsSeed();

// MODEL: a checkpoint's directory.
void AddModelFlag(CLI::App& app, std::string* model);
// --config FILE; RunCommand reads the file.
void AddConfigFlag(CLI::App& app);
absl::Status CheckModelGiven(const std::string& model);
// --max-model-len: 0, the model's, or at least a token of prompt and one of answer.
CLI::Option* AddMaxModelLenFlag(CLI::App& app, int* tokens);

struct EngineFlags {
  EngineOptions engine;
  int threads = 0;  // 0: all of this machine's
  int device_index = 0;
  std::string device = "cpu", dtype = "bfloat16", kernels = "auto", load_format = "auto",
              quantization = "none", mla = "absorbed", weights_cache, payload = "auto",
              combine = "unreduced";

  void AddTo(CLI::App& app);
  ModelOptions Model() const;
  // Names of the flags above, without dashes: `serve` hands them on.
  static std::vector<std::string> Names();

 private:
  void AddNumericsTo(CLI::App& app);  // of expert parallelism
};

struct LogFlags {
  std::string level = "info";
  bool json = false;

  void AddTo(CLI::App& app);
  std::unique_ptr<Logger> Make(const std::string& name) const;
  // `log`, if its lines are JSON; else null.
  Logger* IfJson(const std::unique_ptr<Logger>& log) const { return json ? log.get() : nullptr; }
  static std::vector<std::string> Names();
};

// auto, shm or tcp -> allowed lanes, best first.
void AddKvLaneFlag(CLI::App& app, std::string* lane);
std::vector<std::string> KvLanes(const std::string& lane);

struct SamplingFlags {
  int max_tokens = 128;
  SamplingParams sampling;
  bool ignore_eos = false;
  int min_tokens = 0;
  std::vector<int> stop_token_ids;
  std::optional<std::string> prompt;
  std::vector<int> prompt_ids;

  void AddTo(CLI::App& app);
  int Given() const { return prompt.has_value() + !prompt_ids.empty(); }
};

// Reports how far weights have loaded: a bar on a terminal, else a line every 2 s.
// `json`: a logger of JSON lines, which the progress goes to; null: text, and a bar on a terminal.
std::function<void(size_t done, size_t total)> LoadProgress(const std::string& what,
                                                            Logger* json = nullptr);

}  // namespace switchyard
