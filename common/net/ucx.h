// common/net/ucx.h: UCX 1.13 handles as values that clean up after themselves. A context has one
// transport, so that the lane is certain; "tcp" binds loopback unless told otherwise.
//
// Threads: a worker, its endpoints and its memory belong to one thread at a time (they may be made
// on another one first). Callbacks run inside Progress(), or inside Send() if it completes at once;
// they must not destroy endpoints: note it and do so after Progress() has returned.
//
// Waiting without spinning:
//   while (worker->Progress()) {}
//   if (*worker->Arm()) poll(worker->event_fd(), …);   // false: something came meanwhile
// The posix transport loses wake-ups when its FIFO of 64 is full: never sleep on it for longer than
// 1 ms while something is outstanding. TCP's are reliable.
#pragma once

#include <ucp/api/ucp.h>

#include <array>
#include <cstddef>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace switchyard {

// kUnavailable: the peer or the transport is gone; kResourceExhausted: memory; else kInternal.
absl::Status UcxStatus(ucs_status_t status, const std::string& what);

struct UcxOptions {
  std::string transport = "tcp";   // the context's only one: "tcp" or "posix"
  std::string net_devices = "lo";  // tcp: interfaces that it binds and dials, comma separated
};

class UcxContext {
 public:
  // kUnavailable if this machine has no such transport or device.
  static absl::StatusOr<std::unique_ptr<UcxContext>> Create(const UcxOptions& options);
  ~UcxContext();
  UcxContext(const UcxContext&) = delete;
  UcxContext& operator=(const UcxContext&) = delete;
  ucp_context_h get() const { return context_; }
  const UcxOptions& options() const { return options_; }

 private:
  UcxContext(ucp_context_h context, UcxOptions options)
      : context_(context), options_(std::move(options)) {}
  ucp_context_h context_;
  UcxOptions options_;
};

// Views are valid during the call only.
using UcxAmHandler =
    std::function<void(std::span<const std::byte> header, std::span<const std::byte> payload)>;

class UcxWorker {
 public:
  // `context` must outlive the worker.
  static absl::StatusOr<std::unique_ptr<UcxWorker>> Create(UcxContext* context);
  // Waits up to 2 s for endpoints that are still closing. All UcxEndpoints must be gone.
  ~UcxWorker();
  UcxWorker(const UcxWorker&) = delete;
  UcxWorker& operator=(const UcxWorker&) = delete;

  // At most kAmIds kinds of active messages; one without a handler is dropped. Eager only: a
  // rendezvous offer is refused. UCX trusts whoever reaches its port: keep it on a network of ours.
  static constexpr size_t kAmIds = 8;
  absl::Status SetAmHandler(unsigned id, UcxAmHandler handler);
  // Runs callbacks. True if anything happened: call again before sleeping.
  bool Progress();
  // True: event_fd() will become readable at the next event. False: call Progress() first.
  absl::StatusOr<bool> Arm();
  int event_fd() const { return event_fd_; }
  // What a peer needs to open an endpoint: opaque, about 100 bytes, sealed with a checksum.
  const std::string& address() const { return address_; }
  // Endpoints whose close has begun and not ended.
  size_t closing() const { return closing_.size(); }
  const UcxContext& context() const { return *context_; }

 private:
  friend class UcxEndpoint;
  struct Closing {
    void* request;
    std::unique_ptr<std::function<void(absl::Status)>> on_error;  // UCX may still call it
  };
  explicit UcxWorker(UcxContext* context) : context_(context) {}
  void Reap();
  static ucs_status_t OnMessage(void* arg, const void* header, size_t header_bytes, void* data,
                                size_t bytes, const ucp_am_recv_param_t* param);

  UcxContext* const context_;
  ucp_worker_h worker_ = nullptr;
  int event_fd_ = -1;
  std::string address_;
  std::array<UcxAmHandler, kAmIds> handlers_;
  std::vector<Closing> closing_;
};

// A connection to one worker, with error handling: when the peer dies (TCP: a few ms; posix: the
// keepalive of 1 s), `on_error` is called once. A stopped peer is never noticed: use deadlines.
class UcxEndpoint {
 public:
  using OnError = std::function<void(absl::Status)>;
  // `address` is a UcxWorker::address() of the same transport. kInvalidArgument if it is damaged.
  // Connecting goes on in the background: an absent peer is an error later.
  static absl::StatusOr<std::unique_ptr<UcxEndpoint>> Create(UcxWorker* worker,
                                                             const std::string& address,
                                                             OnError on_error);
  // Close(false) unless closed.
  ~UcxEndpoint();
  UcxEndpoint(const UcxEndpoint&) = delete;
  UcxEndpoint& operator=(const UcxEndpoint&) = delete;

  // Sends an active message, eagerly. `header` (up to kHeaderBytesMax) is copied; `payload` must
  // stay until done(), which is called exactly once: OK means only that the payload may be reused.
  static constexpr size_t kHeaderBytesMax = 128;
  void Send(unsigned id, std::span<const std::byte> header, std::span<const std::byte> payload,
            std::function<void(absl::Status)> done);
  // Starts closing and returns. flush: what was sent goes out first; else sends in flight end with
  // an error. Their callbacks come from the worker's Progress(). on_error is not called any more.
  void Close(bool flush);
  // The transport and device of each lane, as UCX chose them: "tcp/lo.0". For logs and tests.
  std::string DescribeLanes() const;

 private:
  friend class UcxMapping;
  explicit UcxEndpoint(UcxWorker* worker) : worker_(worker) {}
  UcxWorker* const worker_;
  ucp_ep_h endpoint_ = nullptr;
  std::unique_ptr<OnError> on_error_;
};

// Memory that UCX allocated, so that a peer on this machine can map it. Each is an unnamed kernel
// object of its own (UCX's default, POSIX_USE_PROC_LINK: nothing appears in /dev/shm, nothing can
// leak after a SIGKILL): once unmapped here its pages never become anyone else's while a peer still
// maps them.
class UcxMemory {
 public:
  // `context` must outlive it. Zeroed, page-aligned, populated (Linux 5.14 or later): a full
  // /dev/shm is kResourceExhausted here and not a SIGBUS later.
  static absl::StatusOr<std::unique_ptr<UcxMemory>> Create(UcxContext* context, size_t bytes);
  ~UcxMemory();
  UcxMemory(const UcxMemory&) = delete;
  UcxMemory& operator=(const UcxMemory&) = delete;
  std::span<std::byte> bytes() const { return {data_, bytes_}; }
  // What UcxMapping needs besides the address: opaque, sealed.
  const std::string& rkey() const { return rkey_; }

 private:
  explicit UcxMemory(UcxContext* context) : context_(context) {}
  UcxContext* const context_;
  ucp_mem_h memory_ = nullptr;
  std::byte* data_ = nullptr;
  size_t bytes_ = 0;
  std::string rkey_;
};

// A peer's UcxMemory in our address space. The endpoint must be of a posix context and outlive it.
class UcxMapping {
 public:
  // kUnavailable if it cannot be mapped from here. Whether the peer's memory really has `bytes` is
  // not checked by UCX: take the size only from the peer that owns it.
  static absl::StatusOr<std::unique_ptr<UcxMapping>> Create(UcxEndpoint* endpoint,
                                                            const std::string& rkey,
                                                            uint64_t address, size_t bytes);
  ~UcxMapping();
  UcxMapping(const UcxMapping&) = delete;
  UcxMapping& operator=(const UcxMapping&) = delete;
  std::span<std::byte> bytes() const { return bytes_; }

 private:
  UcxMapping() = default;
  ucp_rkey_h rkey_ = nullptr;
  std::span<std::byte> bytes_;
};

}  // namespace switchyard
