#include "model/packed_cache.h"

#include <fcntl.h>
#include <sys/resource.h>
#include <sys/stat.h>
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

// Raised with every change of a path's packed form (a test pins its bytes), and of the files'.
constexpr int kLayout = 2;
constexpr size_t kAlignment = 64;
constexpr int kMoverNice = 19;  // whoever computes goes first

size_t Aligned(size_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

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

bool WriteAll(int fd, const void* from, size_t bytes) {
  for (const auto* at = static_cast<const char*>(from); bytes > 0;) {
    const ssize_t n = write(fd, at, bytes);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return false;
    at += n, bytes -= static_cast<size_t>(n);
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

PackedCache::~PackedCache() {
  {
    MutexLock lock(mu_);
    stop_ = true;
    changed_.NotifyAll();
  }
  if (mover_.joinable()) mover_.join();
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
  text.resize(Aligned(text.size()), ' ');
  return text;
}

std::optional<std::vector<PackedWeight>> PackedCache::Read(const std::string& name,
                                                           std::span<const PackedShape> shapes) {
  const int fd = open(PathOf(name).c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (fd < 0) {
    Note(&PackedCache::missing_, name);
    return std::nullopt;
  }
  const absl::Cleanup close_fd = [fd] { close(fd); };
  std::vector<PackedWeight> weights;
  const auto outcome = MapFile(fd, Text(name, shapes), shapes, &weights);
  Note(outcome, name);
  if (outcome != &PackedCache::read_) return std::nullopt;
  return weights;
}

PackedCache::Count PackedCache::*PackedCache::MapFile(int fd, const std::string& text,
                                                      std::span<const PackedShape> shapes,
                                                      std::vector<PackedWeight>* weights) {
  struct stat st;
  if (fstat(fd, &st) != 0 || !S_ISREG(st.st_mode)) return &PackedCache::damaged_;
  std::string found(text.size(), '\0');
  if (pread(fd, found.data(), found.size(), 0) != static_cast<ssize_t>(found.size())) {
    return &PackedCache::damaged_;
  }
  if (found != text) return &PackedCache::stale_;
  uint64_t summed = text.size();
  for (const PackedShape& s : shapes) summed += Aligned(s.bytes);
  uint64_t stored = 0;
  const uint64_t size = summed + sizeof(stored);
  if (static_cast<uint64_t>(st.st_size) != size) return &PackedCache::damaged_;
  const std::shared_ptr<PackedFile> file = PackedFile::Map(fd, size);
  if (file == nullptr) return &PackedCache::unreadable_;
  std::memcpy(&stored, file->data() + summed, sizeof(stored));
  if (stored != XXH3_64bits(file->data(), summed)) return &PackedCache::damaged_;
  const bool moves = PackedFile::Moves(size);
  std::byte* at = file->data() + text.size();
  for (const auto& [format, n, k, bytes] : shapes) {
    AlignedBuffer buffer = moves ? AlignedBuffer(file, at, bytes) : AlignedBuffer(bytes);
    if (!moves) std::memcpy(buffer.data(), at, bytes);
    weights->push_back({std::move(buffer), format, n, k});
    at += Aligned(bytes);
  }
  if (moves) {
    MutexLock lock(mu_);
    mapped_.push_back(file);
    changed_.NotifyAll();
  }
  return &PackedCache::read_;
}

void PackedCache::MoveToHugePages() {
  mover_ = std::thread([this] { MoveMapped(); });
}

void PackedCache::MoveMapped() {
  setpriority(PRIO_PROCESS, static_cast<id_t>(gettid()), kMoverNice);  // Linux: of this thread
  while (!stop_) {
    std::shared_ptr<PackedFile> file;
    {
      MutexLock lock(mu_);
      while (!stop_ && mapped_.empty()) changed_.Wait(mu_);
      if (stop_) return;
      file = mapped_.front().lock();  // unless its weights have gone
      mapped_.pop_front();
    }
    if (file == nullptr || !file->Move(stop_)) continue;
    MutexLock lock(mu_);
    bytes_moved_ += file->size();
  }
}

size_t PackedCache::bytes_moved() const {
  MutexLock lock(mu_);
  return bytes_moved_;
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
    constexpr std::byte kFill[kAlignment] = {};
    const size_t fill = Aligned(bytes.size()) - bytes.size();
    sum.Add(bytes.data(), bytes.size());
    sum.Add(kFill, fill);
    done = WriteAll(fd, bytes.data(), bytes.size()) && WriteAll(fd, kFill, fill);
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
  add("unreadable", unreadable_);
  if (missing_.times + stale_.times + damaged_.times + unreadable_.times > 0) {
    absl::StrAppend(&line, "; those were packed anew");
    if (write_error_.empty()) absl::StrAppend(&line, " and kept");
  }
  if (!write_error_.empty()) absl::StrAppend(&line, "; cannot keep more: ", write_error_);
  return line;
}

}  // namespace switchyard
