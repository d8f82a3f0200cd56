#include "bench/ceilings.h"

#include <time.h>

#include <algorithm>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"

namespace switchyard {
namespace {

constexpr size_t kCachedBytes = size_t{256} << 10;   // a part of any second-level cache
constexpr size_t kMeasuredBytes = size_t{64} << 20;  // some milliseconds of memory's time
constexpr size_t kMemoryBytes = size_t{256} << 20;   // many times the last cache's
constexpr size_t kPeakRounds = 40000;                // some milliseconds of arithmetic

}  // namespace

double BenchSeconds(const ComputePool& pool) {
  timespec t;
  clock_gettime(pool.threads() == 1 ? CLOCK_THREAD_CPUTIME_ID : CLOCK_MONOTONIC, &t);
  return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

const char* Name(Ceiling c) {
  switch (c) {
    case Ceiling::kInt8Dot:
      return "int8_dot";
    case Ceiling::kBf16Dot:
      return "bf16_dot";
    case Ceiling::kFloat32Fma:
      return "float32_fma";
    case Ceiling::kMemoryRead:
      return "memory_read";
    case Ceiling::kCachedRead:
      return "cached_read";
    case Ceiling::kCopy:
      return "copy";
  }
  return "";
}

absl::StatusOr<CpuPath> FindCpuPath(const std::string& kernels) {
  ASSIGN_OR_RETURN(const KernelSet set, SelectKernels(kernels));
  for (CpuPath& path : CpuPaths()) {
    if (path.set.name == set.name && path.isa != nullptr) return std::move(path);
  }
  return absl::InvalidArgumentError(
      absl::StrCat("--kernels ", kernels, ": there is nothing to hold it against"));
}

Ceilings::Ceilings(const cpu::Isa& isa, ComputePool& pool)
    : isa_(isa), pool_(pool), from_(kMemoryBytes), to_(kMemoryBytes) {
  std::memset(from_.data(), 1, from_.size());
  std::memset(to_.data(), 1, to_.size());
}

std::vector<Ceiling> Ceilings::all() const {
  std::vector<Ceiling> all;
  for (const Ceiling c : {Ceiling::kInt8Dot, Ceiling::kBf16Dot, Ceiling::kFloat32Fma,
                          Ceiling::kMemoryRead, Ceiling::kCachedRead, Ceiling::kCopy}) {
    if (Has(c)) all.push_back(c);
  }
  return all;
}

double Ceilings::Measure(Ceiling c) {
  if (c == Ceiling::kInt8Dot) return MeasureArithmetic(cpu::kTileInt8);
  if (c == Ceiling::kBf16Dot) return MeasureArithmetic(cpu::kTileDot);
  if (c == Ceiling::kFloat32Fma) return MeasureArithmetic(cpu::kTileFloat);
  return MeasureBytes(c);
}

double Ceilings::MeasureArithmetic(cpu::TileKind kind) {
  const size_t threads = pool_.threads();
  const double start = BenchSeconds(pool_);
  pool_.ParallelFor(threads, [&](size_t, int) {
    float out[cpu::kPeakOutputsMax] = {};
    isa_.peaks.multiply[kind](kPeakRounds, out);
  });
  const double products = static_cast<double>(cpu::kTileRows) * isa_.tile_vectors * isa_.lanes *
                          (kind == cpu::kTileInt8  ? 4
                           : kind == cpu::kTileDot ? 2
                                                   : 1);
  return 2 * products * kPeakRounds * threads / (BenchSeconds(pool_) - start);
}

double Ceilings::MeasureBytes(Ceiling c) {
  const size_t threads = pool_.threads();
  const size_t part = std::min(kMeasuredBytes, from_.size()) / threads / 256 * 256;
  if (next_ + part * threads > from_.size()) next_ = 0;
  const std::byte* from = from_.data() + next_;
  std::byte* to = to_.data() + next_;
  next_ += part * threads;
  const double start = BenchSeconds(pool_);
  pool_.ParallelFor(threads, [&](size_t i, int) {
    if (c == Ceiling::kMemoryRead) {
      isa_.peaks.read(from + i * part, part);
    } else if (c == Ceiling::kCopy) {
      isa_.peaks.copy(from + i * part, to + i * part, part);
    } else {
      for (size_t done = 0; done < part; done += kCachedBytes) {
        isa_.peaks.read(from + i * part, std::min(kCachedBytes, part - done));
      }
    }
  });
  return static_cast<double>(part) * threads / (BenchSeconds(pool_) - start);
}

}  // namespace switchyard
