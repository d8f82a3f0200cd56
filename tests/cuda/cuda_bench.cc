// What the kernels reach on this GPU, beside what it allows: device copies for what reads memory,
// the fastest of cuBLASLt's algorithms for what multiplies. Medians of CUDA events over random
// data.
#include <cublasLt.h>
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdio>
#include <functional>
#include <random>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/cuda/device.h"
#include "common/cuda/runtime_status.h"
#include "common/status_macros.h"
#include "kernels/cuda/attention.h"
#include "kernels/cuda/gemm.h"

namespace switchyard::cuda {
namespace {

// Between two events there are many launches: what the host does for one is hidden behind those
// before it.
constexpr int kWarmUps = 2, kRuns = 9, kLaunches = 20;
// Working sets are rotated through more memory than the caches hold.
constexpr size_t kColdBytes = size_t{512} << 20;

absl::Status Lt(cublasStatus_t status, const char* what) {
  if (status == CUBLAS_STATUS_SUCCESS) return absl::OkStatus();
  return absl::InternalError(absl::StrCat(what, ": ", cublasLtGetStatusString(status)));
}

class Bench {
 public:
  absl::Status Run() {
    ASSIGN_OR_RETURN(const DeviceProperties device, OpenDevice(0));
    ASSIGN_OR_RETURN(path_, PathOfDevice());
    ASSIGN_OR_RETURN(stream_, MakeStream());
    RETURN_IF_ERROR(Lt(cublasLtCreate(&lt_), "cublasLtCreate"));
    RETURN_IF_ERROR(ToStatus(cudaEventCreate(&begin_), "cudaEventCreate"));
    RETURN_IF_ERROR(ToStatus(cudaEventCreate(&end_), "cudaEventCreate"));
    ASSIGN_OR_RETURN(noise_, Noise(kColdBytes, DeviceFormat::kBfloat16));
    ASSIGN_OR_RETURN(noise8_, Noise(kColdBytes, DeviceFormat::kFp8));
    ASSIGN_OR_RETURN(output_, DeviceBuffer::Create(kColdBytes));
    ASSIGN_OR_RETURN(workspace_, DeviceBuffer::Create(size_t{256} << 20));
    std::printf("%s, compute capability %d.%d, %d multiprocessors; products by %s\n",
                device.name.c_str(), device.major, device.minor, device.multiprocessors,
                path_ == GemmPath::kWgmma ? "wgmma" : "mma.sync");
    RETURN_IF_ERROR(DeviceCopy());
    std::vector<DeviceFormat> formats = {DeviceFormat::kBfloat16};
    if (path_ == GemmPath::kWgmma) formats.push_back(DeviceFormat::kFp8);
    for (const DeviceFormat format : formats) {
      for (const int m : {1, 16, 64, 256, 1024, 4096}) {
        RETURN_IF_ERROR(Dense(format, m, 4096, 7168));
      }
      for (const int rows : {1, 8, 64, 256}) {
        RETURN_IF_ERROR(Grouped(format, 32, rows, 4096, 7168));
      }
    }
    for (const int context : {512, 4096, 16384}) RETURN_IF_ERROR(MlaDecode(64, context));
    return absl::OkStatus();
  }

 private:
  // BF16 numbers in (-1, 1), or E4M3 up to 30.
  absl::StatusOr<DeviceBuffer> Noise(size_t bytes, DeviceFormat format) {
    std::mt19937 random(1);
    std::vector<Bf16> host(bytes / sizeof(Bf16));
    std::uniform_real_distribution<float> uniform(-1, 1);
    const bool fp8 = format == DeviceFormat::kFp8;
    for (Bf16& v : host) {
      v = fp8 ? Bf16{static_cast<uint16_t>(random() & 0xdfdf)} : ToBf16(uniform(random));
    }
    ASSIGN_OR_RETURN(DeviceBuffer buffer, DeviceBuffer::Create(bytes));
    RETURN_IF_ERROR(CopyAsync(buffer.data(), host.data(), bytes, stream_));
    RETURN_IF_ERROR(Synchronize(stream_));
    return buffer;
  }

  // Median seconds of one `launch`.
  absl::StatusOr<double> Time(const std::function<absl::Status(int)>& launch) {
    std::vector<double> seconds;
    for (int i = 0; i < kWarmUps + kRuns; ++i) {
      RETURN_IF_ERROR(ToStatus(cudaEventRecord(begin_, stream_.get()), "cudaEventRecord"));
      for (int j = 0; j < kLaunches; ++j) RETURN_IF_ERROR(launch(i * kLaunches + j));
      RETURN_IF_ERROR(ToStatus(cudaEventRecord(end_, stream_.get()), "cudaEventRecord"));
      RETURN_IF_ERROR(ToStatus(cudaEventSynchronize(end_), "cudaEventSynchronize"));
      float ms = 0;
      RETURN_IF_ERROR(ToStatus(cudaEventElapsedTime(&ms, begin_, end_), "cudaEventElapsedTime"));
      if (i >= kWarmUps) seconds.push_back(ms * 1e-3 / kLaunches);
    }
    std::nth_element(seconds.begin(), seconds.begin() + kRuns / 2, seconds.end());
    return seconds[kRuns / 2];
  }

  absl::Status DeviceCopy() {
    ASSIGN_OR_RETURN(const double seconds, Time([&](int) {
                       return CopyAsync(output_.data(), noise_.data(), kColdBytes, stream_);
                     }));
    copy_bytes_ = 2.0 * kColdBytes / seconds;
    std::printf("device copy: %.0f GB/s read and written\n", copy_bytes_ * 1e-9);
    return absl::OkStatus();
  }

  static size_t BytesOf(DeviceFormat format) { return format == DeviceFormat::kFp8 ? 1 : 2; }

  // FLOP/s of y [m, n] = x [m, k] · w [n, k]ᵀ by the fastest of the algorithms that cuBLASLt
  // proposes; FP8 without scales of rows and blocks.
  absl::StatusOr<double> BestOfLibrary(DeviceFormat format, int m, int n, int k) {
    const cudaDataType_t type = format == DeviceFormat::kFp8 ? CUDA_R_8F_E4M3 : CUDA_R_16BF;
    const std::byte* const x = Cold(0, 0, format);
    cublasLtMatmulDesc_t op;
    cublasLtMatrixLayout_t a, b, c;
    cublasLtMatmulPreference_t preference;
    RETURN_IF_ERROR(Lt(cublasLtMatmulDescCreate(&op, CUBLAS_COMPUTE_32F, CUDA_R_32F), "op"));
    const cublasOperation_t transposed = CUBLAS_OP_T;
    RETURN_IF_ERROR(Lt(cublasLtMatmulDescSetAttribute(op, CUBLASLT_MATMUL_DESC_TRANSA, &transposed,
                                                      sizeof(transposed)),
                       "transposed"));
    RETURN_IF_ERROR(Lt(cublasLtMatrixLayoutCreate(&a, type, k, n, k), "w"));
    RETURN_IF_ERROR(Lt(cublasLtMatrixLayoutCreate(&b, type, k, m, k), "x"));
    RETURN_IF_ERROR(Lt(cublasLtMatrixLayoutCreate(&c, CUDA_R_32F, n, m, n), "y"));
    RETURN_IF_ERROR(Lt(cublasLtMatmulPreferenceCreate(&preference), "preference"));
    const size_t workspace = workspace_.size();
    RETURN_IF_ERROR(
        Lt(cublasLtMatmulPreferenceSetAttribute(
               preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &workspace, sizeof(workspace)),
           "workspace"));
    cublasLtMatmulHeuristicResult_t found[8];
    int count = 0;
    RETURN_IF_ERROR(
        Lt(cublasLtMatmulAlgoGetHeuristic(lt_, op, a, b, c, c, preference, 8, found, &count),
           "heuristic"));
    const float one = 1, zero = 0;
    double best = 0;
    for (int i = 0; i < count; ++i) {
      const auto seconds = Time([&](int run) {
        const std::byte* const w = Cold(run, BytesOf(format) * n * k, format);
        return Lt(
            cublasLtMatmul(lt_, op, &one, w, a, x, b, &zero, output_.data(), c, output_.data(), c,
                           &found[i].algo, workspace_.data(), workspace, stream_.get()),
            "cublasLtMatmul");
      });
      if (seconds.ok()) best = std::max(best, 2.0 * m * n * k / *seconds);
    }
    cublasLtMatmulPreferenceDestroy(preference);
    for (const cublasLtMatrixLayout_t layout : {a, b, c}) cublasLtMatrixLayoutDestroy(layout);
    cublasLtMatmulDescDestroy(op);
    return best;
  }

  // `bytes` of noise that the last runs have not read, where there is so much.
  const std::byte* Cold(int run, size_t bytes, DeviceFormat format) const {
    const size_t places = bytes > 0 ? kColdBytes / bytes : 0;
    const DeviceBuffer& noise = format == DeviceFormat::kFp8 ? noise8_ : noise_;
    return noise.data() + (places > 1 ? run % places * bytes : 0) / 256 * 256;
  }

  // What is reached of the lesser ceiling: multiplying, or reading and writing `bytes`.
  void Report(const std::string& what, double seconds, double flops, double bytes,
              double library_flops) const {
    const double least = std::max(flops / library_flops, bytes / copy_bytes_);
    std::printf(
        "%-44s %9.1f us %7.1f TFLOPS %7.0f GB/s  cuBLASLt %7.1f TFLOPS  %.2f of the ceiling\n",
        what.c_str(), seconds * 1e6, flops / seconds * 1e-12, bytes / seconds * 1e-9,
        library_flops * 1e-12, least / seconds);
  }

  // Rows of noise, with scales where the format has them.
  GemmInput Left(DeviceFormat format, int rows, int k) const {
    GemmInput x;
    x.values = Cold(0, 0, format);
    x.rows = rows;
    x.stride = k;
    x.scales = noise_.as<float>();
    return x;
  }
  static const char* Name(DeviceFormat format) {
    return format == DeviceFormat::kFp8 ? " FP8 " : " BF16 ";
  }

  absl::Status Dense(DeviceFormat format, int m, int n, int k) {
    ASSIGN_OR_RETURN(const double library, BestOfLibrary(format, m, n, k));
    const GemmInput x = Left(format, m, k);
    DeviceWeight w{.format = format, .n = n, .k = k, .scales = noise_.as<float>()};
    const DeviceMatrix<float> y(output_.as<float>(), m, n);
    ASSIGN_OR_RETURN(const double seconds, Time([&](int run) {
                       w.data = Cold(run, WeightBytes(format, n, k), format);
                       return Gemm(stream_.get(), path_, x, w, {}, Epilogue::kStore, y);
                     }));
    const double bytes = static_cast<double>(BytesOf(format)) * (1.0 * n * k + 1.0 * m * k);
    Report(absl::StrCat("dense", Name(format), m, " x ", n, " x ", k), seconds, 2.0 * m * n * k,
           bytes + 4.0 * m * n, library);
    return absl::OkStatus();
  }

  // `groups` experts of `rows` rows each. The library multiplies all of them by one weight.
  absl::Status Grouped(DeviceFormat format, int groups, int rows, int n, int k) {
    const int all = groups * rows;
    ASSIGN_OR_RETURN(const double library, BestOfLibrary(format, all, n, k));
    const size_t bytes = WeightBytes(format, n, k) * groups;
    ASSIGN_OR_RETURN(const DeviceBuffer weights, Noise(bytes, format));
    std::vector<int32_t> host(groups + 1);
    for (int g = 0; g <= groups; ++g) host[g] = g * rows;
    ASSIGN_OR_RETURN(const DeviceBuffer offsets,
                     DeviceBuffer::Create(host.size() * sizeof(int32_t)));
    RETURN_IF_ERROR(CopyAsync(offsets.data(), host.data(), offsets.size(), stream_));
    const GemmInput x = Left(format, all, k);
    const DeviceWeight w{.format = format,
                         .groups = groups,
                         .n = n,
                         .k = k,
                         .data = weights.data(),
                         .scales = noise_.as<float>()};
    const DeviceMatrix<float> y(output_.as<float>(), all, n);
    ASSIGN_OR_RETURN(const double seconds, Time([&](int) {
                       return Gemm(stream_.get(), path_, x, w, {.offsets = offsets.as<int32_t>()},
                                   Epilogue::kStore, y);
                     }));
    const double rest = static_cast<double>(BytesOf(format)) * all * k + 4.0 * all * n;
    Report(absl::StrCat("grouped", Name(format), groups, " x ", rows, " x ", n, " x ", k), seconds,
           2.0 * all * n * k, static_cast<double>(bytes) + rest, library);
    return absl::OkStatus();
  }

  // Absorbed decode of DeepSeek-V3's shape: 128 heads over latents of 512 + 64.
  absl::Status MlaDecode(int sequences, int context) {
    constexpr int kHeads = 128, kKey = 576, kValue = 512, kBlock = 64;
    const AttentionShape shape{
        .heads = kHeads, .kv_heads = 1, .qk_dim = kKey, .v_dim = kValue, .scale = 0.07f};
    const KvAddressing addressing{.block_tokens = kBlock,
                                  .block_stride = size_t{kBlock} * kKey,
                                  .k_head_stride = size_t{kBlock} * kKey,
                                  .k_token_stride = kKey,
                                  .v_head_stride = size_t{kBlock} * kKey,
                                  .v_token_stride = kKey};
    const int blocks = context / kBlock;
    ASSIGN_OR_RETURN(const DeviceBuffer kv, Noise(size_t{2} * sequences * blocks * kBlock * kKey,
                                                  DeviceFormat::kBfloat16));
    std::vector<DeviceSequence> host;
    std::vector<int32_t> tables;
    for (int s = 0; s < sequences; ++s) {
      host.push_back({s, 1, context - 1, s * blocks});
      for (int b = 0; b < blocks; ++b) tables.push_back(b * sequences + s);
    }
    ASSIGN_OR_RETURN(const DeviceBuffer table, DeviceBuffer::Create(tables.size() * 4));
    ASSIGN_OR_RETURN(const DeviceBuffer rows,
                     DeviceBuffer::Create(host.size() * sizeof(DeviceSequence)));
    RETURN_IF_ERROR(CopyAsync(table.data(), tables.data(), table.size(), stream_));
    RETURN_IF_ERROR(CopyAsync(rows.data(), host.data(), rows.size(), stream_));
    const AttentionBatch batch{.sequences = rows.as<DeviceSequence>(),
                               .tables = table.as<int32_t>(),
                               .count = sequences,
                               .context_max = context};
    ASSIGN_OR_RETURN(const DeviceBuffer parts,
                     DeviceBuffer::Create(AttentionWorkspaceBytes(shape, batch, sequences, true)));
    // Any bits but NaNs' will do as queries: BF16 pairs in (-1, 1) are FP32 numbers of that size.
    const DeviceMatrix<const float> q(noise_.as<const float>(), sequences, kHeads * kKey);
    const DeviceMatrix<float> out(output_.as<float>(), sequences, kHeads * kValue);
    ASSIGN_OR_RETURN(const double seconds, Time([&](int) {
                       return PagedAttention(stream_.get(), shape, addressing, kv.data(), batch, q,
                                             true, parts.data(), out);
                     }));
    const double pairs = static_cast<double>(sequences) * context * kHeads;
    ASSIGN_OR_RETURN(const double library,
                     BestOfLibrary(DeviceFormat::kBfloat16, 4096, 4096, 7168));
    Report(absl::StrCat("MLA decode ", sequences, " x ", context), seconds,
           2.0 * pairs * (kKey + kValue), static_cast<double>(kv.size()), library);
    return absl::OkStatus();
  }

  GemmPath path_ = GemmPath::kMmaSync;
  OwnedStream stream_;
  cublasLtHandle_t lt_ = nullptr;  // these three live as long as the process
  cudaEvent_t begin_ = nullptr, end_ = nullptr;
  DeviceBuffer noise_, noise8_, output_, workspace_;
  double copy_bytes_ = 0;  // per second
};

}  // namespace
}  // namespace switchyard::cuda

int main() {
  const absl::Status done = switchyard::cuda::Bench().Run();
  if (done.ok()) return 0;
  std::fprintf(stderr, "%s\n", done.ToString().c_str());
  return 1;
}
