// moe/loopback.h: the dispatcher of a group of one rank, which hosts every expert. Nothing leaves
// the process, but rows are grouped, rounded and summed exactly as if they did.
// Owned by the engine thread. Memory for two dispatches of max_tokens is reserved by Create.
#pragma once

#include <memory>

#include "common/bf16.h"
#include "common/compute_pool.h"
#include "moe/dispatch.h"
#include "moe/row_codec.h"

namespace switchyard {

class LoopbackDispatcher final : public Dispatcher {
 public:
  struct Options {
    int experts = 0;                 // E
    int top_k = 0;                   // K, in [1, E]
    int hidden = 0;                  // H
    int max_tokens = 0;              // T of one dispatch at most
    DType dtype = DType::kBfloat16;  // of the rows that experts get and give
    bool int8_tokens = false;        // TokenCodecOf: rounded as if they travelled so
    ComputePool* pool = nullptr;     // moves the rows; borrowed; null: the caller's thread
  };
  // Errors: kInvalidArgument names the option that is out of range.
  static absl::StatusOr<std::unique_ptr<LoopbackDispatcher>> Create(const Options& options);
  ~LoopbackDispatcher() override;

  int local_experts() const override { return options_.experts; }
  int LogicalExpert(int, int local) const override { return local; }

  // Rows of an expert are in token order. Besides the contract's errors: kInvalidArgument for a
  // shape or an expert id out of range; kFailedPrecondition for a call out of order or a third
  // dispatch in flight. A refused call changes nothing.
  absl::StatusOr<DispatchHandle> Send(int layer, Matrix<const float> hidden,
                                      Matrix<const int32_t> experts, Matrix<const float> weights,
                                      std::span<const int32_t> positions) override;
  absl::StatusOr<DispatchedRows> Receive(DispatchHandle handle) override;
  absl::Status CombineSend(DispatchHandle handle, ConstRows expert_rows,
                           Matrix<float> out) override;
  absl::Status CombineReceive(DispatchHandle handle) override;

 private:
  enum class State : uint8_t { kIdle, kSent, kReceived, kReturned };
  struct InFlight;

  explicit LoopbackDispatcher(const Options& options);
  DispatchShape Shape() const;
  // By all threads; `cost` of one token, in elements that are moved.
  void ForTokens(size_t tokens, size_t cost,
                 FunctionRef<void(size_t begin, size_t end, int thread)> body) const;
  InFlight& at(uint64_t id) { return *in_flight_[id % 2]; }
  // The dispatch `handle` if it is in `state` and no older one is behind it.
  absl::StatusOr<InFlight*> Expect(DispatchHandle handle, State state);

  const Options options_;
  const RowCodec& codec_;
  const TokenCodec& tokens_;
  const size_t row_bytes_;                  // of a token
  std::unique_ptr<InFlight> in_flight_[2];  // dispatch id is in slot id % 2
  uint64_t next_id_ = 0;
};

}  // namespace switchyard
