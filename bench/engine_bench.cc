#include "bench/engine_bench.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/clock.h"
#include "common/status_macros.h"

namespace switchyard {
namespace {
using nlohmann::ordered_json;

EngineRequest MakeRequest(int id, int tokens, int max_tokens, int vocab) {
  EngineRequest r;
  r.key.request = absl::StrCat("bench-", id);
  r.prompt_ids.resize(tokens);
  // Ids that differ between requests and positions: a fixed, mixed sequence (Knuth's multiplicative
  // hash).
  for (int i = 0; i < tokens; ++i) {
    r.prompt_ids[i] = static_cast<TokenId>((uint64_t{2654435761u} * (i + 7919u * id + 1) >> 8) %
                                           static_cast<uint64_t>(vocab));
  }
  r.max_tokens = max_tokens;
  r.sampling.temperature = 0;
  r.ignore_eos = true;
  return r;
}

struct Sample {
  double prefill_seconds = 0, decode_seconds = 0;
  int decode_tokens = 0;
};

// Prefills `batch` requests of `context` tokens, then decodes `steps` steps of all of them.
absl::StatusOr<Sample> RunOnce(Engine& engine, int batch, int context, int steps) {
  MonotonicClock clock;
  Sample sample;
  const int vocab = engine.model().config().vocab_size;
  for (int i = 0; i < batch; ++i) {
    RETURN_IF_ERROR(engine.Add(MakeRequest(i, context, steps + 1, vocab)));
  }
  const absl::Time start = clock.Now();
  absl::Time prefilled = start;
  int first_tokens = 0;
  while (engine.HasWork()) {
    ASSIGN_OR_RETURN(std::vector<EngineOutput> outputs, engine.Step());
    for (const EngineOutput& o : outputs) {
      if (o.finish == FinishReason::kError) return o.error;
      if (o.index == 0) ++first_tokens;
    }
    if (first_tokens == batch && sample.prefill_seconds == 0) {
      prefilled = clock.Now();
      sample.prefill_seconds = absl::ToDoubleSeconds(prefilled - start);
      // Steps that mixed prefill and decode rows have given some requests tokens already.
      sample.decode_tokens = -static_cast<int>(engine.stats().generated_tokens);
    }
  }
  sample.decode_tokens += static_cast<int>(engine.stats().generated_tokens);
  sample.decode_seconds = absl::ToDoubleSeconds(clock.Now() - prefilled);
  return sample;
}

struct Spread {
  double median, low, high;
};
Spread Summarise(std::vector<double> v) {
  std::sort(v.begin(), v.end());
  return {v[v.size() / 2], v.front(), v.back()};
}

ordered_json Row(const Spread& s) {
  return {{"tokens_per_second", s.median}, {"lowest", s.low}, {"highest", s.high}};
}

absl::Status CheckAll(const char* flag, const std::vector<int>& values, int most, const char* why) {
  for (const int value : values) {
    if (value >= 1 && value <= most) continue;
    return absl::InvalidArgumentError(
        absl::StrCat(flag, " is ", value, ", must be in [1, ", most, "]: ", why));
  }
  return absl::OkStatus();
}

// Of what the engine takes: a longer context or a larger batch would measure something else.
absl::Status CheckLimits(const BenchEngineOptions& o, const EngineOptions& engine) {
  RETURN_IF_ERROR(CheckAll("--prefill-tokens", o.prefill_tokens, engine.max_model_len - 1,
                           "the model's length with a token of answer"));
  RETURN_IF_ERROR(CheckAll("--decode-batches", o.decode_batches, engine.max_num_seqs,
                           "the engine's --max-num-seqs"));
  RETURN_IF_ERROR(CheckAll("--decode-steps", {o.decode_steps}, engine.max_model_len - 2,
                           "the model's length with a prompt and a first token"));
  return CheckAll("--decode-context", {o.decode_context}, engine.max_model_len - o.decode_steps - 1,
                  "the model's length with --decode-steps and a first token");
}

}  // namespace

absl::StatusOr<ordered_json> RunBenchEngine(const BenchEngineOptions& o) {
  ASSIGN_OR_RETURN(std::unique_ptr<Model> model, Model::Load(o.model_dir, o.model));
  EngineOptions options = o.engine;
  options.prefix_caching = false;  // every repetition computes its prompt
  ASSIGN_OR_RETURN(std::unique_ptr<Engine> engine, Engine::Create(model.get(), options));
  RETURN_IF_ERROR(CheckLimits(o, engine->options()));
  const auto say = [&](const std::string& line) {
    if (o.progress) o.progress(line);
  };
  ordered_json out;
  out["model"] = o.model_dir;
  out["numerics_id"] = model->numerics_id();
  out["threads"] = o.model.threads;
  out["prefill"] = out["decode"] = ordered_json::array();
  for (int tokens : o.prefill_tokens) {
    std::vector<double> rates;
    for (int i = 0; i < o.repeats + 1; ++i) {  // the first touches the memory and is not counted
      ASSIGN_OR_RETURN(Sample s, RunOnce(*engine, 1, tokens, 0));
      if (i > 0) rates.push_back(tokens / s.prefill_seconds);
    }
    ordered_json row = Row(Summarise(rates));
    row["tokens"] = tokens;
    say(absl::StrFormat("prefill %5d tokens: %9.1f tok/s", tokens,
                        row["tokens_per_second"].get<double>()));
    out["prefill"].push_back(std::move(row));
  }
  for (int batch : o.decode_batches) {
    std::vector<double> rates;
    for (int i = 0; i < o.repeats; ++i) {
      ASSIGN_OR_RETURN(Sample s, RunOnce(*engine, batch, o.decode_context, o.decode_steps));
      rates.push_back(s.decode_tokens / s.decode_seconds);
    }
    ordered_json row = Row(Summarise(rates));
    row["batch"] = batch;
    row["context"] = o.decode_context;
    say(absl::StrFormat("decode batch %3d at %d: %9.1f tok/s", batch, o.decode_context,
                        row["tokens_per_second"].get<double>()));
    out["decode"].push_back(std::move(row));
  }
  return out;
}

}  // namespace switchyard
