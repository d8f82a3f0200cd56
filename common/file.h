// common/file.h: files as RAII handles and mappings.
#pragma once

#include <cstddef>
#include <span>
#include <string>

#include "absl/status/statusor.h"

namespace switchyard {

// A whole file mapped read-only. The bytes live as long as the object. Movable, not copyable.
class MappedFile {
 public:
  // Errors: kNotFound, kPermissionDenied, kInternal, each with the path. An empty file maps to an
  // empty span.
  static absl::StatusOr<MappedFile> Open(const std::string& path);
  MappedFile(MappedFile&& o) noexcept;
  MappedFile& operator=(MappedFile&& o) noexcept;
  ~MappedFile();

  std::span<const std::byte> bytes() const { return {data_, size_}; }
  // The pages that were read leave the process's memory; the next access reads them again.
  void Release() const;

 private:
  MappedFile(const std::byte* data, size_t size) : data_(data), size_(size) {}
  const std::byte* data_ = nullptr;
  size_t size_ = 0;
};

// The file's content. kResourceExhausted if it is larger than `bytes_max`.
absl::StatusOr<std::string> ReadFile(const std::string& path, size_t bytes_max);
// Writes to `path`.tmp and renames: readers see the old content or the new, never a part.
absl::Status WriteFileAtomically(const std::string& path, std::string_view content);

}  // namespace switchyard
