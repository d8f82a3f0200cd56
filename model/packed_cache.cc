#include "model/packed_cache.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>
#include <xxhash.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <memory>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "common/check.h"

namespace switchyard {
namespace {

// Raised with every change of a path's packed form (a test pins its bytes).
constexpr int kLayout = 1;
constexpr size_t kAlignment = 64;
// Read at once: from the page cache so much as stays in a near cache while it is copied on, from
// the disk so much as lets it work at its full rate.
constexpr size_t kNearStretch = 1 << 18, kDiskStretch = 4 << 20;

class Sum {
 public:
  Sum() : state_(XXH3_createState()) {
    SY_CHECK(state_ != nullptr && XXH3_64bits_reset(state_.get()) == XXH_OK);
  }
  void Add(const void* data, size_t bytes) { XXH3_64bits_update(state_.get(), data, bytes); }
  uint64_t Value() const { return XXH3_64bits_digest(state_.get()); }

 private:
  struct Free {
    void operator()(XXH3_state_t* s) const { XXH3_freeState(s); }
  };
  std::unique_ptr<XXH3_state_t, Free> state_;
};

// A file from its beginning, in turn. What the page cache has is copied from there; else the disk
// is read past it: weights that lie in our own memory need no second copy of them in the kernel's,
// and to find pages for that one takes longer than the disk does.
class FileReader {
 public:
  // `stretch`: kDiskStretch bytes; so large a buffer is aligned as O_DIRECT wants it.
  FileReader(int fd, const AlignedBuffer& stretch) : fd_(fd), stretch_(stretch) {
    std::byte first;
    const iovec probe{&first, 1};
    direct_ = preadv2(fd, &probe, 1, 0, RWF_NOWAIT) < 0 && errno == EAGAIN &&
              fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_DIRECT) == 0;
  }
  // Fails at the end of the file too.
  bool Read(void* to, size_t bytes) {
    for (auto* at = static_cast<std::byte*>(to); bytes > 0;) {
      if (begin_ == end_ && !Fill()) return false;
      const size_t count = std::min(bytes, end_ - begin_);
      std::memcpy(at, stretch_.data() + begin_, count);
      begin_ += count, at += count, bytes -= count;
    }
    return true;
  }

 private:
  bool Fill() {
    for (;;) {
      const ssize_t n = pread(fd_, stretch_.data(), direct_ ? kDiskStretch : kNearStretch, offset_);
      if (n > 0) {
        begin_ = 0, end_ = static_cast<size_t>(n), offset_ += n;
        return true;
      }
      if (n < 0 && errno == EINTR) continue;
      // A file system may know the flag and refuse such reads, or those behind a short one.
      if (n == 0 || !direct_ || errno != EINVAL) return false;
      direct_ = false;
      if (fcntl(fd_, F_SETFL, fcntl(fd_, F_GETFL) & ~O_DIRECT) != 0) return false;
    }
  }

  const int fd_;
  const AlignedBuffer& stretch_;
  bool direct_ = false;
  off_t offset_ = 0;
  size_t begin_ = 0, end_ = 0;  // of stretch_: read, and not yet taken
};

bool WriteAll(int fd, const void* from, size_t bytes) {
  for (const auto* at = static_cast<const char*>(from); bytes > 0;) {
    const ssize_t n = write(fd, at, bytes);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return false;
    at += n, bytes -= static_cast<size_t>(n);
  }
  return true;
}

bool ReadAndSum(FileReader& file, std::byte* to, size_t bytes, Sum& sum) {
  for (size_t at = 0; at < bytes; at += kNearStretch) {
    const size_t count = std::min(kNearStretch, bytes - at);
    if (!file.Read(to + at, count)) return false;
    sum.Add(to + at, count);
  }
  return true;
}

// Unfinished files of processes that were killed: nobody takes an hour for one.
void RemoveAbandoned(const std::string& folder) {
  namespace fs = std::filesystem;
  std::error_code error;  // what cannot be removed takes room, and does no other harm
  const auto old = fs::file_time_type::clock::now() - std::chrono::hours(1);
  for (fs::directory_iterator file(folder, error), end; !error && file != end;
       file.increment(error)) {
    std::error_code of_file;
    const std::string name = file->path().filename().string();
    const size_t suffix = name.rfind(".packed.");  // and six characters of mkstemp's
    const bool unfinished = suffix != name.npos && name.size() == suffix + strlen(".packed.XXXXXX");
    if (unfinished && file->last_write_time(of_file) < old) fs::remove(file->path(), of_file);
  }
}

}  // namespace

PackedCache::PackedCache(std::string folder, std::string identity)
    : folder_(std::move(folder)), identity_(std::move(identity)) {
  RemoveAbandoned(folder_);
}

void PackedCache::Count::Add(const std::string& name) {
  if (times++ == 0) first = name;
}

void PackedCache::Note(Count PackedCache::*count, const std::string& name) {
  MutexLock lock(mu_);
  (this->*count).Add(name);
}

std::string PackedCache::PathOf(const std::string& name) const {
  return absl::StrCat(folder_, "/", name, ".packed");
}

std::string PackedCache::Text(const std::string& name, std::span<const PackedShape> shapes) const {
  std::string text =
      absl::StrCat("switchyard packed weights, layout ", kLayout, "\n", identity_, "\n", name);
  for (const PackedShape& s : shapes) {
    absl::StrAppend(&text, "\n", std::string(switchyard::Name(s.format)), " ", s.n, " ", s.k, " ",
                    s.bytes);
  }
  text.resize((text.size() + kAlignment - 1) / kAlignment * kAlignment, ' ');
  return text;
}

AlignedBuffer PackedCache::TakeStretch() {
  {
    MutexLock lock(mu_);
    if (!stretches_.empty()) {
      AlignedBuffer taken = std::move(stretches_.back());
      stretches_.pop_back();
      return taken;
    }
  }
  return AlignedBuffer(kDiskStretch);
}

void PackedCache::GiveBack(AlignedBuffer stretch) {
  MutexLock lock(mu_);
  stretches_.push_back(std::move(stretch));
}

void PackedCache::FreeStretches() {
  MutexLock lock(mu_);
  stretches_.clear();
}

std::optional<std::vector<PackedWeight>> PackedCache::Read(const std::string& name,
                                                           std::span<const PackedShape> shapes) {
  const int fd = open(PathOf(name).c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (fd < 0) {
    Note(&PackedCache::missing_, name);
    return std::nullopt;
  }
  const absl::Cleanup close_fd = [fd] { close(fd); };
  AlignedBuffer stretch = TakeStretch();
  std::vector<PackedWeight> weights;
  const auto outcome = ReadFile(fd, Text(name, shapes), shapes, stretch, &weights);
  GiveBack(std::move(stretch));
  Note(outcome, name);
  if (outcome != &PackedCache::read_) return std::nullopt;
  return weights;
}

PackedCache::Count PackedCache::*PackedCache::ReadFile(int fd, const std::string& text,
                                                       std::span<const PackedShape> shapes,
                                                       const AlignedBuffer& stretch,
                                                       std::vector<PackedWeight>* weights) {
  struct stat st;
  if (fstat(fd, &st) != 0 || !S_ISREG(st.st_mode)) return &PackedCache::damaged_;
  FileReader file(fd, stretch);
  std::string found(text.size(), '\0');
  if (!file.Read(found.data(), found.size())) return &PackedCache::damaged_;
  if (found != text) return &PackedCache::stale_;
  uint64_t size = text.size() + sizeof(uint64_t);
  for (const PackedShape& s : shapes) size += s.bytes;
  if (static_cast<uint64_t>(st.st_size) != size) return &PackedCache::damaged_;
  Sum sum;
  sum.Add(found.data(), found.size());
  for (const auto& [format, n, k, bytes] : shapes) {
    weights->push_back({AlignedBuffer(bytes), format, n, k});
    if (!ReadAndSum(file, weights->back().bytes.data(), bytes, sum)) return &PackedCache::damaged_;
  }
  uint64_t stored = 0;
  const bool whole = file.Read(&stored, sizeof(stored)) && stored == sum.Value();
  return whole ? &PackedCache::read_ : &PackedCache::damaged_;
}

void PackedCache::Write(const std::string& name, std::span<const PackedWeight> weights) {
  {
    MutexLock lock(mu_);
    if (!write_error_.empty()) return;
  }
  std::vector<PackedShape> shapes;
  for (const PackedWeight& w : weights) shapes.push_back({w.format, w.n, w.k, w.bytes.size()});
  const std::string text = Text(name, shapes), path = PathOf(name);
  std::string temporary = path + ".XXXXXX";
  const int fd = mkostemp(temporary.data(), O_CLOEXEC);
  bool done = fd >= 0 && fchmod(fd, 0644) == 0 && WriteAll(fd, text.data(), text.size());
  Sum sum;
  sum.Add(text.data(), text.size());
  for (size_t i = 0; done && i < weights.size(); ++i) {
    const AlignedBuffer& bytes = weights[i].bytes;
    sum.Add(bytes.data(), bytes.size());
    done = WriteAll(fd, bytes.data(), bytes.size());
  }
  const uint64_t value = sum.Value();
  done = done && WriteAll(fd, &value, sizeof(value));
  int error = done ? 0 : errno;
  if (fd >= 0 && close(fd) != 0 && done) done = false, error = errno;
  if (done && rename(temporary.c_str(), path.c_str()) != 0) done = false, error = errno;
  if (done) return;
  if (fd >= 0) unlink(temporary.c_str());
  MutexLock lock(mu_);
  write_error_ = absl::StrCat(path, ": ", std::strerror(error));
}

std::string PackedCache::Report() const {
  MutexLock lock(mu_);
  std::string line = absl::StrCat("weights cache ", folder_, ": ", read_.times, " files read");
  const auto add = [&](const char* what, const Count& count) {
    if (count.times == 0) return;
    absl::StrAppend(&line, ", ", count.times, " ", what, " (the first: ", count.first, ")");
  };
  add("missing", missing_);
  add("of another model or release", stale_);
  add("damaged", damaged_);
  if (missing_.times + stale_.times + damaged_.times > 0) {
    absl::StrAppend(&line, "; those were packed anew");
    if (write_error_.empty()) absl::StrAppend(&line, " and kept");
  }
  if (!write_error_.empty()) absl::StrAppend(&line, "; cannot keep more: ", write_error_);
  return line;
}

}  // namespace switchyard
