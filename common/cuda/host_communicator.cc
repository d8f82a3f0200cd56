// The host in the place of NCCL: threads of one process that know the same id hand each other
// bytes. As pessimistic as NCCL may be: nothing is taken up before both ends have come, and who
// waits for a rank that is gone is told nothing.
#include <algorithm>
#include <atomic>
#include <cstring>
#include <map>
#include <memory>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/cuda/communicator.h"
#include "common/mutex.h"
#include "common/random_word.h"

namespace switchyard::cuda {
namespace {

using Bytes = std::vector<std::byte>;

struct Meeting {
  explicit Meeting(int ranks) : joined(ranks), sent(static_cast<size_t>(ranks) * ranks) {}
  Mutex mu;
  std::vector<bool> joined ABSL_GUARDED_BY(mu);
  // [from][to] what nobody has taken yet.
  std::vector<std::unique_ptr<Bytes>> sent ABSL_GUARDED_BY(mu);
};

// An id must lead threads of the process to one meeting, as NCCL's leads processes to one socket.
struct Meetings {
  Mutex mu;
  std::map<CommunicatorId, std::weak_ptr<Meeting>> by_id ABSL_GUARDED_BY(mu);
};
Meetings& AllMeetings() {
  static Meetings meetings;
  return meetings;
}

}  // namespace
}  // namespace switchyard::cuda

// One rank's end.
struct ncclComm {
  using Block = switchyard::cuda::Communicator::Block;
  std::shared_ptr<switchyard::cuda::Meeting> meeting;
  int rank = 0, ranks = 0;
  std::vector<Block> to, from;  // begun: what has not been taken, what has not come
  absl::Status failed;

  std::unique_ptr<switchyard::cuda::Bytes>& Sent(int source, int target)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(meeting->mu) {
    return meeting->sent[static_cast<size_t>(source) * ranks + target];
  }
};

namespace switchyard::cuda {

absl::StatusOr<CommunicatorFacts> ReadCommunicatorFacts(int) {
  // Every rank has a device of its own.
  CommunicatorFacts facts;
  const uint64_t word = RandomWord();
  std::memcpy(facts.device.data(), &word, sizeof word);
  return facts;
}

absl::StatusOr<CommunicatorId> MakeCommunicatorId() {
  CommunicatorId id = {};
  const uint64_t word = RandomWord() | 1;
  std::memcpy(id.data(), &word, sizeof word);
  return id;
}

absl::StatusOr<Communicator> Communicator::Join(const CommunicatorId& id, int rank, int ranks,
                                                int) {
  std::shared_ptr<Meeting> meeting;
  {
    Meetings& all = AllMeetings();
    MutexLock lock(all.mu);
    std::erase_if(all.by_id, [](const auto& entry) { return entry.second.expired(); });
    meeting = all.by_id[id].lock();
    if (meeting == nullptr) meeting = std::make_shared<Meeting>(ranks);
    all.by_id[id] = meeting;
  }
  {
    MutexLock lock(meeting->mu);
    if (meeting->joined.size() != static_cast<size_t>(ranks) || rank < 0 || rank >= ranks ||
        meeting->joined[rank]) {
      return absl::UnavailableError(absl::StrCat("rank ", rank, " of ", ranks,
                                                 " of a communicator of ", meeting->joined.size(),
                                                 " cannot join"));
    }
    meeting->joined[rank] = true;
  }
  Communicator communicator;
  communicator.comm_ = new ncclComm{std::move(meeting), rank, ranks, {}, {}, {}};
  return communicator;
}

Communicator::~Communicator() { delete comm_; }

absl::Status Communicator::Exchange(std::span<const Block> to, std::span<const Block> from,
                                    const OwnedStream&) {
  comm_->to.assign(to.begin(), to.end());
  comm_->from.assign(from.begin(), from.end());
  MutexLock lock(comm_->meeting->mu);
  for (const Block& b : to) {
    comm_->Sent(comm_->rank, b.rank) = std::make_unique<Bytes>(b.data, b.data + b.bytes);
  }
  return absl::OkStatus();
}

absl::StatusOr<bool> Communicator::Ready() {
  if (!comm_->failed.ok()) return comm_->failed;
  MutexLock lock(comm_->meeting->mu);
  const std::vector<bool>& joined = comm_->meeting->joined;
  std::erase_if(comm_->from, [&](const Block& b) ABSL_NO_THREAD_SAFETY_ANALYSIS {
    std::unique_ptr<Bytes>& bytes = comm_->Sent(b.rank, comm_->rank);
    if (bytes == nullptr) return false;
    if (bytes->size() != b.bytes) {
      comm_->failed = absl::UnavailableError(
          absl::StrCat("rank ", b.rank, " sends ", bytes->size(), " bytes, wanted are ", b.bytes));
      return false;
    }
    std::memcpy(b.data, bytes->data(), b.bytes);
    bytes.reset();
    return true;
  });
  std::erase_if(comm_->to, [&](const Block& b) ABSL_NO_THREAD_SAFETY_ANALYSIS {
    return comm_->Sent(comm_->rank, b.rank) == nullptr;
  });
  if (!comm_->failed.ok()) return comm_->failed;
  return comm_->to.empty() && comm_->from.empty() &&
         std::find(joined.begin(), joined.end(), false) == joined.end();
}

}  // namespace switchyard::cuda
