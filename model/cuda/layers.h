// model/cuda/layers.h: the layers of a model as launches on one stream: what model/stages.h does,
// in the same order of operations and the same roundings (docs/numerics.md), on a device. Nothing
// waits and nothing is allocated, so that a step can be recorded.
//
// Letters: T rows, H hidden, h query heads, G groups of heads, K top-k, E expert slots, C latent
// width, R rope width.
#pragma once

#include "common/cuda/device.h"
#include "kernels/cuda/permute.h"
#include "kernels/cuda/rows.h"
#include "model/cuda/device_kv.h"
#include "model/cuda/device_weights.h"
#include "model/cuda/step_arrays.h"

namespace switchyard::cuda {

// What layers leave for each other, for up to `rows` rows: taken once.
struct Workspace {
  int rows = 0;
  float *residual = nullptr, *normed = nullptr, *summed = nullptr;  // [T, H]
  // Attention. wide: the queries, and what heads give, [T, h · the widest of a head].
  float *q_low = nullptr, *q = nullptr, *wide = nullptr, *k = nullptr, *v = nullptr;
  float* by_head = nullptr;  // [h, T, ·]: what each head's own product gives
  float* parts = nullptr;    // [G, T, H]: of the output projection
  int32_t *heads_first = nullptr, *tokens_first = nullptr,
          *groups_first = nullptr;  // indices of rows
  // FFN
  float *gate_logits = nullptr, *gate_weights = nullptr;  // [T, E], [T, K]
  int32_t* experts = nullptr;                             // [T, K]
  ExpertOrder order;
  int expert_rows = 0;                              // R: as many at once
  std::byte *hidden = nullptr, *outputs = nullptr;  // [R, I] or [T, the widest I]; [R, H]
  // Inputs of products in the type of their weights, and what integers are made from.
  std::byte *input = nullptr, *gathered = nullptr;
  float* input_scales = nullptr;
};
absl::StatusOr<Workspace> MakeWorkspace(const ModelConfig& config, int rows, DeviceArena* memory);

// One step on its way through the layers.
struct LayerStep {
  StepShape shape;
  StepArrays arrays;  // on the device
  bool split = false;
  std::byte* attention_workspace = nullptr;
};

class DeviceLayers {
 public:
  // All are borrowed. `dtype`: of arithmetic; `path`: of matrix products.
  DeviceLayers(const ModelConfig& config, const DeviceWeights& weights, DType dtype, GemmPath path,
               const Workspace& workspace, const OwnedStream& stream);

  // residual = the embeddings of the step's tokens; and indices that all layers use.
  absl::Status Begin(const LayerStep& step);
  // Norm to residual, KV written.
  absl::Status Attention(int layer, const LayerStep& step, const DeviceKv& kv);
  // Dense, or with all experts here.
  absl::Status Ffn(int layer, const LayerStep& step);
  // logits [N, V] of the step's logit rows.
  absl::Status Logits(const LayerStep& step, DeviceMatrix<float> logits);

  // The parts of Ffn for experts that are elsewhere too. Norm and gate: normed, experts and
  // gate_weights.
  absl::Status Gate(int layer, const LayerStep& step);
  // out [R, H] of the type of the wire, in order of expert: row r is of rows[index[r]], of the same
  // type, or of rows[r] where index is null. offsets [E + 1].
  absl::Status Experts(int layer, DeviceRows rows, const int32_t* index, const int32_t* offsets,
                       DeviceRows out);
  // outputs(T) = the shared expert's, of `normed`, if there is one; says if.
  absl::StatusOr<bool> Shared(int layer, const LayerStep& step);
  // residual += summed [T, H], of the routed experts, + outputs(T) if there was a shared one.
  absl::Status AddExperts(const LayerStep& step, bool shared);

  // [rows, H]: where Ffn and Shared leave what FFNs give.
  DeviceRows outputs(int rows) const;

 private:
  DeviceMatrix<float> Floats(float* data, int rows, int64_t cols) const {
    return {data, rows, static_cast<int>(cols)};
  }
  // x in the type of a weight, valid until the next call: `rows` rows, row i is x's row index[i],
  // or i where index is null. Where a weight's K is wider than x, neighbours are joined. For
  // integers rows are rounded to `via` first.
  absl::StatusOr<GemmInput> Input(const DeviceWeight& w, DeviceRows x, const int32_t* index,
                                  int rows, DType via = DType::kFloat32);
  absl::Status Product(const GemmInput& x, const DeviceWeight& w, DeviceMatrix<float> y) {
    return Gemm(stream_.get(), path_, x, w, {}, Epilogue::kStore, y);
  }
  // A group for each of `w.groups` runs of step.shape.rows rows.
  absl::Status GroupProduct(const LayerStep& step, const GemmInput& x, const DeviceWeight& w,
                            DeviceMatrix<float> y);
  absl::Status Norm(const float* weight, float eps, DeviceMatrix<float> x, DeviceMatrix<float> y);
  absl::Status Rope(const LayerStep& step, int heads, int64_t head_stride, DeviceMatrix<float> x);
  absl::Status Gqa(const DeviceAttention& w, const LayerStep& step, int layer, const DeviceKv& kv);
  absl::Status Mla(const DeviceAttention& w, const LayerStep& step, int layer, const DeviceKv& kv);
  absl::Status Paged(const LayerStep& step, int layer, const DeviceKv& kv, DeviceMatrix<float> q,
                     DeviceMatrix<float> out);
  // residual += the output projection of what heads gave: `rows` of one head or group each, in the
  // order of `index`.
  absl::Status Project(const DeviceAttention& w, const LayerStep& step, DeviceRows rows,
                       const int32_t* index, int index_rows);
  absl::Status FfnOf(const DeviceFfn& w, const GemmInput& x, const RowGroups& groups, int rows,
                     DeviceRows out);

  const ModelConfig& config_;
  const DeviceWeights& weights_;
  const DType dtype_;
  const GemmPath path_;
  const Workspace& w_;
  const OwnedStream& stream_;
  const int groups_;  // of heads, in the output projection
};

}  // namespace switchyard::cuda
