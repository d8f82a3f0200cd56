#include "common/cuda/device.h"
#include "common/status_macros.h"

namespace switchyard::cuda {
namespace {
constexpr size_t kAlignment = 256;
}  // namespace

absl::StatusOr<std::byte*> DeviceArena::Hold(size_t bytes, std::vector<DeviceBuffer>* in) {
  ASSIGN_OR_RETURN(DeviceBuffer buffer, DeviceBuffer::Create(bytes));
  held_ += bytes;
  in->push_back(std::move(buffer));
  return in->back().data();
}

absl::StatusOr<std::byte*> DeviceArena::Allocate(size_t bytes) {
  bytes = (bytes + kAlignment - 1) / kAlignment * kAlignment;
  if (bytes > slab_bytes_ / 4) return Hold(bytes, &large_);
  if (slabs_.empty() || bytes > slab_bytes_ - at_) {
    RETURN_IF_ERROR(Hold(slab_bytes_, &slabs_).status());
    at_ = 0;
  }
  std::byte* const data = slabs_.back().data() + at_;
  at_ += bytes;
  return data;
}

}  // namespace switchyard::cuda
