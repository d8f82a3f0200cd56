#include "engine/scheduler.h"

#include <algorithm>
#include <map>
#include <tuple>

#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "common/status_macros.h"

namespace switchyard {
namespace {

// To expand so many tokens of a context takes as long as an absorbed row does (docs/numbers.md): a
// step whose prompts are expanded is bounded as one of max_num_batched_tokens such rows.
constexpr int kExpandedPerRow = 21;

absl::Status AlreadyExists(const AttemptKey& key) {
  return absl::AlreadyExistsError(
      absl::StrCat("request ", key.request, " attempt ", key.attempt, " is here already"));
}

}  // namespace

bool Scheduler::InOrder::operator()(const Sequence* a, const Sequence* b) const {
  return std::tie(a->request.priority, a->arrival) < std::tie(b->request.priority, b->arrival);
}

Scheduler::Scheduler(const SchedulerOptions& options, BlockPool* pool)
    : options_([&] {
        SchedulerOptions o = options;
        // Each running sequence may want a row of every step.
        o.max_num_seqs = std::min(o.max_num_seqs, o.max_num_batched_tokens);
        o.max_logit_rows = std::max(o.max_logit_rows, o.max_num_seqs);
        return o;
      }()),
      pool_(pool),
      prefixes_(pool, options.prefix_seed) {
  SY_CHECK(options_.block_tokens >= 1 && options_.max_num_batched_tokens >= 1 &&
           options_.prefill_chunk >= 1 && options_.max_num_seqs >= 1 && options_.max_waiting >= 1 &&
           options_.max_model_len >= 2);
}

int Scheduler::BlocksFor(int tokens) const {
  return tokens / options_.block_tokens + (tokens % options_.block_tokens != 0);
}

absl::Status Scheduler::CheckNew(const EngineRequest& request, int given) const {
  if (Contains(request.key)) return AlreadyExists(request.key);
  // The last token of a request needs no KV: nothing follows it.
  const int64_t length = std::min<int64_t>(
      static_cast<int64_t>(request.prompt_ids.size()) + request.max_tokens, options_.max_model_len);
  const int tokens = request.prefill_only ? given : static_cast<int>(length - 1);
  const int blocks = BlocksFor(std::max(tokens, given));
  if (blocks > pool_->counts().total) {
    return absl::InvalidArgumentError(
        absl::StrCat("prompt of ", request.prompt_ids.size(), " tokens with max_tokens ",
                     request.max_tokens, " may need ", blocks, " KV blocks of ",
                     options_.block_tokens, " tokens; kv_blocks is ", pool_->counts().total));
  }
  return absl::OkStatus();
}

Scheduler::Queue* Scheduler::QueueOf(Sequence::State state) {
  switch (state) {
    case Sequence::State::kWaiting:
      return &waiting_;
    case Sequence::State::kAdopted:
      return &adopted_;
    case Sequence::State::kRunning:
      return &running_;
    case Sequence::State::kHeld:
      break;
  }
  return &held_;
}

void Scheduler::Move(Sequence& s, Sequence::State to) {
  SY_CHECK(QueueOf(s.state)->erase(&s) == 1);
  s.state = to;
  QueueOf(to)->insert(&s);
}

Sequence& Scheduler::Insert(EngineRequest request, Sequence::State state) {
  auto s = std::make_unique<Sequence>();
  s->arrival = arrivals_++;
  s->length_max = static_cast<int>(
      std::min<int64_t>(static_cast<int64_t>(request.prompt_ids.size()) + request.max_tokens,
                        options_.max_model_len));
  s->tokens = request.prompt_ids;
  s->tokens.insert(s->tokens.end(), request.generated_ids.begin(), request.generated_ids.end());
  s->given = s->length();
  s->request = std::move(request);
  s->state = state;
  Sequence& sequence = *s;
  sequences_.emplace(sequence.request.key, std::move(s));
  QueueOf(state)->insert(&sequence);
  stalled_ = false;
  return sequence;
}

absl::Status Scheduler::Add(EngineRequest request) {
  RETURN_IF_ERROR(CheckNew(
      request, static_cast<int>(request.prompt_ids.size() + request.generated_ids.size())));
  if (waiting_.size() >= static_cast<size_t>(options_.max_waiting)) {
    return absl::ResourceExhaustedError(absl::StrCat(
        waiting_.size(), " requests wait already; max_waiting is ", options_.max_waiting));
  }
  Insert(std::move(request), Sequence::State::kWaiting);
  return absl::OkStatus();
}

std::vector<BlockId> Scheduler::LendPrefix(std::span<const TokenId> tokens, size_t prompt,
                                           std::string_view salt) {
  if (!options_.prefix_caching) return {};
  const size_t blocks = tokens.size() / static_cast<size_t>(options_.block_tokens);
  std::vector<PrefixHash> hashes;
  for (PrefixHash hash = RootOf(salt); hashes.size() < blocks;) {
    hashes.push_back(hash = HashOf(hash, tokens, prompt, hashes.size()));
  }
  hashes.resize(static_cast<size_t>(prefixes_.Find(hashes).blocks));
  lent_ += static_cast<int>(hashes.size());
  return prefixes_.Take(hashes);
}

void Scheduler::ReturnPrefix(std::span<const BlockId> blocks) {
  lent_ -= static_cast<int>(blocks.size());
  const std::vector<BlockId> last_first(blocks.rbegin(), blocks.rend());
  pool_->Release(last_first);
  stalled_ = false;
}

absl::Status Scheduler::Adopt(EngineRequest request, std::span<const BlockId> blocks, int lent,
                              TokenId first) {
  const int given = static_cast<int>(request.prompt_ids.size() + request.generated_ids.size());
  if (static_cast<int>(blocks.size()) != BlocksFor(given)) {
    return absl::InvalidArgumentError(absl::StrCat("reservation of ", blocks.size(), " blocks for ",
                                                   given, " tokens; ", BlocksFor(given),
                                                   " are wanted"));
  }
  RETURN_IF_ERROR(CheckNew(request, given));
  pool_->Adopt(blocks.subspan(static_cast<size_t>(lent)));
  lent_ -= lent;
  Sequence& s = Insert(std::move(request), Sequence::State::kAdopted);
  s.blocks.assign(blocks.begin(), blocks.end());
  s.computed = given;
  s.tokens.push_back(first);
  SharePrefix(s, 0);
  return absl::OkStatus();
}

PrefixHash Scheduler::RootOf(std::string_view salt) const {
  const PrefixHash root = prefixes_.Root(salt);
  const TokenId lost(-kv_lost_);  // no token is negative
  return kv_lost_ == 0 ? root : PrefixIndex::Next(root, {&lost, 1});
}

PrefixHash Scheduler::HashOf(PrefixHash before, std::span<const TokenId> tokens, size_t prompt,
                             size_t index) const {
  const auto bt = static_cast<size_t>(options_.block_tokens), begin = index * bt;
  if (options_.by_class && prompt >= begin && prompt < begin + bt) {
    // Here the first generated token is. What follows, here and later, is all generated: one mark
    // tells it from a prompt. Two tokens, one negative, are no block and no lost KV.
    const TokenId mark[] = {-1, static_cast<TokenId>(prompt - begin)};
    before = PrefixIndex::Next(before, mark);
  }
  return PrefixIndex::Next(before, tokens.subspan(begin, bt));
}

std::span<const PrefixHash> Scheduler::HashesOf(Sequence& s, int blocks) {
  while (static_cast<int>(s.hashes.size()) < blocks) {
    const size_t i = s.hashes.size();
    const PrefixHash before = i > 0 ? s.hashes.back() : RootOf(s.request.cache_salt);
    s.hashes.push_back(HashOf(before, s.tokens, s.request.prompt_ids.size(), i));
  }
  return std::span(s.hashes).first(static_cast<size_t>(blocks));
}

PrefixIndex::Hit Scheduler::FindPrefix(Sequence& s) {
  if (!options_.prefix_caching || s.wants_prompt_scores()) return {};
  return prefixes_.Find(HashesOf(s, (s.length() - 1) / options_.block_tokens));
}

bool Scheduler::SoonShared(const Sequence& s, int block) const {
  const auto i = static_cast<size_t>(block);
  if (i >= s.hashes.size() || !options_.prefix_caching || s.wants_prompt_scores()) return false;
  return std::any_of(running_.begin(), running_.end(), [&](const Sequence* r) {
    return r->remaining() > 1 && i < r->hashes.size() && r->hashes[i] == s.hashes[i] &&
           r->request.priority <= s.request.priority;
  });
}

void Scheduler::TakePrefix(Sequence& s, int blocks) {
  s.blocks = prefixes_.Take(HashesOf(s, blocks));
  s.computed = s.cached = blocks * options_.block_tokens;
  if (!options_.prefix_caching || s.wants_prompt_scores()) return;
  prefix_queries_ += static_cast<uint64_t>(s.length());
  prefix_hits_ += static_cast<uint64_t>(s.cached);
}

void Scheduler::SharePrefix(Sequence& s, int from) {
  if (!options_.prefix_caching) return;
  const int begin = from / options_.block_tokens, end = s.computed / options_.block_tokens;
  if (begin == end) return;
  const std::span<const PrefixHash> hashes = HashesOf(s, end);
  for (int i = begin; i < end; ++i) {
    prefixes_.Insert(hashes[static_cast<size_t>(i)], s.blocks[static_cast<size_t>(i)]);
  }
}

void Scheduler::FreeBlocks(Sequence& s) {
  // The last one first: the beginning of a prompt is kept for longest.
  std::reverse(s.blocks.begin(), s.blocks.end());
  pool_->Release(s.blocks);
  s.blocks.clear();
  s.computed = 0;
  stalled_ = false;
}

void Scheduler::Erase(Sequence& s) {
  FreeBlocks(s);
  SY_CHECK(QueueOf(s.state)->erase(&s) == 1);
  sequences_.erase(AttemptKey(s.request.key));  // a copy: the key dies with its sequence
}

bool Scheduler::Abort(const AttemptKey& key) {
  const auto it = sequences_.find(key);
  if (it == sequences_.end()) return false;
  Erase(*it->second);
  return true;
}

bool Scheduler::Release(const AttemptKey& key) {
  const auto it = sequences_.find(key);
  if (it == sequences_.end() || it->second->state != Sequence::State::kHeld) return false;
  Erase(*it->second);
  return true;
}

bool Scheduler::GrowFor(Sequence& s, int tokens) {
  const int wanted = BlocksFor(tokens) - static_cast<int>(s.blocks.size());
  if (wanted <= 0) return true;
  while (pool_->counts().available() < wanted) {
    Sequence* victim = VictimBehind(s);
    if (victim == nullptr) return false;
    Preempt(*victim);
  }
  const auto blocks = pool_->Allocate(wanted);
  SY_CHECK(blocks.ok());
  s.blocks.insert(s.blocks.end(), blocks->begin(), blocks->end());
  return true;
}

bool Scheduler::Expands(const Sequence& s) const {
  return options_.by_class && s.computed < s.prompt_length();
}

int Scheduler::ChunkRows(const Sequence& s, const Budget& budget) const {
  if (budget.logits == 0) return 0;
  const int rows = std::min({s.remaining(), options_.prefill_chunk, budget.rows});
  // The first is taken whatever it costs: it will not cost less.
  if (Expands(s) && budget.expanded > 0 &&
      budget.expanded + s.computed + rows > kExpandedPerRow * options_.max_num_batched_tokens) {
    return 0;
  }
  return s.wants_prompt_scores() ? std::min(rows, budget.logits) : rows;
}

void Scheduler::Plan(Sequence& s, int rows, Budget* budget) {
  const Chunk chunk{&s, rows};
  plan_.push_back(chunk);
  budget->rows -= rows;
  if (Expands(s)) budget->expanded += s.computed + rows;
  budget->logits -= s.wants_prompt_scores() ? rows : chunk.samples() ? 1 : 0;
}

void Scheduler::PlanRunning(Budget* budget) {
  order_.assign(running_.begin(), running_.end());
  for (const bool decode : {true, false}) {
    for (Sequence* s : order_) {
      // A victim is always behind the one that needs its blocks: not planned yet.
      if (s->state != Sequence::State::kRunning || (s->remaining() == 1) != decode) continue;
      const int rows = ChunkRows(*s, *budget);
      if (rows == 0 || !GrowFor(*s, s->computed + rows)) continue;
      Plan(*s, rows, budget);
    }
  }
}

void Scheduler::Start(Sequence& s, const PrefixIndex::Hit& hit) {
  Move(s, Sequence::State::kRunning);
  TakePrefix(s, hit.blocks);
  SY_CHECK(GrowFor(s, s.length()));
}

void Scheduler::Admit(Budget* budget) {
  const int headroom = Growing();  // a block for each stays free, as in AdmitUrgent
  int admitted = 0;
  while (!waiting_.empty() && FreeSlots() > 0) {
    Sequence& s = **waiting_.begin();
    if (ChunkRows(s, *budget) == 0) return;
    const PrefixIndex::Hit hit = FindPrefix(s);
    if (SoonShared(s, hit.blocks)) return;
    if (pool_->counts().available() < Wanted(s, hit) + headroom + admitted) return;
    Start(s, hit);
    // What was found in the cache may be too much to expand in this step.
    if (const int rows = ChunkRows(s, *budget); rows > 0) Plan(s, rows, budget);
    admitted += s.request.prefill_only ? 0 : 1;
  }
}

std::span<const Scheduler::Chunk> Scheduler::Schedule() {
  do {
    plan_.clear();
    Budget budget{options_.max_num_batched_tokens, options_.max_logit_rows};
    AdmitAdopted();
    AdmitUrgent();
    PlanRunning(&budget);
    Admit(&budget);
  } while (plan_.empty() && Untangle());
  stalled_ = plan_.empty();
  return plan_;
}

void Scheduler::Commit(const Chunk& chunk) {
  Sequence& s = *chunk.sequence;
  const int before = s.computed;
  s.computed += chunk.rows;
  SY_CHECK(s.state == Sequence::State::kRunning && s.computed <= s.length());
  SY_CHECK(BlocksFor(s.computed) <= static_cast<int>(s.blocks.size()));
  SharePrefix(s, before);
}

void Scheduler::Append(Sequence& s, TokenId token) {
  SY_CHECK(s.remaining() == 0);
  s.tokens.push_back(token);
}

void Scheduler::Finish(Sequence& s) {
  SY_CHECK(s.state == Sequence::State::kRunning);
  if (!s.request.prefill_only) return Erase(s);
  Move(s, Sequence::State::kHeld);
}

void Scheduler::CheckInvariants() const {
  pool_->CheckInvariants();
  SY_CHECK(running() <= options_.max_num_seqs);
  std::map<BlockId, int> users;
  size_t queued = 0;
  for (const auto& [queue, state] : {std::pair(&waiting_, Sequence::State::kWaiting),
                                     std::pair(&adopted_, Sequence::State::kAdopted),
                                     std::pair(&running_, Sequence::State::kRunning),
                                     std::pair(&held_, Sequence::State::kHeld)}) {
    queued += queue->size();
    for (const Sequence* s : *queue) {
      const auto it = sequences_.find(s->request.key);
      SY_CHECK(it != sequences_.end() && it->second.get() == s && s->state == state);
      SY_CHECK(BlocksFor(s->computed) <= static_cast<int>(s->blocks.size()));
      SY_CHECK(s->blocks.empty() == (state == Sequence::State::kWaiting));
      for (const BlockId b : s->blocks) ++users[b];
    }
  }
  SY_CHECK(queued == sequences_.size());
  // What LendPrefix gave has no sequence yet.
  int more = 0;
  for (const auto& [block, count] : users) {
    SY_CHECK_MSG(pool_->reference_count(block) >= count, "block ", block.value());
    more += pool_->reference_count(block) - count;
  }
  SY_CHECK_MSG(more <= lent_ && pool_->counts().owned - static_cast<int>(users.size()) <= lent_,
               "blocks are held by nobody");
}

}  // namespace switchyard
