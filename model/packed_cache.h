// model/packed_cache.h: packed weights on disk, for --weights-cache: the next start reads them
// instead of packing.
//
// A file for each set of weights that are packed together, a projection or an expert, so that a
// rank reads only what it hosts: FOLDER/NAME.packed is
//   text     what the bytes depend on; name, format, n, k and bytes of each weight; spaces, to a
//            multiple of 64 bytes
//   weights  one after the other
//   sum      xxh3-64 of all before
// A reader knows the text and every size: it compares, and parses nothing. A file that says
// something else is another model's, or of another release; it is replaced. So a folder is for one
// model, quantisation and kernel path, and never holds more than their weights. Files are read
// into memory of huge pages, not mapped: weights are read once per step, and the page walks of a
// mapping would cost more than its sharing saves. They are read past the page cache, unless they
// are in it.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "common/mutex.h"
#include "kernels/gemm.h"

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

  // The weights `name`, of `shapes`, one or more; nothing where they are not there, stale or
  // damaged. `name` is a file's, without slashes.
  std::optional<std::vector<PackedWeight>> Read(const std::string& name,
                                                std::span<const PackedShape> shapes);
  // Keeps what Read did not have. Where it cannot, a full disk say, nothing is kept any more.
  void Write(const std::string& name, std::span<const PackedWeight> weights);

  // Frees what many reads at once have left. Reads after it take memory of their own again.
  void FreeStretches();

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
  static Count PackedCache::*ReadFile(int fd, const std::string& text,
                                      std::span<const PackedShape> shapes,
                                      const AlignedBuffer& stretch,
                                      std::vector<PackedWeight>* weights);
  // Room to read into, one for each read under way.
  AlignedBuffer TakeStretch();
  void GiveBack(AlignedBuffer stretch);

  const std::string folder_, identity_;
  mutable Mutex mu_;
  Count read_ ABSL_GUARDED_BY(mu_), missing_ ABSL_GUARDED_BY(mu_), stale_ ABSL_GUARDED_BY(mu_),
      damaged_ ABSL_GUARDED_BY(mu_);
  std::vector<AlignedBuffer> stretches_ ABSL_GUARDED_BY(mu_);
  std::string write_error_ ABSL_GUARDED_BY(mu_);  // not empty: writes no more
};

}  // namespace switchyard
