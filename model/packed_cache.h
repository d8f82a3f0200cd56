// model/packed_cache.h: packed weights on disk, for --weights-cache: the next start reads them
// instead of packing.
//
// A file for each set of weights that are packed together, a projection or an expert, so that a
// rank reads only what it hosts: FOLDER/NAME.packed is
//   text     what the bytes depend on; name, format, n, k and bytes of each weight; spaces, to a
//            multiple of 64 bytes
//   weights  one after the other, each with zeros to a multiple of 64 bytes
//   sum      xxh3-64 of all before
// A reader knows the text and every size: it compares, and parses nothing. A file that says
// something else is another model's, or of another release; it is replaced. So a folder is for one
// model, quantisation and kernel path, and never holds more than their weights.
//
// Files of a huge page and more are mapped: pages of our own, which the kernel clears, would cost a
// start more than the disk. But weights are read once per step, and the walks of small pages cost
// up to a third of that: such files move into huge pages behind the first steps
// (model/packed_file.h). Small files are copied at once. While a process starts, files may be
// replaced, and not be changed.
#pragma once

#include <atomic>
#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "common/mutex.h"
#include "kernels/gemm.h"
#include "model/packed_file.h"

namespace switchyard {

struct PackedShape {
  WeightFormat format = WeightFormat::kBfloat16;
  size_t n = 0, k = 0;
  size_t bytes = 0;  // GemmOps::PackedBytes
};

// Thread-safe. Ranks may share a folder: files are written beside and renamed.
class PackedCache {
 public:
  // `identity`: what decides the bytes besides name and shape, of one line.
  PackedCache(std::string folder, std::string identity);
  ~PackedCache();

  // The weights `name`, of `shapes`, one or more; nothing where they are not there, stale,
  // damaged or unreadable. `name` is a file's, without slashes.
  std::optional<std::vector<PackedWeight>> Read(const std::string& name,
                                                std::span<const PackedShape> shapes);
  // Keeps what Read did not have. Where it cannot, a full disk say, nothing is kept any more.
  void Write(const std::string& name, std::span<const PackedWeight> weights);

  // From now on a thread of low priority moves what was mapped, and will be, into huge pages. Once.
  void MoveToHugePages();
  size_t bytes_moved() const;  // of whole files

  // One sentence for the log: what was read and what was not.
  std::string Report() const;

 private:
  // How often something happened, and the first time.
  struct Count {
    uint64_t times = 0;
    std::string first;
    void Add(const std::string& name);
  };
  std::string PathOf(const std::string& name) const;
  std::string Text(const std::string& name, std::span<const PackedShape> shapes) const;
  void Note(Count PackedCache::*count, const std::string& name);
  // Which of the counts below an open file that should begin with `text` belongs to.
  Count PackedCache::*MapFile(int fd, const std::string& text, std::span<const PackedShape> shapes,
                              std::vector<PackedWeight>* weights);
  void MoveMapped();

  const std::string folder_, identity_;
  mutable Mutex mu_;
  Count read_ ABSL_GUARDED_BY(mu_), missing_ ABSL_GUARDED_BY(mu_), stale_ ABSL_GUARDED_BY(mu_),
      damaged_ ABSL_GUARDED_BY(mu_), unreadable_ ABSL_GUARDED_BY(mu_);
  std::string write_error_ ABSL_GUARDED_BY(mu_);  // not empty: writes no more
  CondVar changed_;
  std::atomic<bool> stop_{false};                                      // set with mu_ held
  std::deque<std::weak_ptr<PackedFile>> mapped_ ABSL_GUARDED_BY(mu_);  // to be moved
  size_t bytes_moved_ ABSL_GUARDED_BY(mu_) = 0;
  std::thread mover_;
};

}  // namespace switchyard
