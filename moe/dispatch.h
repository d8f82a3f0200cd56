// moe/dispatch.h: hidden [T, H] -> R rows by local physical expert, and back.
// Collective: all EP ranks call in the same order, even if T == 0. Owned by the engine thread.
//
//   Send ─► Receive ─► (grouped FFN) ─► CombineSend ─► CombineReceive
// Send and receive are separate calls so that two micro-batches overlap: at most two dispatches are
// in flight, in FIFO order. What they were given may be read and written between the calls too.
// After any kUnavailable the epoch is over and every handle is void.
//
// Letters: T tokens of this rank, H hidden, K top-k slots, P tokens received, R rows they are for
// this rank's experts, E experts hosted here.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "common/tensor_view.h"
#include "kernels/rows.h"

namespace switchyard {

// Names one dispatch in flight, from Send to CombineReceive.
struct DispatchHandle {
  uint64_t id = 0;
};

// What arrived for this rank's experts. Views stay valid until the handle's CombineReceive returns.
struct DispatchedRows {
  ConstRows tokens;                  // [P, H] each once, in the type of the wire
  std::span<const int32_t> index;    // [R] grouped by local expert: row r is tokens.row(index[r])
  std::span<const int32_t> offsets;  // [E + 1]
};

class Dispatcher {
 public:
  virtual ~Dispatcher() = default;

  virtual int local_experts() const = 0;
  // In how many parts, 1 or 2, the rows of this step go: the same on all ranks.
  virtual int micro_batches() const { return 1; }
  // The logical expert behind local slot i of a layer; negative if the slot is empty.
  virtual int LogicalExpert(int layer, int local) const = 0;

  // Starts sending; `hidden` must stay unchanged until the matching Receive returns, `weights`
  // until CombineReceive does. experts [T, K]: logical ids. weights [T, K]: of their outputs in the
  // sum. positions [T]: of the tokens in their sequences, by which replicas are chosen. In BF16
  // mode hidden is rounded to BF16 here, whether or not a row leaves the rank. Errors:
  // kInvalidArgument if T > max_tokens; kUnavailable if a peer is lost.
  virtual absl::StatusOr<DispatchHandle> Send(int layer, Matrix<const float> hidden,
                                              Matrix<const int32_t> experts,
                                              Matrix<const float> weights,
                                              std::span<const int32_t> positions) = 0;
  virtual absl::StatusOr<DispatchedRows> Receive(DispatchHandle handle) = 0;
  // Starts returning expert_rows [R, H], in the order of Receive's index and the type of its
  // tokens. What comes back unreduced is summed in FP32 in slot order: out[t] = Σ_k weights[t][k] ·
  // row(t, k), a chain of product-then-sum from slot 0. out [T, H]. Both are the dispatcher's until
  // CombineReceive returns.
  virtual absl::Status CombineSend(DispatchHandle handle, ConstRows expert_rows,
                                   Matrix<float> out) = 0;
  // `out` is whole when it returns.
  virtual absl::Status CombineReceive(DispatchHandle handle) = 0;
};

struct DispatchShape {
  int experts = 0, top_k = 0, hidden = 0, max_tokens = 0;
  DType dtype = DType::kBfloat16;  // of the wire
};
// What every Send checks before anything else: shapes, T and expert ids. kInvalidArgument.
absl::Status CheckDispatch(const DispatchShape& shape, Matrix<const float> hidden,
                           Matrix<const int32_t> experts, Matrix<const float> weights,
                           std::span<const int32_t> positions);
// The same for CombineSend, whose dispatch has brought `rows` rows and sent `tokens` tokens.
absl::Status CheckCombine(const DispatchShape& shape, size_t tokens, size_t rows,
                          const ConstRows& expert_rows, Matrix<float> out);

}  // namespace switchyard
