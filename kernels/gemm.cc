#include "kernels/gemm.h"

#include <sys/mman.h>

#include <new>

namespace switchyard {
namespace {
constexpr size_t kHugePage = size_t{2} << 20;
}  // namespace

AlignedBuffer::AlignedBuffer(size_t bytes) : size_(bytes) {
  const size_t alignment = bytes >= kHugePage ? kHugePage : 64;
  data_ = {static_cast<std::byte*>(::operator new (bytes, std::align_val_t{alignment})),
           [alignment](std::byte* p) { ::operator delete (p, std::align_val_t{alignment}); }};
  // Advice only: where it is refused the memory is the same, and slower. A last part of a page is
  // left out, so that the neighbours' memory is not touched.
  if (bytes >= kHugePage) madvise(data_.get(), bytes / kHugePage * kHugePage, MADV_HUGEPAGE);
}

}  // namespace switchyard
