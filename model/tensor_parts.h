// model/tensor_parts.h: parts of a tensor, and its transpose.
#pragma once

#include "model/weight_source.h"

namespace switchyard {

inline size_t BytesOf(const WeightView& w) { return w.n * w.k * SizeOf(w.dtype); }

// Columns [begin, begin + count) of `w`, dense.
LoadedTensor Columns(const WeightView& w, size_t begin, size_t count);
// Rows [begin, begin + count) of `w`, borrowed.
WeightView RowsOf(const WeightView& w, size_t begin, size_t count);
LoadedTensor Transpose(const WeightView& w);

}  // namespace switchyard
