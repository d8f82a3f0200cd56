#include "model/safetensors.h"

#include <algorithm>
#include <cstring>
#include <set>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/checked_math.h"
#include "common/status_macros.h"
#include "model/json_fields.h"

namespace switchyard {
namespace {

using nlohmann::json;

constexpr uint64_t kHeaderBytesMax = 100'000'000;  // the format's own limit
constexpr size_t kIndexBytesMax = 100'000'000;
constexpr size_t kShardsMax = 4096, kDimensionsMax = 8;

struct ElementType {
  std::string_view name;
  uint64_t bytes;
};
constexpr ElementType kElementTypes[] = {
    {"BOOL", 1}, {"U8", 1},  {"I8", 1},  {"F8_E5M2", 1}, {"F8_E4M3", 1},
    {"I16", 2},  {"U16", 2}, {"F16", 2}, {"BF16", 2},    {"I32", 4},
    {"U32", 4},  {"F32", 4}, {"F64", 8}, {"I64", 8},     {"U64", 8},
};

std::optional<uint64_t> BytesOf(std::string_view dtype) {
  for (const ElementType& t : kElementTypes) {
    if (t.name == dtype) return t.bytes;
  }
  return std::nullopt;
}

const uint64_t* AsUnsigned(const json& v) { return v.get_ptr<const json::number_unsigned_t*>(); }

std::string ShapeText(std::span<const uint64_t> shape) {
  return absl::StrCat("[", absl::StrJoin(shape, ", "), "]");
}

// Reads a list of at most `max` unsigned integers.
bool ReadUnsigned(const json& object, const char* name, size_t max, std::vector<uint64_t>& out) {
  const auto it = object.find(name);
  if (it == object.end() || !it->is_array() || it->size() > max) return false;
  for (const json& v : *it) {
    if (AsUnsigned(v) == nullptr) return false;
    out.push_back(*AsUnsigned(v));
  }
  return true;
}

// `where` names file and tensor.
absl::StatusOr<TensorEntry> ParseEntry(const json& v, uint64_t data_bytes,
                                       const std::string& where) {
  const auto refuse = [&](std::string_view what) {
    return absl::InvalidArgumentError(absl::StrCat(where, ": ", std::string(what)));
  };
  if (!v.is_object()) return refuse("wanted an object");
  TensorEntry entry;
  const auto dtype = v.find("dtype");
  if (dtype == v.end() || !dtype->is_string()) return refuse("dtype: wanted a string");
  entry.dtype = dtype->get_ref<const std::string&>();
  const auto element_bytes = BytesOf(entry.dtype);
  if (!element_bytes) return refuse(absl::StrCat("dtype: unknown: ", entry.dtype));
  if (!ReadUnsigned(v, "shape", kDimensionsMax, entry.shape)) {
    return refuse(absl::StrCat("shape: wanted at most ", kDimensionsMax, " sizes"));
  }
  std::vector<uint64_t> offsets;
  if (!ReadUnsigned(v, "data_offsets", 2, offsets) || offsets.size() != 2) {
    return refuse("data_offsets: wanted two offsets");
  }
  entry.begin = offsets[0];
  entry.end = offsets[1];
  if (entry.begin > entry.end || entry.end > data_bytes) {
    return refuse(absl::StrCat("data_offsets: [", entry.begin, ", ", entry.end,
                               ") does not lie in the file's ", data_bytes, " bytes of data"));
  }
  std::optional<uint64_t> bytes = element_bytes;
  for (const uint64_t n : entry.shape) {
    if (bytes) bytes = CheckedProduct({*bytes, n});
  }
  if (bytes != entry.end - entry.begin) {
    return refuse(absl::StrCat("shape ", ShapeText(entry.shape), " of ", entry.dtype,
                               " does not take the ", entry.end - entry.begin,
                               " bytes of data_offsets"));
  }
  return entry;
}

}  // namespace

absl::StatusOr<SafetensorsHeader> ParseSafetensors(std::span<const std::byte> file,
                                                   const std::string& name) {
  uint64_t length = 0;
  if (file.size() < sizeof(length)) {
    return absl::DataLossError(
        absl::StrCat(name, ": ", file.size(), " bytes, too short for a header"));
  }
  std::memcpy(&length, file.data(), sizeof(length));
  if (length > kHeaderBytesMax) {
    return absl::InvalidArgumentError(
        absl::StrCat(name, ": header of ", length, " bytes; supported: at most ", kHeaderBytesMax));
  }
  if (length > file.size() - sizeof(length)) {
    return absl::DataLossError(absl::StrCat(name, ": cut short: a header of ", length,
                                            " bytes in a file of ", file.size()));
  }
  SafetensorsHeader header;
  header.data_begin = sizeof(length) + length;
  const std::string_view text(reinterpret_cast<const char*>(file.data()) + sizeof(length), length);
  ASSIGN_OR_RETURN(const json document, ParseJsonObject(text, absl::StrCat(name, ": header")));
  for (const auto& [key, value] : document.items()) {
    if (key == "__metadata__") continue;
    ASSIGN_OR_RETURN(header.tensors[key], ParseEntry(value, file.size() - header.data_begin,
                                                     absl::StrCat(name, ": ", key)));
  }
  return header;
}

absl::Status Checkpoint::AddShard(const std::string& path) {
  ASSIGN_OR_RETURN(MappedFile file, MappedFile::Open(path));
  ASSIGN_OR_RETURN(SafetensorsHeader header, ParseSafetensors(file.bytes(), path));
  for (const auto& [name, entry] : header.tensors) {
    const auto [it, added] = tensors_.emplace(name, shards_.size());
    if (!added) {
      return absl::InvalidArgumentError(
          absl::StrCat(path, ": ", name, ": also in ", shards_[it->second].path));
    }
  }
  shards_.push_back(Shard{path, std::move(file), std::move(header)});
  return absl::OkStatus();
}

absl::StatusOr<Checkpoint> Checkpoint::OpenFile(const std::string& path) {
  Checkpoint checkpoint;
  checkpoint.where_ = path;
  RETURN_IF_ERROR(checkpoint.AddShard(path));
  return checkpoint;
}

absl::StatusOr<Checkpoint> Checkpoint::Open(const std::string& dir) {
  const std::string index_path = dir + "/model.safetensors.index.json";
  auto index = ReadFile(index_path, kIndexBytesMax);
  if (absl::IsNotFound(index.status())) return OpenFile(dir + "/model.safetensors");
  RETURN_IF_ERROR(index.status());
  ASSIGN_OR_RETURN(const json document, ParseJsonObject(*index, index_path));
  JsonFields fields(document, index_path);
  const json* weight_map = fields.Object("weight_map");
  RETURN_IF_ERROR(fields.status());
  if (weight_map == nullptr) {
    return absl::InvalidArgumentError(absl::StrCat(index_path, ": weight_map: missing"));
  }

  std::set<std::string> files;
  for (const auto& [name, file] : weight_map->items()) {
    const std::string* shard = file.get_ptr<const std::string*>();
    if (shard == nullptr || shard->empty() || shard->find('/') != std::string::npos ||
        shard->find('\0') != std::string::npos || files.size() >= kShardsMax) {
      return absl::InvalidArgumentError(absl::StrCat(index_path, ": weight_map: ", name,
                                                     ": wanted the name of one of at most ",
                                                     kShardsMax, " files in the same folder"));
    }
    files.insert(*shard);
  }
  Checkpoint checkpoint;
  checkpoint.where_ = dir;
  for (const std::string& file : files) RETURN_IF_ERROR(checkpoint.AddShard(dir + "/" + file));
  for (const auto& [name, file] : weight_map->items()) {
    const auto it = checkpoint.tensors_.find(name);
    const std::string wanted = dir + "/" + file.get_ref<const std::string&>();
    if (it == checkpoint.tensors_.end() || checkpoint.shards_[it->second].path != wanted) {
      return absl::InvalidArgumentError(
          absl::StrCat(index_path, ": weight_map: ", name, ": not in ", wanted));
    }
  }
  return checkpoint;
}

absl::StatusOr<TensorBytes> Checkpoint::Get(std::string_view name,
                                            std::span<const std::string_view> dtypes) const {
  const auto it = tensors_.find(name);
  if (it == tensors_.end()) {
    return absl::NotFoundError(absl::StrCat(where_, ": ", std::string(name), ": no such tensor"));
  }
  const Shard& shard = shards_[it->second];
  const TensorEntry& entry = shard.header.tensors.find(name)->second;
  if (std::find(dtypes.begin(), dtypes.end(), entry.dtype) == dtypes.end()) {
    std::string supported;
    for (const std::string_view d : dtypes) {
      absl::StrAppend(&supported, supported.empty() ? "" : ", ", std::string(d));
    }
    return absl::InvalidArgumentError(absl::StrCat(shard.path, ": ", std::string(name), ": dtype ",
                                                   entry.dtype, "; supported: ", supported));
  }
  const uint64_t begin = shard.header.data_begin + entry.begin;
  return TensorBytes{&entry, shard.file.bytes().subspan(begin, entry.end - entry.begin)};
}

absl::StatusOr<TensorBytes> Checkpoint::Get(std::string_view name, std::span<const uint64_t> shape,
                                            std::span<const std::string_view> dtypes) const {
  ASSIGN_OR_RETURN(const TensorBytes tensor, Get(name, dtypes));
  if (!std::equal(shape.begin(), shape.end(), tensor.entry->shape.begin(),
                  tensor.entry->shape.end())) {
    return absl::InvalidArgumentError(
        absl::StrCat(shards_[tensors_.find(name)->second].path, ": ", std::string(name), ": shape ",
                     ShapeText(tensor.entry->shape), ", wanted ", ShapeText(shape)));
  }
  return tensor;
}

}  // namespace switchyard
