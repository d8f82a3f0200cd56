#include "model/packed_file.h"

#include <fcntl.h>
#include <linux/mman.h>
#include <sys/mman.h>

#include <cerrno>
#include <cstdint>
#include <cstring>

#include "common/file.h"

namespace switchyard {
namespace {

constexpr size_t kPage = 4096, kHugePage = size_t{2} << 20;

size_t WholePages(size_t bytes) { return (bytes + kPage - 1) / kPage * kPage; }

// Anonymous memory of whole pages that begins where a huge page can; null if there is none.
std::byte* Reserve(size_t bytes) {
  const size_t wanted = WholePages(bytes);
  void* p = mmap(nullptr, wanted + kHugePage, PROT_READ | PROT_WRITE,
                 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p == MAP_FAILED) return nullptr;
  auto* const begin = static_cast<std::byte*>(p);
  const size_t before = -reinterpret_cast<uintptr_t>(p) % kHugePage;
  if (before > 0) munmap(begin, before);
  if (before < kHugePage) munmap(begin + before + wanted, kHugePage - before);
  return begin + before;
}

bool HugePagesAreGiven() {
  const auto text = ReadFile("/sys/kernel/mm/transparent_hugepage/enabled", kPage);
  return text.ok() && text->find("[never]") == std::string::npos;
}

}  // namespace

std::shared_ptr<PackedFile> PackedFile::Map(int fd, size_t bytes) {
  std::byte* const data = Reserve(bytes);
  if (data == nullptr) return nullptr;
  posix_fadvise(fd, 0, 0, POSIX_FADV_WILLNEED);  // all of it at once, if the kernel will
  // Read now: a disk's error is one of this call's then, and no signal. Older kernels do not know
  // how, and read when the bytes are used.
  if (mmap(data, bytes, PROT_READ, MAP_PRIVATE | MAP_FIXED, fd, 0) == MAP_FAILED ||
      (madvise(data, bytes, MADV_POPULATE_READ) != 0 && errno != EINVAL)) {
    munmap(data, WholePages(bytes));
    return nullptr;
  }
  return std::shared_ptr<PackedFile>(new PackedFile(data, bytes));
}

PackedFile::~PackedFile() { munmap(data_, WholePages(size_)); }

bool PackedFile::Move() {
  const size_t bytes = WholePages(size_);
  std::byte* const copy = Reserve(bytes);
  if (copy == nullptr) return false;
  madvise(copy, bytes, MADV_HUGEPAGE);  // advice: where it is refused the pages are small ones
  std::memcpy(copy, data_, size_);
  if (mprotect(copy, bytes, PROT_READ) == 0 &&
      mremap(copy, bytes, bytes, MREMAP_MAYMOVE | MREMAP_FIXED, data_) != MAP_FAILED) {
    return true;
  }
  munmap(copy, bytes);
  return false;
}

bool PackedFile::IsWorthMoving(size_t bytes) {
  static const bool given = HugePagesAreGiven();
  return given && bytes >= kHugePage;
}

}  // namespace switchyard
