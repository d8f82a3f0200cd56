// model/safetensors.h: tensors by name from a checkpoint of one or many safetensors files.
//
// A file is: u64 little-endian header length N; N bytes of JSON {name: {"dtype", "shape",
// "data_offsets": [begin, end)}, "__metadata__"?: {…}}; the data, which offsets count from.
// Every number is checked when a file is opened: a tensor that was found can be read.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "common/file.h"

namespace switchyard {

// Where a tensor lies. Element types that we do not compute with are listed, and refused on use.
struct TensorEntry {
  std::string dtype;  // the format's own name: BF16, F32, I64, …
  std::vector<uint64_t> shape;
  uint64_t begin = 0, end = 0;  // bytes, from the start of the data
};

struct SafetensorsHeader {
  std::map<std::string, TensorEntry, std::less<>> tensors;
  uint64_t data_begin = 0;  // bytes, from the start of the file
};

// Reads and checks the header of `file` (all of its bytes). Errors are kDataLoss if the file is cut
// short, else kInvalidArgument; they begin with `name` and name the tensor.
absl::StatusOr<SafetensorsHeader> ParseSafetensors(std::span<const std::byte> file,
                                                   const std::string& name);

// A tensor's bytes in the mapped file: little-endian, row-major, aligned to nothing.
struct TensorBytes {
  const TensorEntry* entry = nullptr;
  std::span<const std::byte> bytes;
};

// Borrowed bytes live as long as the object. Thread-safe once open. Movable.
class Checkpoint {
 public:
  struct Shard {
    std::string path;
    MappedFile file;
    SafetensorsHeader header;
  };

  // DIR/model.safetensors.index.json and the shards that it names, or DIR/model.safetensors.
  static absl::StatusOr<Checkpoint> Open(const std::string& dir);
  static absl::StatusOr<Checkpoint> OpenFile(const std::string& path);

  bool Has(std::string_view name) const { return tensors_.contains(name); }
  // Errors: kNotFound; kInvalidArgument if the shape or the type is another. They name tensor,
  // wanted, found and file.
  absl::StatusOr<TensorBytes> Get(std::string_view name, std::span<const uint64_t> shape,
                                  std::span<const std::string_view> dtypes) const;
  // Without a wish for the shape.
  absl::StatusOr<TensorBytes> Get(std::string_view name,
                                  std::span<const std::string_view> dtypes) const;

  // Shards in ascending order of path; names map to indices of it.
  const std::vector<Shard>& shards() const { return shards_; }
  const std::map<std::string, size_t, std::less<>>& tensors() const { return tensors_; }

 private:
  absl::Status AddShard(const std::string& path);

  std::string where_;  // for errors: the directory or the file
  std::vector<Shard> shards_;
  std::map<std::string, size_t, std::less<>> tensors_;
};

}  // namespace switchyard
