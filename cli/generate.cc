// switchyard generate: one process, no network: the reference for every layout's bits.
#include <cstdio>
#include <fstream>
#include <iostream>
#include <map>

#include "cli/command.h"
#include "cli/flags.h"
#include "cli/local_engine.h"
#include "common/file.h"
#include "common/status_macros.h"
#include "engine/requests_file.h"

namespace switchyard {
namespace {

constexpr size_t kRequestsBytesMax = size_t{1} << 30;

// Runs every request; results in the order of the requests.
absl::StatusOr<std::vector<FileResult>> RunAll(Engine& engine, std::vector<FileRequest> requests) {
  std::vector<FileResult> results(requests.size());
  std::map<std::string, size_t> index;
  for (size_t i = 0; i < requests.size(); ++i) {
    results[i].id = requests[i].request.key.request;
    results[i].prompt_tokens = static_cast<int>(requests[i].request.prompt_ids.size());
    index[results[i].id] = i;
  }
  for (size_t next = 0; next < requests.size() || engine.HasWork();) {
    while (next < requests.size()) {  // as many as the queue takes
      const absl::Status added = engine.Add(requests[next].request);
      if (absl::IsResourceExhausted(added) && engine.HasWork()) break;
      if (!added.ok()) {
        results[next].finish = FinishReason::kError;
        results[next].error = added;
      }
      ++next;
    }
    ASSIGN_OR_RETURN(std::vector<EngineOutput> outputs, engine.Step());
    for (EngineOutput& output : outputs) {
      FileResult& result = results[index.at(output.key.request)];
      if (output.token.has_value()) result.tokens.push_back(std::move(*output.token));
      if (!output.prompt_logprobs.empty())
        result.prompt_logprobs = std::move(output.prompt_logprobs);
      if (output.finish == FinishReason::kNone) continue;
      result.finish = output.finish;
      result.error = output.error;
    }
  }
  return results;
}

class GenerateCommand final : public Command {
 public:
  std::string name() const override { return "generate"; }
  std::string help() const override {
    return "answers a prompt in this process, without a network";
  }

  void AddFlags(CLI::App& app) override {
    AddModelFlag(app, &model_);
    sampling_.AddTo(app);
    app.add_option("--requests", requests_, "many requests instead, as JSON lines; - is stdin");
    app.add_option("--output", output_, "where the results of --requests go; default stdout")
        ->check(IsWritableFile());
    engine_.AddTo(app);
  }
  absl::Status CheckFlags() const override {
    RETURN_IF_ERROR(CheckModelGiven(model_));
    if (sampling_.Given() + !requests_.empty() != 1) {
      return absl::InvalidArgumentError("one of --prompt, --prompt-ids and --requests is wanted");
    }
    if (!output_.empty() && requests_.empty()) {
      return absl::InvalidArgumentError(
          "--output is for the results of --requests; an answer to one prompt goes to stdout");
    }
    return absl::OkStatus();
  }

  absl::StatusOr<int> Run(const CLI::App&) override {
    ASSIGN_OR_RETURN(const LocalEngine local, LoadLocalEngine(model_, engine_));
    return requests_.empty() ? RunOne(local) : RunFile(local);
  }

 private:
  absl::StatusOr<int> RunOne(const LocalEngine& local) {
    EngineRequest request;
    request.key.request = "prompt";
    request.prompt_ids = {sampling_.prompt_ids.begin(), sampling_.prompt_ids.end()};
    if (request.prompt_ids.empty()) {
      ASSIGN_OR_RETURN(request.prompt_ids, EncodePrompt(local.tokenizer.get(), *sampling_.prompt));
    }
    request.sampling = sampling_.sampling;
    request.max_tokens = sampling_.max_tokens;
    request.min_tokens = sampling_.min_tokens;
    request.stop_token_ids = {sampling_.stop_token_ids.begin(), sampling_.stop_token_ids.end()};
    request.ignore_eos = sampling_.ignore_eos;
    RETURN_IF_ERROR(local.engine->Add(std::move(request)));
    std::optional<DetokenizerStream> text;
    if (local.tokenizer != nullptr) text.emplace(local.tokenizer.get(), true);
    while (local.engine->HasWork()) {
      ASSIGN_OR_RETURN(const std::vector<EngineOutput> outputs, local.engine->Step());
      for (const EngineOutput& output : outputs) {
        if (output.finish == FinishReason::kError) return output.error;
        if (!output.token.has_value()) continue;
        const TokenId token = output.token->token;
        std::cout << (text.has_value() ? text->Push(token) : absl::StrCat(token, " "))
                  << std::flush;
      }
    }
    if (text.has_value()) std::cout << text->Finish();
    std::cout << std::endl;
    return 0;
  }

  absl::StatusOr<int> RunFile(const LocalEngine& local) {
    const std::string path = requests_ == "-" ? "/dev/stdin" : requests_;
    std::string lines;
    if (requests_ == "-") {
      lines.assign(std::istreambuf_iterator<char>(std::cin), {});
    } else {
      ASSIGN_OR_RETURN(lines, ReadFile(path, kRequestsBytesMax));
    }
    auto requests = ParseRequests(lines);
    if (!requests.ok()) {
      return absl::InvalidArgumentError(absl::StrCat(path, ": ", requests.status().message()));
    }
    for (FileRequest& r : *requests) {
      if (!r.text.has_value()) continue;
      ASSIGN_OR_RETURN(r.request.prompt_ids, EncodePrompt(local.tokenizer.get(), *r.text));
    }
    ASSIGN_OR_RETURN(const std::vector<FileResult> results, RunAll(*local.engine, *requests));
    std::string out;
    for (size_t i = 0; i < results.size(); ++i) {
      out += FormatResult(results[i], (*requests)[i].request);
    }
    if (!output_.empty()) {
      RETURN_IF_ERROR(WriteFileAtomically(output_, out));
    } else {
      std::cout << out << std::flush;
    }
    return 0;
  }

  std::string model_, requests_, output_;
  SamplingFlags sampling_;
  EngineFlags engine_;
};

}  // namespace

std::unique_ptr<Command> MakeGenerate() { return std::make_unique<GenerateCommand>(); }

}  // namespace switchyard
