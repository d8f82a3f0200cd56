#include "kernels/cuda/host_kernels.h"

#include <algorithm>
#include <cstring>
#include <memory>

#include "kernels/cuda/attention.h"
#include "kernels/cuda/rows.h"
#include "kernels/cuda/testing.h"

namespace switchyard::cuda {
namespace {

void Check(const absl::Status& status) { SY_CHECK_MSG(status.ok(), status.ToString()); }

// A host matrix in device memory, dense.
template <typename M>
std::vector<float> Dense(const M& m) {
  std::vector<float> v(m.rows() * m.cols());
  for (size_t r = 0; r < m.rows(); ++r) std::copy_n(m.row(r), m.cols(), &v[r * m.cols()]);
  return v;
}

// x as a weight's format wants it.
class Left {
 public:
  Left(const std::vector<float>& x, int rows, int k, WeightFormat format) : floats_(x) {
    const DeviceMatrix<float> floats(floats_.data(), rows, k);
    if (format == WeightFormat::kFloat32) {
      input = DeviceRows(floats);
    } else if (format == WeightFormat::kBfloat16) {
      const int stride = static_cast<int>(PaddedCols(k));
      halves_ = std::make_unique<DeviceArray<Bf16>>(static_cast<size_t>(rows) * stride, Bf16{});
      const DeviceMatrix<Bf16> halves(halves_->data(), rows, k, stride);
      Check(GatherRows(nullptr, floats, nullptr, halves));
      input = DeviceRows(halves);
    } else {
      const size_t groups = static_cast<size_t>(QuantGroups(k));
      values_ = std::make_unique<DeviceArray<uint8_t>>(rows * groups * kQuantGroup, uint8_t{0});
      scales_ = std::make_unique<DeviceArray<float>>(rows * groups, 0.0f);
      const QuantizedRows q{values_->data(), scales_->data(), rows, k};
      Check(QuantizeInt8(nullptr, floats, q));
      input = q;
    }
  }
  GemmInput input;

 private:
  DeviceArray<float> floats_;
  std::unique_ptr<DeviceArray<Bf16>> halves_;
  std::unique_ptr<DeviceArray<uint8_t>> values_;
  std::unique_ptr<DeviceArray<float>> scales_;
};

// A packed weight is its data, padded to 128 bytes, then its scales.
size_t DataBytes(WeightFormat format, size_t n, size_t k) {
  const size_t bytes = WeightBytes(FormatOf(format), static_cast<int>(n), static_cast<int>(k));
  return (bytes + 127) / 128 * 128;
}

// Weights of the same shape, one behind the other.
class Weights {
 public:
  explicit Weights(const std::vector<const PackedWeight*>& all)
      : data_(Join(all, true)), scales_(Join(all, false)) {
    const PackedWeight& w = *all.front();
    weight = {FormatOf(w.format),    static_cast<int>(all.size()),
              static_cast<int>(w.n), static_cast<int>(w.k),
              data_.data(),          reinterpret_cast<const float*>(scales_.data())};
  }
  DeviceWeight weight;

 private:
  static std::vector<std::byte> Join(const std::vector<const PackedWeight*>& all, bool data) {
    std::vector<std::byte> joined;
    for (const PackedWeight* w : all) {
      const int n = static_cast<int>(w->n), k = static_cast<int>(w->k);
      const size_t skip = data ? 0 : DataBytes(w->format, w->n, w->k);
      const size_t bytes = data ? WeightBytes(FormatOf(w->format), n, k)
                                : WeightScales(FormatOf(w->format), n, k) * sizeof(float);
      joined.insert(joined.end(), w->bytes.data() + skip, w->bytes.data() + skip + bytes);
    }
    return joined;
  }
  DeviceArray<std::byte> data_, scales_;
};

class HostGemm final : public GemmOps {
 public:
  explicit HostGemm(GemmPath path) : path_(path) {}

  size_t PackedBytes(WeightFormat format, size_t n, size_t k) const override {
    return DataBytes(format, n, k) +
           WeightScales(FormatOf(format), static_cast<int>(n), static_cast<int>(k)) * sizeof(float);
  }
  PackedWeight Pack(const WeightView& w, WeightFormat format) const override {
    PackedWeight packed{AlignedBuffer(PackedBytes(format, w.n, w.k)), format, w.n, w.k};
    PackWeight(w, FormatOf(format), packed.bytes.data(), ScalesOf(packed));
    return packed;
  }
  static float* ScalesOf(const PackedWeight& w) {
    return reinterpret_cast<float*>(w.bytes.data() + DataBytes(w.format, w.n, w.k));
  }
  void GemmAll(KernelContext&, std::span<const GemmCall> calls) const override {
    for (const GemmCall& call : calls) {
      const int rows = static_cast<int>(call.x.rows()), n = static_cast<int>(call.w->n);
      if (rows == 0) continue;
      const Left left(Dense(call.x), rows, static_cast<int>(call.w->k), call.w->format);
      const Weights weights({call.w});
      DeviceArray<float> y(static_cast<size_t>(rows) * n, NAN);
      Check(cuda::Gemm(nullptr, path_, left.input, weights.weight, {}, Epilogue::kStore,
                       DeviceMatrix<float>(y.data(), rows, n)));
      const std::vector<float> got = y.Get();
      for (int r = 0; r < rows; ++r) std::copy_n(&got[r * n], n, call.y.row(r));
    }
  }

 private:
  GemmPath path_;
};

class HostGroupedGemm final : public GroupedGemmOps {
 public:
  explicit HostGroupedGemm(GemmPath path) : path_(path), gemm_(path) {}

  size_t GateUpRows(size_t intermediate) const override { return 2 * intermediate; }
  PackedExpert PackExpert(const WeightView& gate, const WeightView& up, const WeightView& down,
                          WeightFormat format) const override {
    PackedWeight both{AlignedBuffer(gemm_.PackedBytes(format, 2 * gate.n, gate.k)), format,
                      2 * gate.n, gate.k};
    PackGateUp(gate, up, FormatOf(format), both.bytes.data(), HostGemm::ScalesOf(both));
    return {std::move(both), gemm_.Pack(down, format), gate.k, gate.n};
  }
  void ExpertFfn(KernelContext&, ConstRows x, std::span<const int32_t> index,
                 std::span<const int32_t> offsets, std::span<const PackedExpert* const> experts,
                 Rows out) const override {
    const int rows = static_cast<int>(index.empty() ? x.rows : index.size());
    if (rows == 0) return;
    const int hidden = static_cast<int>(x.cols), width = static_cast<int>(experts[0]->intermediate);
    const WeightFormat format = experts[0]->down.format;
    std::vector<float> input;
    for (int r = 0; r < rows; ++r) {
      const size_t from = index.empty() ? r : index[r];
      for (int i = 0; i < hidden; ++i) input.push_back(x(from, i));
    }
    std::vector<const PackedWeight*> first, second;
    for (const PackedExpert* e : experts) {
      first.push_back(&e->gate_up);
      second.push_back(&e->down);
    }
    const Weights gate_up(first), down(second);
    const DeviceArray<int32_t> bounds(std::vector<int32_t>(offsets.begin(), offsets.end()));
    DeviceArray<float> between(static_cast<size_t>(rows) * width, NAN);
    const Left left(input, rows, hidden, format);
    Check(Gemm(nullptr, path_, left.input, gate_up.weight, {.offsets = bounds.data()},
               Epilogue::kSiluMul, DeviceMatrix<float>(between.data(), rows, width)));
    const Left middle(between.Get(), rows, width, format);
    DeviceArray<float> y(static_cast<size_t>(rows) * hidden, NAN);
    Check(Gemm(nullptr, path_, middle.input, down.weight, {.offsets = bounds.data()},
               Epilogue::kStore, DeviceMatrix<float>(y.data(), rows, hidden)));
    const std::vector<float> got = y.Get();
    for (int i = 0; i < rows * hidden; ++i) {
      std::byte* row = out.row(i / hidden);
      if (out.dtype == DType::kBfloat16) {
        reinterpret_cast<Bf16*>(row)[i % hidden] = ToBf16(got[i]);
      } else {
        reinterpret_cast<float*>(row)[i % hidden] =
            format == WeightFormat::kFloat32 ? got[i] : RoundToBf16(got[i]);
      }
    }
  }

 private:
  GemmPath path_;
  HostGemm gemm_;
};

class HostAttention final : public AttentionOps {
 public:
  void PagedAttention(KernelContext& ctx, const AttentionShape& shape,
                      const KvAddressing& addressing, const std::byte* kv,
                      std::span<const AttentionSequence> sequences, Matrix<const float> q,
                      Matrix<float> out) const override {
    if (sequences.empty()) return;
    std::vector<DeviceSequence> all;
    std::vector<int32_t> tables;
    int rows_max = 0, context_max = 0, blocks = 0;
    for (const AttentionSequence& s : sequences) {
      all.push_back({s.first_row, s.count, s.first_position, static_cast<int32_t>(tables.size())});
      tables.insert(tables.end(), s.blocks.begin(), s.blocks.end());
      rows_max = std::max(rows_max, s.count);
      context_max = std::max(context_max, s.first_position + s.count);
      for (const int32_t b : s.blocks) blocks = std::max(blocks, b + 1);
    }
    const size_t elements = addressing.block_stride * blocks + 1;
    std::vector<std::byte> bytes(elements * SizeOf(addressing.dtype));
    std::memcpy(bytes.data(), kv, bytes.size() - SizeOf(addressing.dtype));
    const DeviceArray<std::byte> cache(bytes);
    const DeviceArray<DeviceSequence> dense(all);
    const DeviceArray<int32_t> table(tables);
    const AttentionBatch batch{dense.data(), table.data(), static_cast<int>(all.size()), rows_max,
                               context_max};
    const DeviceArray<float> queries(Dense(q));
    const int rows = static_cast<int>(q.rows()), width = static_cast<int>(out.cols());
    DeviceArray<float> y(static_cast<size_t>(rows) * width, NAN);
    // The contract's threads are this backend's split: either way the same bits.
    const bool split = ctx.pool.threads() > 1;
    DeviceArray<std::byte> workspace(AttentionWorkspaceBytes(shape, batch, rows, split),
                                     std::byte{0xff});
    Check(cuda::PagedAttention(nullptr, shape, addressing, cache.data(), batch,
                               {queries.data(), rows, static_cast<int>(q.cols())}, split,
                               workspace.data(), {y.data(), rows, width}));
    const std::vector<float> got = y.Get();
    for (const AttentionSequence& s : sequences) {
      for (int r = s.first_row; r < s.first_row + s.count; ++r) {
        std::copy_n(&got[static_cast<size_t>(r) * width], width, out.row(r));
      }
    }
  }
};

class HostNorm final : public NormOps {
 public:
  void RmsNorm(KernelContext&, Matrix<const float> x, std::span<const float> weight, float eps,
               Matrix<float> y) const override {
    const int rows = static_cast<int>(x.rows()), cols = static_cast<int>(x.cols());
    const DeviceArray<float> from(Dense(x)), w(std::vector<float>(weight.begin(), weight.end()));
    DeviceArray<float> to(static_cast<size_t>(rows) * cols, NAN);
    Check(cuda::RmsNorm(nullptr, {from.data(), rows, cols}, w.data(), eps,
                        DeviceMatrix<float>(to.data(), rows, cols)));
    const std::vector<float> got = to.Get();
    for (int r = 0; r < rows; ++r) std::copy_n(&got[r * cols], cols, y.row(r));
  }
};

}  // namespace

KernelSet HostKernels(GemmPath path) {
  static const HostGemm gemm[] = {HostGemm(GemmPath::kMmaSync), HostGemm(GemmPath::kWgmma)};
  static const HostGroupedGemm grouped[] = {HostGroupedGemm(GemmPath::kMmaSync),
                                            HostGroupedGemm(GemmPath::kWgmma)};
  static const HostAttention attention;
  static const HostNorm norm;
  const int i = path == GemmPath::kWgmma;
  return {i ? "cuda_wgmma" : "cuda_mma", &gemm[i], &grouped[i], &attention, &norm};
}

}  // namespace switchyard::cuda
