#include "engine/engine_thread.h"

#include <gtest/gtest.h>

#include <future>

#include "engine/test_model.h"

namespace switchyard {
namespace {

std::unique_ptr<Engine> MakeEngine(Model& model) {
  return Engine::Create(&model, {.max_model_len = 64, .kv_blocks = 8}).value();
}

EngineRequest Request(const std::string& id, int max_tokens) {
  EngineRequest r;
  r.key = {id, 1};
  r.prompt_ids = {5, 6, 7};
  r.max_tokens = max_tokens;
  r.ignore_eos = true;
  return r;
}

TEST(EngineThreadTest, RunsRequestsThatArePostedAndSleepsAfter) {
  std::promise<int> done;
  int tokens = 0;  // touched by the engine thread only
  EngineThread thread(
      MakeEngine(TestModel()),
      [&](std::vector<EngineOutput> outputs) {
        for (const EngineOutput& o : outputs) {
          ++tokens;
          if (o.finish != FinishReason::kNone) done.set_value(tokens);
        }
      },
      [](absl::Status s) { ADD_FAILURE() << s; });
  EXPECT_FALSE(thread.busy());
  ASSERT_TRUE(thread.Post([](Engine& e) { ASSERT_TRUE(e.Add(Request("a", 5)).ok()); }));
  EXPECT_EQ(done.get_future().get(), 5);
  std::promise<bool> idle;
  ASSERT_TRUE(thread.Post([&](Engine& e) { idle.set_value(!e.HasWork()); }));
  EXPECT_TRUE(idle.get_future().get());
  EXPECT_EQ(thread.steps(), 5u);
}

TEST(EngineThreadTest, AcceptedTasksRunThoughItStops) {
  std::atomic<int> ran = 0;
  int accepted = 0;
  {
    EngineThread thread(
        MakeEngine(TestModel()), [](std::vector<EngineOutput>) {}, [](absl::Status) {});
    for (int i = 0; i < 1000; ++i) accepted += thread.Post([&](Engine&) { ++ran; });
  }
  EXPECT_EQ(ran, accepted);
  EXPECT_EQ(accepted, 1000);
}

TEST(EngineThreadTest, AFailedRankIsToldOnceAndStillRunsTasks) {
  FaultyModel model(TestModel());
  model.fail_every = 1;
  std::promise<absl::Status> failed;
  EngineThread thread(
      MakeEngine(model), [](std::vector<EngineOutput>) { ADD_FAILURE(); },
      [&](absl::Status s) { failed.set_value(s); });  // throws if called twice
  ASSERT_TRUE(thread.Post([](Engine& e) { ASSERT_TRUE(e.Add(Request("a", 5)).ok()); }));
  EXPECT_EQ(failed.get_future().get().code(), absl::StatusCode::kUnavailable);
  std::promise<int> running;
  ASSERT_TRUE(thread.Post([&](Engine& e) {
    e.Abort({"a", 1});
    running.set_value(e.stats().running);
  }));
  EXPECT_EQ(running.get_future().get(), 0);
  EXPECT_FALSE(thread.busy());
  EXPECT_EQ(thread.steps(), 0u);
}

}  // namespace
}  // namespace switchyard
