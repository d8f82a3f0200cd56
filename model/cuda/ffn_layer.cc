// The FFN half of a layer, and both ends of the model, on a device: as model/ffn_stage.cc and
// model/model.cc.
#include "common/check.h"
#include "common/status_macros.h"
#include "kernels/cuda/gate.h"
#include "kernels/cuda/quant.h"
#include "model/cuda/layers.h"
#include "model/head_share.h"

namespace switchyard::cuda {
namespace {

// Rows of BF16 whose next row begins where kernels want it.
DeviceMatrix<Bf16> PaddedBf16(std::byte* data, int rows, int cols) {
  return {reinterpret_cast<Bf16*>(data), rows, cols, PaddedCols(cols)};
}

DeviceRows RowsOf(std::byte* data, DType dtype, int rows, int cols) {
  if (dtype == DType::kBfloat16) return PaddedBf16(data, rows, cols);
  return DeviceMatrix<float>(reinterpret_cast<float*>(data), rows, cols);
}

bool IsQuantized(DeviceFormat format) {
  return format != DeviceFormat::kFloat32 && format != DeviceFormat::kBfloat16;
}

}  // namespace

DeviceLayers::DeviceLayers(const ModelConfig& config, const DeviceWeights& weights, DType dtype,
                           GemmPath path, const Workspace& workspace, const OwnedStream& stream)
    : config_(config),
      weights_(weights),
      dtype_(dtype),
      path_(path),
      w_(workspace),
      stream_(stream),
      groups_(OutputGroups(config.heads)) {}

DeviceRows DeviceLayers::outputs(int rows) const {
  return RowsOf(w_.outputs, dtype_, rows, config_.hidden_size);
}

absl::StatusOr<GemmInput> DeviceLayers::Input(const DeviceWeight& w, DeviceRows x,
                                              const int32_t* index, int rows, DType via) {
  const bool quantized = IsQuantized(w.format);
  const int joined = w.k / x.cols;
  SY_CHECK(joined * x.cols == w.k && rows % joined == 0);
  const DType type = quantized                             ? via
                     : w.format == DeviceFormat::kBfloat16 ? DType::kBfloat16
                                                           : DType::kFloat32;
  // Rows that are there in the right type are taken as they are.
  const bool there = index == nullptr && joined == 1 &&
                     (x.dtype == type || (quantized && type == DType::kFloat32)) &&
                     (x.dtype == DType::kFloat32 || x.stride % kRowUnit == 0);
  DeviceRows rounded = x;
  if (!there) {
    std::byte* const to = quantized ? w_.gathered : w_.input;
    DeviceRows out = RowsOf(to, type, rows, x.cols);
    if (joined > 1) out.stride = x.cols;
    RETURN_IF_ERROR(GatherRows(stream_.get(), x, index, out));
    rounded = RowsOf(to, type, rows / joined, w.k);
  }
  if (!quantized) return GemmInput(rounded);
  const QuantizedRows integers{.values = reinterpret_cast<uint8_t*>(w_.input),
                               .scales = w_.input_scales,
                               .rows = rounded.rows,
                               .cols = w.k};
  RETURN_IF_ERROR(QuantizeInt8(stream_.get(), rounded, integers));
  return GemmInput(integers);
}

absl::Status DeviceLayers::FfnOf(const DeviceFfn& w, const GemmInput& x, const RowGroups& groups,
                                 int rows, DeviceRows out) {
  const int width = w.gate_up.n / 2;
  const DType type = w.down.format == DeviceFormat::kBfloat16 ? DType::kBfloat16 : DType::kFloat32;
  const DeviceRows hidden = RowsOf(w_.hidden, type, rows, width);
  RETURN_IF_ERROR(Gemm(stream_.get(), path_, x, w.gate_up, groups, Epilogue::kSiluMul, hidden));
  ASSIGN_OR_RETURN(const GemmInput activation, Input(w.down, hidden, nullptr, rows));
  return Gemm(stream_.get(), path_, activation, w.down, groups, Epilogue::kStore, out);
}

absl::Status DeviceLayers::Begin(const LayerStep& step) {
  const int tokens = step.shape.rows, heads = config_.heads, hidden = config_.hidden_size;
  DeviceRows table(DeviceMatrix<float>(nullptr, config_.vocab_size, hidden));
  table.data = const_cast<std::byte*>(weights_.embedding);
  table.dtype = weights_.embedding_dtype;
  RETURN_IF_ERROR(
      GatherRows(stream_.get(), table, step.arrays.tokens, Floats(w_.residual, tokens, hidden)));
  if (config_.attention == ModelConfig::Attention::kGqa) {
    return TransposeIndex(stream_.get(), 1, groups_, tokens, w_.groups_first);
  }
  RETURN_IF_ERROR(TransposeIndex(stream_.get(), 1, heads, tokens, w_.heads_first));
  RETURN_IF_ERROR(TransposeIndex(stream_.get(), 1, tokens, heads, w_.tokens_first));
  // Of rows that lie head by head: the heads of a group beside each other.
  return TransposeIndex(stream_.get(), groups_, tokens, heads / groups_, w_.groups_first);
}

absl::Status DeviceLayers::Gate(int layer, const LayerStep& step) {
  const DeviceLayer& w = weights_.layers[layer];
  const int tokens = step.shape.rows, hidden = config_.hidden_size;
  const DeviceMatrix<float> normed = Floats(w_.normed, tokens, hidden);
  RETURN_IF_ERROR(
      Norm(w.post_norm, config_.rms_norm_eps, Floats(w_.residual, tokens, hidden), normed));
  if (!config_.layer_is_moe[layer]) return absl::OkStatus();
  const DeviceMatrix<float> logits = Floats(w_.gate_logits, tokens, config_.gate.experts);
  ASSIGN_OR_RETURN(const GemmInput x, Input(w.gate, normed, nullptr, tokens));
  RETURN_IF_ERROR(Product(x, w.gate, logits));
  return ChooseExperts(stream_.get(), config_.gate, logits, w.gate_bias, w_.experts,
                       w_.gate_weights);
}

absl::StatusOr<bool> DeviceLayers::Shared(int layer, const LayerStep& step) {
  const DeviceLayer& w = weights_.layers[layer];
  if (!w.shared) return false;
  const int tokens = step.shape.rows, hidden = config_.hidden_size;
  ASSIGN_OR_RETURN(const GemmInput x,
                   Input(w.shared->gate_up, Floats(w_.normed, tokens, hidden), nullptr, tokens));
  const DeviceRows out = outputs(tokens);
  RETURN_IF_ERROR(FfnOf(*w.shared, x, {}, tokens, out));
  return true;
}

absl::Status DeviceLayers::Experts(int layer, DeviceRows rows, const int32_t* index,
                                   const int32_t* offsets, DeviceRows out) {
  const DeviceFfn& w = weights_.layers[layer].experts.ffn;
  ASSIGN_OR_RETURN(const GemmInput x, Input(w.gate_up, rows, index, out.rows, dtype_));
  return FfnOf(w, x, {.offsets = offsets}, out.rows, out);
}

absl::Status DeviceLayers::Ffn(int layer, const LayerStep& step) {
  const DeviceLayer& w = weights_.layers[layer];
  const int tokens = step.shape.rows, hidden = config_.hidden_size, top_k = config_.gate.top_k;
  const DeviceMatrix<float> residual = Floats(w_.residual, tokens, hidden),
                            normed = Floats(w_.normed, tokens, hidden);
  RETURN_IF_ERROR(Gate(layer, step));
  if (!config_.layer_is_moe[layer]) {
    ASSIGN_OR_RETURN(const GemmInput x, Input(w.dense.gate_up, normed, nullptr, tokens));
    const DeviceRows out = outputs(tokens);
    RETURN_IF_ERROR(FfnOf(w.dense, x, {}, tokens, out));
    return AddRows(stream_.get(), out, residual);
  }
  const int rows = tokens * top_k;
  RETURN_IF_ERROR(GroupByExpert(stream_.get(), w_.experts, step.arrays.slots, tokens, top_k,
                                config_.gate.experts, w_.order));
  // What crosses a wire elsewhere is rounded the same here.
  ASSIGN_OR_RETURN(const GemmInput x,
                   Input(w.experts.ffn.gate_up, normed, w_.order.index, rows, dtype_));
  const DeviceRows out = outputs(rows);
  RETURN_IF_ERROR(FfnOf(w.experts.ffn, x, {.offsets = w_.order.offsets}, rows, out));
  RETURN_IF_ERROR(CombineSlots(stream_.get(), out, w_.order.where, w_.gate_weights, top_k,
                               /*add=*/false, Floats(w_.summed, tokens, hidden)));
  ASSIGN_OR_RETURN(const bool shared, Shared(layer, step));
  return AddExperts(step, shared);
}

absl::Status DeviceLayers::AddExperts(const LayerStep& step, bool shared) {
  const int tokens = step.shape.rows, hidden = config_.hidden_size;
  const DeviceMatrix<float> summed = Floats(w_.summed, tokens, hidden);
  if (shared) RETURN_IF_ERROR(AddRows(stream_.get(), outputs(tokens), summed));
  return AddRows(stream_.get(), summed, Floats(w_.residual, tokens, hidden));
}

absl::Status DeviceLayers::Logits(const LayerStep& step, DeviceMatrix<float> logits) {
  const int rows = step.shape.logit_rows, hidden = config_.hidden_size;
  if (rows == 0) return absl::OkStatus();
  const DeviceMatrix<float> last = Floats(w_.normed, rows, hidden);
  RETURN_IF_ERROR(GatherRows(stream_.get(), Floats(w_.residual, step.shape.rows, hidden),
                             step.arrays.logit_rows, last));
  RETURN_IF_ERROR(Norm(weights_.final_norm, config_.rms_norm_eps, last, last));
  ASSIGN_OR_RETURN(const GemmInput x, Input(weights_.head, last, nullptr, rows));
  return Product(x, weights_.head, logits);
}

}  // namespace switchyard::cuda
