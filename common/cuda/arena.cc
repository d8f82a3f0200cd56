#include <algorithm>

#include "common/cuda/device.h"
#include "common/status_macros.h"

namespace switchyard::cuda {
namespace {
constexpr size_t kAlignment = 256;
}  // namespace

absl::StatusOr<std::byte*> DeviceArena::Allocate(size_t bytes) {
  bytes = (bytes + kAlignment - 1) / kAlignment * kAlignment;
  if (slabs_.empty() || bytes > slabs_.back().size() - at_) {
    ASSIGN_OR_RETURN(DeviceBuffer slab, DeviceBuffer::Create(std::max(bytes, slab_bytes_)));
    slabs_.push_back(std::move(slab));
    at_ = 0;
  }
  std::byte* const data = slabs_.back().data() + at_;
  at_ += bytes;
  used_ += bytes;
  return data;
}

}  // namespace switchyard::cuda
