#include "engine/engine.h"

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <limits>

#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "common/status_macros.h"
#include "engine/engine_options.h"
#include "engine/scheduler.h"
#include "engine/step_batch.h"
#include "kernels/sample.h"
#include "kernels/token_weights.h"

namespace switchyard {
namespace {

bool Holds(const std::vector<TokenId>& ids, TokenId token) {
  return std::find(ids.begin(), ids.end(), token) != ids.end();
}

class EngineImpl final : public Engine, private LayerObserver {
 public:
  EngineImpl(Model* model, const EngineOptions& options, StepGroup* group, KvStorage kv)
      : model_(*model),
        options_(options),
        group_(group),
        shares_(group != nullptr && group->tensor_ranks() > 1),
        batch_limits_{.block_size = options.block_size,
                      .kv_blocks = options.kv_blocks,
                      .rows = options.max_num_batched_tokens,
                      .sequences = std::min(options.max_num_seqs, options.max_num_batched_tokens),
                      .blocks_per_sequence = kv.layout().BlocksFor(options.max_model_len)},
        vocab_(model->config().vocab_size),
        kv_(std::move(kv)),
        pool_(options.kv_blocks),
        scheduler_(SchedulerOptionsFor(options, *model), &pool_) {}

  absl::Status Add(EngineRequest request) override {
    RETURN_IF_ERROR(CheckTensorRank());
    RETURN_IF_ERROR(CheckRequest(request, vocab_, options_.max_model_len));
    return scheduler_.Add(std::move(request));
  }

  void Abort(const AttemptKey& key) override { scheduler_.Abort(key); }
  void Release(const AttemptKey& key) override { scheduler_.Release(key); }

  absl::StatusOr<KvReservation> Reserve(int tokens, std::span<const TokenId> ids,
                                        size_t prompt_tokens, std::string_view cache_salt,
                                        int priority) override;
  void ReleaseReservation(const KvReservation& reservation, bool quarantine) override {
    scheduler_.ReturnPrefix(std::span(reservation.blocks).first(reservation.shared()));
    const auto leased = std::span(reservation.blocks).subspan(reservation.shared());
    if (quarantine) return pool_.Quarantine(leased);
    pool_.Release(leased);
    scheduler_.OnBlocksFreed();
  }
  void Unquarantine(const KvReservation& reservation) override {
    pool_.Unquarantine(std::span(reservation.blocks).subspan(reservation.shared()));
    scheduler_.OnBlocksFreed();
  }
  absl::Status Adopt(EngineRequest request, const KvReservation& reservation,
                     TokenId first) override;

  bool HasWork() const override {
    return scheduler_.HasWork() || (group_ != nullptr && group_->StepWanted());
  }
  absl::StatusOr<std::vector<EngineOutput>> Step() override;

  void SetKvProgress(std::function<void(const KvProgress&)> callback) override {
    kv_progress_ = std::move(callback);
  }

  KvStorage& kv() override { return kv_; }
  const BlockPool& pool() const override { return pool_; }
  uint64_t progress() const override { return layers_done_.load(std::memory_order_relaxed); }
  EngineStats stats() const override;
  const EngineOptions& options() const override { return options_; }
  const Model& model() const override { return model_; }

 private:
  void OnLayerWritten(int layer) override;
  bool Reads(size_t index) const override {
    return kv_progress_ && index < plan_.size() && plan_[index].sequence->request.prefill_only;
  }
  // Whether there is something to compute in this step, once all ranks have opened it.
  absl::StatusOr<bool> OpenStep();
  // The ranks that compute attention with this one have lost what they had: so has every request.
  void EndIfLost(std::vector<EngineOutput>* outputs);
  absl::Status CheckTensorRank() const;
  // On the other ranks of a tensor-parallel group: the first one's batch becomes this step's.
  absl::Status ShareBatch();
  // Takes in a chunk's logits, which begin at logits_ row `*row`.
  void Absorb(const Scheduler::Chunk& chunk, size_t* row, std::vector<EngineOutput>* outputs);
  // What decides the sequence's next token besides its logits and parameters; valid until the next
  // call.
  TokenHistory HistoryOf(const Sequence& sequence);
  // Which rows' tokens the model may draw: those that nothing but its logits decides.
  void WishDraws();
  SampledToken Sample(const Sequence& sequence, std::span<const float> logits);
  FinishReason FinishAfter(const EngineRequest& request, TokenId token, int length,
                           int length_max) const;
  std::span<const float> LogitRow(size_t row) const {
    return {logits_.data() + row * static_cast<size_t>(vocab_), static_cast<size_t>(vocab_)};
  }

  Model& model_;
  const EngineOptions options_;
  StepGroup* const group_;  // null: steps alone
  const bool shares_;       // the batch: tensor parallelism
  const BatchLimits batch_limits_;
  const int vocab_;
  KvStorage kv_;
  BlockPool pool_;
  Scheduler scheduler_;
  std::function<void(const KvProgress&)> kv_progress_;
  uint64_t tensor_epoch_ = 1;  // the group's, that the KV is of
  uint64_t steps_ = 0, prompt_tokens_ = 0, generated_tokens_ = 0;
  std::atomic<uint64_t> layers_done_{0};

  // This step's batch: kept, so that a steady state allocates nothing.
  std::span<const Scheduler::Chunk> plan_;
  StepBatch batch_;
  std::vector<int32_t> words_;  // the same, shared
  std::vector<float> logits_, adjusted_;
  DrawMemory draw_memory_;
  std::vector<TokenId> banned_;
  std::vector<Draw> draws_;     // [logit rows]; empty: the model draws none
  std::vector<TokenId> drawn_;  // the same
};

absl::StatusOr<KvReservation> EngineImpl::Reserve(int tokens, std::span<const TokenId> ids,
                                                  size_t prompt_tokens, std::string_view cache_salt,
                                                  int priority) {
  RETURN_IF_ERROR(
      CheckEngineOption("tokens of a reservation", tokens, 1, options_.max_model_len - 1));
  KvReservation reservation;
  if (ids.size() == static_cast<size_t>(tokens)) {
    reservation.blocks = scheduler_.LendPrefix(ids, prompt_tokens, cache_salt);
  }
  const auto shared = static_cast<int>(reservation.blocks.size());
  const int blocks = kv_.layout().BlocksFor(tokens) - shared;
  scheduler_.MakeLeasable(blocks, priority);
  if (const int leasable = scheduler_.Leasable(priority); blocks > leasable) {
    scheduler_.ReturnPrefix(reservation.blocks);
    return absl::ResourceExhaustedError(absl::StrCat(blocks, " KV blocks wanted for ", tokens,
                                                     " tokens, ", leasable, " of ",
                                                     pool_.counts().total, " may be leased"));
  }
  ASSIGN_OR_RETURN(const std::vector<BlockId> leased, pool_.Lease(blocks));
  reservation.generations.assign(reservation.blocks.size(), 0);
  for (const BlockId b : leased) reservation.generations.push_back(pool_.generation(b));
  reservation.blocks.insert(reservation.blocks.end(), leased.begin(), leased.end());
  return reservation;
}

absl::Status EngineImpl::Adopt(EngineRequest request, const KvReservation& reservation,
                               TokenId first) {
  RETURN_IF_ERROR(CheckRequest(request, vocab_, options_.max_model_len));
  RETURN_IF_ERROR(CheckEngineOption("first token", first, 0, vocab_ - 1));
  if (request.prefill_only) {
    return absl::InvalidArgumentError("prefill_only is true for a request with its first token");
  }
  const auto length =
      static_cast<int>(request.prompt_ids.size() + request.generated_ids.size()) + 1;
  const int64_t most = static_cast<int64_t>(request.prompt_ids.size()) + request.max_tokens;
  const auto length_max = static_cast<int>(std::min<int64_t>(most, options_.max_model_len));
  if (FinishAfter(request, first, length, length_max) != FinishReason::kNone) {
    return absl::InvalidArgumentError(
        absl::StrCat("first token ", first, " ends the request: nothing is left to decode"));
  }
  request.prompt_logprobs = -1;
  if (kv_.device() != nullptr) {
    kv_.device()->TakeFromHost(std::span(reservation.blocks).subspan(reservation.shared()));
  }
  return scheduler_.Adopt(std::move(request), reservation.blocks,
                          static_cast<int>(reservation.shared()), first);
}

FinishReason EngineImpl::FinishAfter(const EngineRequest& r, TokenId token, int length,
                                     int length_max) const {
  if (!r.ignore_eos && Holds(model_.config().eos_token_ids, token)) return FinishReason::kStop;
  if (Holds(r.stop_token_ids, token)) return FinishReason::kStop;
  return length >= length_max ? FinishReason::kLength : FinishReason::kNone;
}

void EngineImpl::OnLayerWritten(int layer) {
  layers_done_.fetch_add(1, std::memory_order_relaxed);
  if (!kv_progress_) return;
  for (const Scheduler::Chunk& c : plan_) {
    const Sequence& s = *c.sequence;
    if (!s.request.prefill_only) continue;
    const int first = s.computed == s.cached ? 0 : s.computed;
    kv_progress_({.key = s.request.key,
                  .layer = layer,
                  .first_token = first,
                  .tokens = s.computed + c.rows - first,
                  .prompt_tokens = s.given,
                  .blocks = s.blocks});
  }
}

TokenHistory EngineImpl::HistoryOf(const Sequence& s) {
  const EngineRequest& r = s.request;
  const auto tokens = std::span(s.tokens);
  const auto prompt_length = static_cast<size_t>(s.prompt_length());
  banned_.clear();
  if (s.length() - s.prompt_length() < r.min_tokens) {
    banned_ = r.stop_token_ids;
    const std::vector<TokenId>& eos = model_.config().eos_token_ids;
    if (!r.ignore_eos) banned_.insert(banned_.end(), eos.begin(), eos.end());
  }
  return {.prompt = tokens.first(prompt_length),
          .generated = tokens.subspan(prompt_length),
          .banned = banned_};
}

void EngineImpl::WishDraws() {
  draws_.clear();
  drawn_.assign(batch_.sampled.size(), -1);
  for (const Sequence* s : batch_.sampled) {
    const bool free = s != nullptr && s->request.sampling.logprobs < 0 &&
                      model_.Draws(s->request.sampling) &&
                      !AdjustsLogits(s->request.sampling, HistoryOf(*s));
    // The token's absolute position is the length before it.
    draws_.push_back(free ? Draw{&s->request.sampling, s->tokens.size()} : Draw{});
  }
}

SampledToken EngineImpl::Sample(const Sequence& s, std::span<const float> logits) {
  const EngineRequest& r = s.request;
  const TokenHistory history = HistoryOf(s);
  std::span<const float> choose_from = logits;
  if (AdjustsLogits(r.sampling, history)) {
    adjusted_.assign(logits.begin(), logits.end());
    AdjustLogits(r.sampling, history, adjusted_);
    choose_from = adjusted_;
  }
  const TokenId token = ChooseToken(choose_from, r.sampling, s.tokens.size(), draw_memory_);
  return ScoreToken(logits, token, r.sampling.logprobs);
}

void EngineImpl::Absorb(const Scheduler::Chunk& chunk, size_t* row,
                        std::vector<EngineOutput>* outputs) {
  Sequence& s = *chunk.sequence;
  const EngineRequest& r = s.request;
  const bool samples = chunk.samples();
  scheduler_.Commit(chunk);
  // What was found in the prefix cache was not computed; what was preempted was, twice.
  prompt_tokens_ +=
      static_cast<uint64_t>(std::clamp(s.given - (s.computed - chunk.rows), 0, chunk.rows));
  bool finite = true;
  while (s.wants_prompt_scores() && static_cast<int>(s.prompt_scores.size()) < s.computed) {
    const auto logits = LogitRow((*row)++);
    finite = finite && AllFinite(logits);
    const TokenId next = r.prompt_ids[s.prompt_scores.size() + 1];
    s.prompt_scores.push_back(finite ? ScoreToken(logits, next, r.prompt_logprobs)
                                     : SampledToken{});
  }
  const bool drawn = samples && draws_[*row].params != nullptr;
  const TokenId token = drawn ? drawn_[*row] : -1;
  const std::span<const float> logits = samples ? LogitRow((*row)++) : std::span<const float>();
  finite = finite && (drawn ? token >= 0 : AllFinite(logits));
  if (!samples && finite) return;

  EngineOutput out;
  out.key = r.key;
  out.index = s.length() - s.prompt_length();
  if (!finite) {
    out.finish = FinishReason::kError;
    out.error =
        absl::InternalError(absl::StrCat("logits before position ", s.computed, " are not finite"));
  } else {
    out.token = drawn ? SampledToken{token, 0, 1, {}} : Sample(s, logits);
    if (s.length() == s.given) {
      out.cached_tokens = s.cached;
      out.prompt_logprobs = std::move(s.prompt_scores);
      s.request.prompt_logprobs = -1;  // told: a recomputed prompt is not scored again
    }
    ++generated_tokens_;
    scheduler_.Append(s, out.token->token);
    out.finish = FinishAfter(r, out.token->token, s.length(), s.length_max);
  }
  outputs->push_back(std::move(out));
  if (outputs->back().finish != FinishReason::kNone || r.prefill_only) scheduler_.Finish(s);
}

absl::Status EngineImpl::CheckTensorRank() const {
  if (!shares_ || (group_->tensor_rank() == 0 && group_->tensor_epoch() != 0)) {
    return absl::OkStatus();
  }
  return absl::UnavailableError(
      group_->tensor_rank() != 0
          ? "requests go to the first rank of a tensor-parallel group, this is another"
          : "a rank of the tensor-parallel group is missing");
}

void EngineImpl::EndIfLost(std::vector<EngineOutput>* outputs) {
  if (!shares_ || group_->tensor_epoch() == tensor_epoch_) return;
  const bool had_none = tensor_epoch_ == 0;  // since then there was nothing to lose
  tensor_epoch_ = group_->tensor_epoch();
  if (had_none) return;
  scheduler_.EndAll([&](const Sequence& s) {
    EngineOutput& out = outputs->emplace_back();
    out.key = s.request.key;
    out.index = s.length() - s.prompt_length();
    out.finish = FinishReason::kError;
    out.error = absl::UnavailableError("a rank of the tensor-parallel group was lost");
  });
}

absl::StatusOr<bool> EngineImpl::OpenStep() {
  if (group_ == nullptr) return !plan_.empty();
  if (shares_) EncodeBatch(batch_, batch_limits_, &words_);
  return group_->Open(static_cast<int>(batch_.tokens.size()), words_.size());
}

absl::Status EngineImpl::ShareBatch() {
  if (!shares_) return absl::OkStatus();
  RETURN_IF_ERROR(group_->ShareBatch(&words_, batch_limits_.words()));
  if (group_->tensor_rank() == 0) return absl::OkStatus();
  return DecodeBatch(words_, batch_limits_, &batch_);
}

absl::StatusOr<std::vector<EngineOutput>> EngineImpl::Step() {
  std::vector<EngineOutput> outputs;
  EndIfLost(&outputs);
  if (!outputs.empty()) return outputs;
  plan_ = scheduler_.Schedule();
  BuildBatch(plan_, &batch_);
  ASSIGN_OR_RETURN(const bool any, OpenStep());
  if (!any) return outputs;
  absl::Status done = ShareBatch();
  // Logits are the business of the rank that has the requests.
  const size_t rows = plan_.empty() ? 0 : batch_.logit_rows.size();
  const size_t wanted = rows * static_cast<size_t>(vocab_);
  if (logits_.size() < wanted) logits_.resize(wanted);
  const Matrix<float> logits(logits_.data(), {rows, static_cast<size_t>(vocab_)});
  WishDraws();
  if (done.ok()) {
    done = model_.Forward({.tokens = batch_.tokens,
                           .sequences = batch_.sequences,
                           .logit_rows = batch_.logit_rows,
                           .draws = draws_,
                           .drawn = drawn_,
                           .prompts = batch_.prompts},
                          kv_, this, logits);
  }
  if (!done.ok()) {
    plan_ = {};
    return done;
  }
  ++steps_;
  size_t row = 0;
  outputs.reserve(plan_.size());
  for (const Scheduler::Chunk& c : plan_) Absorb(c, &row, &outputs);
  plan_ = {};
  SY_CHECK(row == rows);
  const BlockPool::Counts& n = pool_.counts();
  SY_CHECK(n.free + n.cached + n.owned + n.leased + n.quarantined == n.total);
#ifndef NDEBUG
  scheduler_.CheckInvariants();
#endif
  return outputs;
}

EngineStats EngineImpl::stats() const {
  return {.running = scheduler_.running(),
          .waiting = scheduler_.waiting(),
          .held = scheduler_.held(),
          .steps = steps_,
          .prompt_tokens = prompt_tokens_,
          .generated_tokens = generated_tokens_,
          .preemptions = scheduler_.preemptions(),
          .prefix_queries = scheduler_.prefix_queries(),
          .prefix_hits = scheduler_.prefix_hits(),
          .blocks = pool_.counts()};
}

}  // namespace

absl::StatusOr<std::unique_ptr<Engine>> Engine::Create(Model* model, const EngineOptions& options,
                                                       StepGroup* group) {
  ASSIGN_OR_RETURN(const EngineOptions resolved, ResolveOptions(*model, options));
  const KvLayout layout = model->config().KvLayoutFor(model->options().dtype, resolved.block_size);
  ASSIGN_OR_RETURN(KvStorage kv, model->MakeKv(layout, resolved.kv_blocks));
  return std::make_unique<EngineImpl>(model, resolved, group, std::move(kv));
}

}  // namespace switchyard
