#include "bench/engine_bench.h"

#include <algorithm>
#include <optional>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "bench/ceilings.h"
#include "bench/spread.h"
#include "common/clock.h"
#include "common/status_macros.h"
#include "engine/work_estimate.h"

namespace switchyard {
namespace {
using nlohmann::ordered_json;

AttemptKey MakeKey(int id) { return {.request = absl::StrCat("bench-", id)}; }

EngineRequest MakeRequest(int id, int tokens, int max_tokens, int vocab) {
  EngineRequest r;
  r.key = MakeKey(id);
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

// One step. Returns how many requests have their first token from it.
absl::StatusOr<int> StepOnce(Engine& engine) {
  ASSIGN_OR_RETURN(const std::vector<EngineOutput> outputs, engine.Step());
  int begun = 0;
  for (const EngineOutput& o : outputs) {
    if (o.finish == FinishReason::kError) return o.error;
    begun += o.index == 0;
  }
  return begun;
}

// Steps until as many more requests as `begun` have a first token each.
absl::Status StepUntilBegun(Engine& engine, int begun) {
  while (begun > 0) {
    ASSIGN_OR_RETURN(const int now, StepOnce(engine));
    begun -= now;
  }
  return absl::OkStatus();
}

// Tokens per second of the last `tokens` of one prompt, `context` of which are computed before.
absl::StatusOr<double> PrefillRate(Engine& engine, int context, int tokens) {
  const MonotonicClock clock;
  const uint64_t before = engine.stats().prompt_tokens + static_cast<uint64_t>(context);
  RETURN_IF_ERROR(
      engine.Add(MakeRequest(0, context + tokens, 1, engine.model().config().vocab_size)));
  while (engine.stats().prompt_tokens < before) RETURN_IF_ERROR(StepOnce(engine).status());
  const absl::Time start = clock.Now();
  RETURN_IF_ERROR(StepUntilBegun(engine, 1));
  return tokens / absl::ToDoubleSeconds(clock.Now() - start);
}

// Tokens per second of `steps` steps in which all of `batch` requests generate. Those that are
// prefilled first generate already while the others wait for their turn: their contexts are longer
// than `context` by some tokens, and none may be at its end before the last has begun.
absl::StatusOr<double> DecodeRate(Engine& engine, int batch, int context, int steps) {
  const MonotonicClock clock;
  const EngineOptions& options = engine.options();
  const int turns = context / std::min(options.prefill_chunk, options.max_num_batched_tokens) + 2;
  const int max_tokens = std::min(options.max_model_len - context, steps + 1 + batch * turns);
  for (int i = 0; i < batch; ++i) {
    RETURN_IF_ERROR(
        engine.Add(MakeRequest(i, context, max_tokens, engine.model().config().vocab_size)));
  }
  RETURN_IF_ERROR(StepUntilBegun(engine, batch));
  const uint64_t before = engine.stats().generated_tokens;
  const absl::Time start = clock.Now();
  for (int i = 0; i < steps; ++i) RETURN_IF_ERROR(engine.Step().status());
  const double seconds = absl::ToDoubleSeconds(clock.Now() - start);
  const uint64_t tokens = engine.stats().generated_tokens - before;
  for (int i = 0; i < batch; ++i) engine.Abort(MakeKey(i));
  while (engine.HasWork()) RETURN_IF_ERROR(engine.Step().status());
  const uint64_t wanted = static_cast<uint64_t>(batch) * static_cast<uint64_t>(steps);
  if (tokens != wanted) {
    return absl::ResourceExhaustedError(
        absl::StrCat(batch, " sequences at ", context, " generated ", tokens, " tokens in ", steps,
                     " steps: --max-model-len or --kv-blocks is too small for all at once"));
  }
  return static_cast<double>(tokens) / seconds;
}

// Holds rates against what the machine allows at the same time: the seconds that the arithmetic or
// the bytes of some work need at least.
class Floor {
 public:
  // Without ceilings (a device, the reference) there is none.
  Floor(const BenchEngineOptions& o, const ModelConfig& config)
      : work_(EstimateWork(config, o.model.dtype, o.model.quantization, 1,
                           o.model.expands_prompts())),
        head_flops_(2.0 * config.vocab_size * config.hidden_size),
        arithmetic_(o.model.quantization                ? Ceiling::kInt8Dot
                    : o.model.dtype == DType::kBfloat16 ? Ceiling::kBf16Dot
                                                        : Ceiling::kFloat32Fma),
        pool_(o.model.threads) {
    const absl::StatusOr<CpuPath> path = FindCpuPath(o.model.kernels);
    if (o.model.device != Device::kCpu || !path.ok()) return;
    ceilings_.emplace(*path->isa, pool_);
    if (!ceilings_->Has(arithmetic_)) arithmetic_ = Ceiling::kFloat32Fma;
  }

  // Returns the tokens per second that `run` gives, and adds to `shares` the least time of such a
  // step ÷ the time that it took: `rows` tokens that look at `keys` keys each on average, of
  // `sequences` contexts; `prompt`: they are prompts' tokens.
  absl::StatusOr<double> Measure(const std::function<absl::StatusOr<double>()>& run, double rows,
                                 double sequences, double context, double keys, bool prompt,
                                 std::vector<double>* shares) {
    if (!ceilings_) return run();
    const double key_flops = prompt ? work_.prompt_key_flops : work_.key_flops;
    const double flops = rows * (work_.token_flops + keys * key_flops) + sequences * head_flops_;
    const double bytes = work_.ReadBytes(rows, 1) + sequences * context * work_.key_bytes;
    std::vector<double> computing, reading;  // seconds
    const auto sample = [&] {
      for (int i = 0; i < kSamples; ++i) {
        computing.push_back(flops / ceilings_->Measure(arithmetic_));
        reading.push_back(bytes / ceilings_->Measure(Ceiling::kMemoryRead));
      }
    };
    sample();
    ASSIGN_OR_RETURN(const double rate, run());
    sample();
    shares->push_back(std::max(Median(computing), Median(reading)) * rate / rows);
    return rate;
  }

 private:
  static constexpr int kSamples = 5;  // before, and as many after: each takes some milliseconds

  const WorkEstimate work_;
  const double head_flops_;
  Ceiling arithmetic_;
  ComputePool pool_;
  std::optional<Ceilings> ceilings_;
};

ordered_json Row(const std::vector<double>& rates, const std::vector<double>& shares) {
  const Spread s = Summarise(rates);
  ordered_json row = {
      {"tokens_per_second", s.median}, {"lowest", s.lowest}, {"highest", s.highest}};
  if (shares.empty()) return row;
  const Spread share = Summarise(shares);
  row["share"] = {{"median", share.median}, {"lowest", share.lowest}, {"highest", share.highest}};
  return row;
}

std::string Text(const ordered_json& row) {
  const std::string rate = absl::StrFormat("%9.1f tok/s", row["tokens_per_second"].get<double>());
  if (!row.contains("share")) return rate;
  const ordered_json& share = row["share"];
  return absl::StrFormat("%s, %.2f (%.2f to %.2f) of the machine's ceiling", rate,
                         share["median"].get<double>(), share["lowest"].get<double>(),
                         share["highest"].get<double>());
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
  const int chunk = std::min(engine.prefill_chunk, engine.max_num_batched_tokens);
  const int context_max = engine.max_model_len - 2;  // a prompt's last token and a token of answer
  if (o.prefill_context % chunk != 0 || o.prefill_context > context_max) {
    return absl::InvalidArgumentError(
        absl::StrCat("--prefill-context is ", o.prefill_context, ", must be a multiple of ", chunk,
                     " (a step's tokens of a prompt, --prefill-chunk) and at most ", context_max));
  }
  RETURN_IF_ERROR(CheckAll("--prefill-tokens", o.prefill_tokens,
                           engine.max_model_len - 1 - o.prefill_context,
                           "the model's length with --prefill-context and a token of answer"));
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
  Floor floor(o, model->config());
  for (int tokens : o.prefill_tokens) {
    const int context = o.prefill_context;
    const auto run = [&] { return PrefillRate(*engine, context, tokens); };
    RETURN_IF_ERROR(run().status());  // touches the memory
    std::vector<double> rates, shares;
    for (int i = 0; i < o.repeats; ++i) {
      ASSIGN_OR_RETURN(const double rate,
                       floor.Measure(run, tokens, 1, context + tokens, context + (tokens + 1) / 2.0,
                                     true, &shares));
      rates.push_back(rate);
    }
    ordered_json row = Row(rates, shares);
    row["tokens"] = tokens;
    row["context"] = context;
    const std::string after = context > 0 ? absl::StrCat(" after ", context) : "";
    say(absl::StrFormat("prefill %5d tokens%s: %s", tokens, after, Text(row)));
    out["prefill"].push_back(std::move(row));
  }
  for (int batch : o.decode_batches) {
    const auto run = [&] { return DecodeRate(*engine, batch, o.decode_context, o.decode_steps); };
    std::vector<double> rates, shares;
    for (int i = 0; i < o.repeats; ++i) {
      ASSIGN_OR_RETURN(const double rate, floor.Measure(run, batch, batch, o.decode_context,
                                                        o.decode_context, false, &shares));
      rates.push_back(rate);
    }
    ordered_json row = Row(rates, shares);
    row["batch"] = batch;
    row["context"] = o.decode_context;
    say(absl::StrFormat("decode batch %3d at %d: %s", batch, o.decode_context, Text(row)));
    out["decode"].push_back(std::move(row));
  }
  return out;
}

}  // namespace switchyard
