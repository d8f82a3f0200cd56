// A step that is no larger than those before it takes no memory from the heap, on any thread.
#include <gtest/gtest.h>

#include <atomic>
#include <cstdlib>
#include <new>

#include "model/model_testing.h"

namespace {

std::atomic<int64_t> allocations{0};

void* Allocate(size_t bytes, size_t alignment) {
  allocations.fetch_add(1, std::memory_order_relaxed);
  // aligned_alloc wants a multiple of the alignment.
  void* p = std::aligned_alloc(alignment, (bytes + alignment - 1) / alignment * alignment);
  if (p == nullptr) std::abort();
  return p;
}

}  // namespace

// The others of the standard library end in these.
void* operator new(size_t bytes) { return Allocate(bytes, alignof(std::max_align_t)); }
void* operator new(size_t bytes, std::align_val_t alignment) {
  return Allocate(bytes, static_cast<size_t>(alignment));
}
void operator delete(void* p) noexcept { std::free(p); }
void operator delete(void* p, size_t) noexcept { std::free(p); }
void operator delete(void* p, std::align_val_t) noexcept { std::free(p); }
void operator delete(void* p, size_t, std::align_val_t) noexcept { std::free(p); }

namespace switchyard {
namespace {

class AllocationTest : public testing::TestWithParam<Case> {};

TEST_P(AllocationTest, SteadyStateStepsAllocateNothing) {
  constexpr int kSequences = 3, kPrompt = 40, kWarm = 2, kSteps = 8;
  if (GetParam().kernels == "reference") GTEST_SKIP() << "its scores are as long as the context";
  const auto model = LoadOrDie(GetParam());
  const size_t vocab = model->config().vocab_size;
  KvStorage kv(model->config().KvLayoutFor(model->options().dtype, 16), 4 * kSequences);
  std::mt19937 rng(5);
  const std::vector<int32_t> given = {kPrompt, 1000, 20};  // generated tokens, and a prompt's
  std::vector<std::vector<int32_t>> blocks;
  std::vector<AttentionSequence> prompts, decoded;
  for (int i = 0; i < kSequences; ++i) blocks.push_back(Blocks(4 * i, 4));
  for (int i = 0; i < kSequences; ++i) {
    prompts.push_back({i * kPrompt, kPrompt, 0, blocks[i]});
    decoded.push_back({i, 1, kPrompt, blocks[i]});
  }
  const auto tokens = RandomTokens(rng, kSequences * kPrompt, static_cast<int>(vocab));
  const std::vector<int32_t> rows = {0, 1, 2};
  std::vector<float> logits(kSequences * vocab);
  const Matrix<float> out(logits.data(), {kSequences, vocab});
  // One greedy, one from all tokens, one from a nucleus.
  const SamplingParams params[kSequences] = {
      {.temperature = 0}, {.temperature = 1}, {.temperature = 1, .top_k = 50, .top_p = 0.9f}};
  std::vector<Draw> draws;
  for (const SamplingParams& p : params) draws.push_back({&p, kPrompt});
  std::vector<TokenId> drawn(kSequences);
  const auto step = [&](std::span<const int32_t> ids, const std::vector<AttentionSequence>& of) {
    return model->Forward({.tokens = ids,
                           .sequences = of,
                           .logit_rows = rows,
                           .draws = draws,
                           .drawn = drawn,
                           .prompts = given},
                          kv, nullptr, out);
  };
  ASSERT_TRUE(step(tokens, prompts).ok());

  const int64_t before_any = allocations;
  auto probe = std::make_unique<int>(1);
  ASSERT_GT(allocations, before_any) << "nothing is counted";
  int64_t before = 0;
  for (int i = 0; i < kWarm + kSteps; ++i) {
    if (i == kWarm) before = allocations;
    const auto status = step(std::span(tokens).first(kSequences), decoded);
    ASSERT_TRUE(status.ok()) << status;
    for (AttentionSequence& s : decoded) ++s.first_position;
  }
  EXPECT_EQ(allocations - before, 0);
}

INSTANTIATE_TEST_SUITE_P(All, AllocationTest, testing::ValuesIn(AllKernels({kV3, kQwen3})),
                         CaseName);

INSTANTIATE_TEST_SUITE_P(Expanded, AllocationTest, testing::ValuesIn(AllKernelsExpanded({kV3})),
                         CaseName);

}  // namespace
}  // namespace switchyard
