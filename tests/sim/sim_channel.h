// tests/sim/sim_channel.h: handoff.proto's calls over the simulated network: an answer may be late,
// lost with its connection, or come from a handler that ran twice, perhaps seconds later.
#pragma once

#include <memory>
#include <utility>

#include "decode/decode_attempts.h"
#include "prefill/handoff_channel.h"
#include "tests/sim/sim_worker.h"

namespace switchyard::sim {

class Channel final : public HandoffChannel {
 public:
  // `to`: the node that is called, whatever process runs there.
  Channel(World* world, Worker* caller, int from, int to)
      : world_(*world), caller_(caller), from_(from), to_(to), life_(world->nodes[from]->life) {}

  void Hello(handoff::v1::HelloRequest r, absl::Duration t,
             Done<handoff::v1::HelloResponse> done) override {
    Call(
        std::move(r), t, std::move(done),
        [](DecodeAttempts& d, const auto& q, auto answer) { d.Hello(q, answer); },
        /*on_loop=*/false);
  }
  void Reserve(handoff::v1::ReserveRequest r, absl::Duration t,
               Done<handoff::v1::ReserveResponse> done) override {
    Call(
        std::move(r), t, std::move(done),
        [](DecodeAttempts& d, const auto& q, auto answer) { d.Reserve(q, answer); },
        /*on_loop=*/true);
  }
  void Commit(handoff::v1::CommitRequest r, absl::Duration t,
              Done<handoff::v1::CommitResponse> done) override {
    Call(
        std::move(r), t, std::move(done),
        [world = &world_, to = to_, first = std::make_shared<FirstAnswer>()](
            DecodeAttempts& d, const auto& q, auto answer) {
          d.Commit(q, [world, life = world->nodes[to]->life, first,
                       answer](absl::StatusOr<handoff::v1::CommitResponse> response) {
            CheckRepeat(world, life, first.get(), response.status());
            answer(std::move(response));
          });
        },
        /*on_loop=*/true);
  }
  void Cancel(handoff::v1::CancelRequest r, absl::Duration t,
              Done<handoff::v1::CancelResponse> done) override {
    Call(
        std::move(r), t, std::move(done),
        [](DecodeAttempts& d, const auto& q, auto answer) {
          d.Cancel(q);
          answer(handoff::v1::CancelResponse());
        },
        /*on_loop=*/true);
  }
  void Renew(handoff::v1::RenewRequest r, absl::Duration t,
             Done<handoff::v1::RenewResponse> done) override {
    Call(
        std::move(r), t, std::move(done),
        [](DecodeAttempts& d, const auto& q, auto answer) { d.Renew(q, answer); },
        /*on_loop=*/false);
  }

 private:
  // What a decode rank has answered to one of the copies of a call.
  struct FirstAnswer {
    uint64_t life = 0;
    absl::Status status;
  };
  // A repeat gets the first answer, or, once it is forgotten, NOT_FOUND.
  static void CheckRepeat(World* world, uint64_t life, FirstAnswer* first,
                          const absl::Status& status) {
    if (first->life == life && status != first->status && !absl::IsNotFound(status)) {
      world->Fail(absl::StrCat("a commit was answered ", first->status.ToString(), ", its repeat ",
                               status.ToString()));
    }
    *first = {life, status};
  }

  template <typename Request, typename Response, typename Handler>
  void Call(Request request, absl::Duration timeout, Done<Response> done, Handler handler,
            bool on_loop) {
    // Ends the call on the caller's loop; the first end counts.
    auto end = std::make_shared<std::function<void(absl::StatusOr<Response>)>>();
    auto connection = std::make_shared<Connection>();
    *end = [world = &world_, caller = caller_, from = from_, life = life_, connection, done,
            over = std::make_shared<bool>(false),
            alive = std::weak_ptr<int>(alive_)](absl::StatusOr<Response> answer) {
      if (std::exchange(*over, true)) return;
      connection->on_break[0] = nullptr;
      if (world->nodes[from]->life != life) return;
      caller->Post([alive, done, answer = std::move(answer)] {
        if (!alive.expired()) done(answer);
      });
    };
    connection->ends[0] = from_;
    connection->ends[1] = to_;
    connection->on_break[0] = [weak = std::weak_ptr(end)](const absl::Status& why) {
      if (const auto end = weak.lock()) (*end)(why);
    };
    world_.Register(connection);
    world_.loop.After(timeout, [end] { (*end)(absl::DeadlineExceededError("call timed out")); });
    // Who introduces itself twice loses the hand-offs that it began between: a fault of the
    // network.
    const bool harmless = on_loop || !world_.undisturbed();
    const int copies = world_.loop.random().Chance(0.02) && harmless ? 2 : 1;
    for (int i = 0; i < copies; ++i) {
      absl::Time at = world_.network.Arrival(from_, to_);
      // Whoever introduces itself again is somebody new; of the others late copies do no harm.
      if (i > 0 && on_loop && world_.loop.random().Chance(0.5)) {
        at += world_.loop.random().Between(absl::ZeroDuration(), absl::Seconds(3));
      }
      world_.loop.At(at, [=, world = &world_, from = from_, to = to_] {
        Worker* worker = world->processes[to].get();
        if (worker == nullptr) {
          world->loop.At(world->network.Arrival(to, from),
                         [end] { (*end)(absl::UnavailableError("connection refused")); });
          return;
        }
        const uint64_t life = world->nodes[to]->life;
        DecodeAttempts::Answer<Response> answer = [=](absl::StatusOr<Response> response) {
          if (world->nodes[to]->life != life) return;
          world->loop.At(world->network.Arrival(to, from), [end, response] { (*end)(response); });
        };
        worker->grpc().Post([=] {
          auto run = [=] { handler(*worker->decode(), request, answer); };
          on_loop ? worker->Post(run) : run();
        });
      });
    }
  }

  World& world_;
  Worker* const caller_;
  const int from_, to_;
  const uint64_t life_;
  const std::shared_ptr<int> alive_ = std::make_shared<int>(0);
};

}  // namespace switchyard::sim
