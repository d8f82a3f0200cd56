#include "model/tensor_parts.h"

#include <cstring>

namespace switchyard {
namespace {

template <typename T>
void TransposeInto(const WeightView& w, std::byte* to) {
  const T* from = static_cast<const T*>(w.data);
  T* out = reinterpret_cast<T*>(to);
  for (size_t r = 0; r < w.n; ++r) {
    for (size_t c = 0; c < w.k; ++c) out[c * w.n + r] = from[r * w.k + c];
  }
}

}  // namespace

LoadedTensor Columns(const WeightView& w, size_t begin, size_t count) {
  const size_t size = SizeOf(w.dtype);
  LoadedTensor out;
  out.owned = AlignedBuffer(w.n * count * size);
  const auto* from = static_cast<const std::byte*>(w.data);
  for (size_t r = 0; r < w.n; ++r) {
    std::memcpy(out.owned.data() + r * count * size, from + (r * w.k + begin) * size, count * size);
  }
  out.view = {out.owned.data(), w.dtype, w.n, count};
  return out;
}

WeightView RowsOf(const WeightView& w, size_t begin, size_t count) {
  const auto* from = static_cast<const std::byte*>(w.data);
  return {from + begin * w.k * SizeOf(w.dtype), w.dtype, count, w.k};
}

LoadedTensor Transpose(const WeightView& w) {
  LoadedTensor out;
  out.owned = AlignedBuffer(BytesOf(w));
  if (w.dtype == DType::kBfloat16) {
    TransposeInto<Bf16>(w, out.owned.data());
  } else {
    TransposeInto<float>(w, out.owned.data());
  }
  out.view = {out.owned.data(), w.dtype, w.k, w.n};
  return out;
}

}  // namespace switchyard
