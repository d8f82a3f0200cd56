// model/packed_file.h: a file of packed weights as memory. It is mapped first, so that a start
// takes no longer than its disk, and then moved into huge pages, while threads compute with it.
#pragma once

#include <atomic>
#include <cstddef>
#include <memory>

namespace switchyard {

class PackedFile {
 public:
  // Whether this machine moves files of so many bytes: it gives huge pages, and they fill one.
  static bool Moves(size_t bytes);

  // All of a regular file of `bytes` > 0. Null if it cannot be mapped or read.
  static std::shared_ptr<PackedFile> Map(int fd, size_t bytes);
  ~PackedFile();
  PackedFile(const PackedFile&) = delete;

  // Read-only, aligned to huge pages. Where the file is cut short between Map and the end of Move,
  // a read ends the process (SIGBUS).
  std::byte* data() const { return data_; }
  size_t size() const { return size_; }

  // Page by huge page puts a copy in memory of the process's own in the mapping's place, each by
  // one system call: who reads meanwhile sees the same bytes. False if the kernel has refused, or
  // `stop` was set: a part is still the file then. At most once.
  bool Move(const std::atomic<bool>& stop);

 private:
  PackedFile(std::byte* data, size_t size) : data_(data), size_(size) {}
  std::byte* const data_;
  const size_t size_;
};

}  // namespace switchyard
