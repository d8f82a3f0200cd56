// bench/ucx_put.h: ucp_put into another process's memory, one put for each block: what a transfer
// of KV blocks is in UCX's own words, without rings, fences or checksums. One transport a context,
// "posix" or "tcp". Not thread-safe.
#pragma once

#include <ucp/api/ucp.h>

#include <cstddef>
#include <memory>
#include <span>
#include <string>

#include "absl/status/statusor.h"
#include "common/net/ucx.h"

namespace switchyard {

// Memory that others may put into.
class PutTarget {
 public:
  static absl::StatusOr<std::unique_ptr<PutTarget>> Create(const std::string& transport,
                                                           size_t bytes);
  ~PutTarget();
  PutTarget(const PutTarget&) = delete;
  std::span<std::byte> bytes() const { return {data_, bytes_}; }
  // What PutSource needs: three strings.
  const std::string& address() const { return address_; }
  const std::string& rkey() const { return rkey_; }
  // Puts by tcp arrive only while their target makes progress.
  void Progress() { ucp_worker_progress(worker_); }

 private:
  PutTarget() = default;
  std::unique_ptr<UcxContext> context_;
  ucp_worker_h worker_ = nullptr;
  ucp_mem_h memory_ = nullptr;
  std::byte* data_ = nullptr;
  size_t bytes_ = 0;
  std::string address_, rkey_;
};

class PutSource {
 public:
  // `base`: where the target's memory begins in its own address space.
  static absl::StatusOr<std::unique_ptr<PutSource>> Create(const std::string& transport,
                                                           const std::string& address,
                                                           const std::string& rkey, uint64_t base);
  ~PutSource();
  PutSource(const PutSource&) = delete;
  // Starts; `from` stays until Flush.
  void Put(std::span<const std::byte> from, size_t offset);
  // Until everything has arrived.
  absl::Status Flush();
  // The target's memory here (posix only).
  absl::StatusOr<std::byte*> Map();

 private:
  PutSource() = default;
  absl::Status Wait(ucs_status_ptr_t request);

  std::unique_ptr<UcxContext> context_;
  ucp_worker_h worker_ = nullptr;
  ucp_ep_h endpoint_ = nullptr;
  ucp_rkey_h rkey_ = nullptr;
  uint64_t base_ = 0;
  size_t outstanding_ = 0;
  absl::Status error_;
};

}  // namespace switchyard
