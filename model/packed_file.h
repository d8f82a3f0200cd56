// model/packed_file.h: a file of packed weights as memory. It is mapped first, so that a start
// takes no longer than its disk, and is then moved into huge pages, while threads compute with it.
#pragma once

#include <cstddef>
#include <memory>

namespace switchyard {

class PackedFile {
 public:
  // All of a regular file of `bytes` > 0. Null if it cannot be mapped or read.
  static std::shared_ptr<PackedFile> Map(int fd, size_t bytes);
  ~PackedFile();
  PackedFile(const PackedFile&) = delete;

  // Read-only, aligned to huge pages. Where the file is cut short between Map and Move, a read ends
  // the process (SIGBUS).
  std::byte* data() const { return data_; }
  size_t size() const { return size_; }

  // Puts a copy in huge pages of the process's own in the mapping's place, in one system call: who
  // reads meanwhile sees the same bytes. False, and nothing has changed, if the kernel lacks
  // memory. At most once.
  bool Move();

  // Whether Move is worth it: files of less have no huge page, and the machine may give none.
  static bool IsWorthMoving(size_t bytes);

 private:
  PackedFile(std::byte* data, size_t size) : data_(data), size_(size) {}
  std::byte* const data_;
  const size_t size_;
};

}  // namespace switchyard
