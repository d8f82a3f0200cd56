#include "model/packed_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstring>
#include <fstream>
#include <iterator>
#include <string>

#include "common/check.h"

namespace switchyard {
namespace {

constexpr size_t kPage = 4096, kHugePage = size_t{2} << 20;

size_t WholePages(size_t bytes) { return (bytes + kPage - 1) / kPage * kPage; }

// Anonymous memory of whole pages that begins where a huge page can; null if there is none.
std::byte* Reserve(size_t bytes) {
  void* p = mmap(nullptr, bytes + kHugePage, PROT_READ | PROT_WRITE,
                 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p == MAP_FAILED) return nullptr;
  auto* const begin = static_cast<std::byte*>(p);
  const size_t before = -reinterpret_cast<uintptr_t>(p) % kHugePage;
  if (before > 0) munmap(begin, before);
  munmap(begin + before + bytes, kHugePage - before);
  return begin + before;
}

// What the kernel says in a file of its own; "" if it says nothing.
std::string Setting(const char* path) {
  std::ifstream file(path);
  return {std::istreambuf_iterator<char>(file), {}};
}

bool MovesAtAll() {
  const std::string huge_pages = Setting("/sys/kernel/mm/transparent_hugepage/enabled");
  // Where all memory is charged before its use, the copy may be refused after the mapping has gone.
  const bool strict = Setting("/proc/sys/vm/overcommit_memory").starts_with('2');
  return !strict && !huge_pages.empty() && huge_pages.find("[never]") == std::string::npos;
}

}  // namespace

bool PackedFile::Moves(size_t bytes) {
  static const bool at_all = MovesAtAll();
  return at_all && bytes >= kHugePage;
}

std::shared_ptr<PackedFile> PackedFile::Map(int fd, size_t bytes) {
  std::byte* const data = Reserve(WholePages(bytes));
  if (data == nullptr) return nullptr;
  posix_fadvise(fd, 0, 0, POSIX_FADV_WILLNEED);
  // Read now: a disk's error is one of this call's then, and no signal. Kernels before 5.14 do not
  // know how, and read when the bytes are used.
  if (mmap(data, bytes, PROT_READ, MAP_PRIVATE | MAP_FIXED, fd, 0) == MAP_FAILED ||
      (madvise(data, bytes, MADV_POPULATE_READ) != 0 && errno != EINVAL)) {
    munmap(data, WholePages(bytes));
    return nullptr;
  }
  return std::shared_ptr<PackedFile>(new PackedFile(data, bytes));
}

PackedFile::~PackedFile() { munmap(data_, WholePages(size_)); }

bool PackedFile::Move(const std::atomic<bool>& stop) {
  const size_t bytes = WholePages(size_);
  std::byte* const copy = Reserve(bytes);
  if (copy == nullptr) return false;
  madvise(copy, bytes, MADV_HUGEPAGE);  // advice: where it is refused the pages are small ones
  size_t moved = 0;
  while (moved < bytes && !stop) {
    const size_t count = std::min(kHugePage, bytes - moved);
    std::byte* const to = data_ + moved;
    std::memcpy(copy + moved, to, std::min(count, size_ - moved));
    // Not libc's mremap: UCX 1.13 has put a function there that forgets where to
    // (https://github.com/openucx/ucx/issues/8820).
    if (syscall(SYS_mremap, copy + moved, count, count, MREMAP_MAYMOVE | MREMAP_FIXED, to) < 0) {
      unsigned char resident;
      SY_CHECK_MSG(mincore(to, 1, &resident) == 0, "weights have lost their memory");
      break;
    }
    moved += count;
  }
  if (moved < bytes) munmap(copy + moved, bytes - moved);
  return moved == bytes;
}

}  // namespace switchyard
