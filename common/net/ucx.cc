#include "common/net/ucx.h"

#include <sys/mman.h>

#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string_view>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/check.h"
#include "common/status_macros.h"
#include "xxhash.h"

namespace switchyard {
namespace {

// Addresses and keys go through other programs on their way. UCX reads them without bounds checks,
// so they carry a checksum and a limit; real ones are about 100 bytes.
constexpr size_t kBlobBytesMax = 4096;

std::string Seal(const void* data, size_t bytes) {
  uint64_t sum = XXH3_64bits(data, bytes);
  std::string out(sizeof sum + bytes, '\0');
  std::memcpy(out.data(), &sum, sizeof sum);
  std::memcpy(out.data() + sizeof sum, data, bytes);
  return out;
}

// The blob without its seal: a view into `sealed`.
absl::StatusOr<std::string_view> Unseal(std::string_view sealed, const char* field) {
  uint64_t sum;
  if (sealed.size() <= sizeof sum || sealed.size() > kBlobBytesMax) {
    return absl::InvalidArgumentError(
        absl::StrCat(field, ": ", sealed.size(), " bytes, must be 9 to ", kBlobBytesMax));
  }
  std::memcpy(&sum, sealed.data(), sizeof sum);
  std::string_view blob = sealed.substr(sizeof sum);
  if (XXH3_64bits(blob.data(), blob.size()) != sum) {
    return absl::InvalidArgumentError(absl::StrCat(field, ": damaged (checksum)"));
  }
  return blob;
}

struct SendOp {
  std::array<std::byte, UcxEndpoint::kHeaderBytesMax> header;  // UCX reads it until completion
  std::function<void(absl::Status)> done;
};

void FinishSend(SendOp* op, ucs_status_t status) {
  std::unique_ptr<SendOp> owned(op);
  owned->done(status == UCS_OK ? absl::OkStatus() : UcxStatus(status, "send"));
}

}  // namespace

absl::Status UcxStatus(ucs_status_t status, const std::string& what) {
  if (status == UCS_OK) return absl::OkStatus();
  std::string text = absl::StrCat("UCX: ", what, ": ", ucs_status_string(status));
  switch (status) {
    case UCS_ERR_CONNECTION_RESET:
    case UCS_ERR_ENDPOINT_TIMEOUT:
    case UCS_ERR_UNREACHABLE:
    case UCS_ERR_NOT_CONNECTED:
    case UCS_ERR_REJECTED:
    case UCS_ERR_CANCELED:
    case UCS_ERR_NO_DEVICE:
    case UCS_ERR_UNSUPPORTED:
    case UCS_ERR_SHMEM_SEGMENT:
      return absl::UnavailableError(text);
    case UCS_ERR_NO_MEMORY:
    case UCS_ERR_NO_RESOURCE:
      return absl::ResourceExhaustedError(text);
    case UCS_ERR_INVALID_PARAM:
    case UCS_ERR_INVALID_ADDR:
      return absl::InvalidArgumentError(text);
    default:
      return absl::InternalError(text);
  }
}

absl::StatusOr<std::unique_ptr<UcxContext>> UcxContext::Create(const UcxOptions& options) {
  if (options.transport != "tcp" && options.transport != "posix") {
    return absl::InvalidArgumentError(
        absl::StrCat("transport is \"", options.transport, "\", must be \"tcp\" or \"posix\""));
  }
  ucp_config_t* raw = nullptr;
  RETURN_IF_ERROR(UcxStatus(ucp_config_read(nullptr, nullptr, &raw), "ucp_config_read"));
  std::unique_ptr<ucp_config_t, decltype(&ucp_config_release)> config(raw, &ucp_config_release);
  // A rendezvous writes into a posted buffer and cannot be cancelled: eager only.
  std::vector<std::pair<const char*, std::string>> settings = {
      {"TLS", options.transport}, {"RNDV_THRESH", "inf"}, {"KEEPALIVE_INTERVAL", "1s"}};
  if (options.transport == "tcp") {
    settings.push_back({"NET_DEVICES", options.net_devices});
  } else {
    // Without it an endpoint with error handling silently loses its posix lanes.
    settings.push_back({"MM_ERROR_HANDLING", "y"});
  }
  for (const auto& [name, value] : settings) {
    RETURN_IF_ERROR(UcxStatus(ucp_config_modify(config.get(), name, value.c_str()),
                              absl::StrCat(name, "=", value)));
  }
  ucp_params_t params{};
  params.field_mask = UCP_PARAM_FIELD_FEATURES;
  params.features = UCP_FEATURE_AM | UCP_FEATURE_WAKEUP | UCP_FEATURE_RMA;
  ucp_context_h context = nullptr;
  if (ucs_status_t s = ucp_init(&params, config.get(), &context); s != UCS_OK) {
    return absl::UnavailableError(absl::StrCat("UCX has no ", options.transport,
                                               " lane here (devices \"", options.net_devices,
                                               "\"): ", ucs_status_string(s)));
  }
  return std::unique_ptr<UcxContext>(new UcxContext(context, options));
}

UcxContext::~UcxContext() { ucp_cleanup(context_); }

absl::StatusOr<std::unique_ptr<UcxWorker>> UcxWorker::Create(UcxContext* context) {
  std::unique_ptr<UcxWorker> worker(new UcxWorker(context));
  ucp_worker_params_t params{};
  params.field_mask = UCP_WORKER_PARAM_FIELD_THREAD_MODE | UCP_WORKER_PARAM_FIELD_EVENTS;
  params.thread_mode = UCS_THREAD_MODE_SERIALIZED;
  params.events = UCP_WAKEUP_RX | UCP_WAKEUP_TX | UCP_WAKEUP_RMA;
  RETURN_IF_ERROR(
      UcxStatus(ucp_worker_create(context->get(), &params, &worker->worker_), "ucp_worker_create"));
  RETURN_IF_ERROR(
      UcxStatus(ucp_worker_get_efd(worker->worker_, &worker->event_fd_), "ucp_worker_get_efd"));
  ucp_address_t* address = nullptr;
  size_t bytes = 0;
  RETURN_IF_ERROR(UcxStatus(ucp_worker_get_address(worker->worker_, &address, &bytes),
                            "ucp_worker_get_address"));
  worker->address_ = Seal(address, bytes);
  ucp_worker_release_address(worker->worker_, address);
  // UCX 1.13 looks a message's handler up without a bounds check: an id without one would crash us.
  for (unsigned id = 0; id < kAmIds; ++id) {
    RETURN_IF_ERROR(worker->SetAmHandler(id, nullptr));
  }
  return worker;
}

UcxWorker::~UcxWorker() {
  if (worker_ == nullptr) return;
  handlers_.fill(nullptr);  // whoever they speak to may be gone already
  const absl::Time deadline = absl::Now() + absl::Seconds(2);
  while (!closing_.empty() && absl::Now() < deadline) {
    if (!Progress()) absl::SleepFor(absl::Microseconds(50));
  }
  for (Closing& c : closing_) ucp_request_free(c.request);
  ucp_worker_destroy(worker_);
}

absl::Status UcxWorker::SetAmHandler(unsigned id, UcxAmHandler handler) {
  SY_CHECK(id < kAmIds);
  handlers_[id] = std::move(handler);
  ucp_am_handler_param_t param{};
  param.field_mask = UCP_AM_HANDLER_PARAM_FIELD_ID | UCP_AM_HANDLER_PARAM_FIELD_CB |
                     UCP_AM_HANDLER_PARAM_FIELD_ARG;
  param.id = id;
  param.cb = &UcxWorker::OnMessage;
  param.arg = &handlers_[id];
  return UcxStatus(ucp_worker_set_am_recv_handler(worker_, &param),
                   "ucp_worker_set_am_recv_handler");
}

ucs_status_t UcxWorker::OnMessage(void* arg, const void* header, size_t header_bytes, void* data,
                                  size_t bytes, const ucp_am_recv_param_t* param) {
  if (param->recv_attr & UCP_AM_RECV_ATTR_FLAG_RNDV) return UCS_ERR_REJECTED;
  auto& handler = *static_cast<UcxAmHandler*>(arg);
  if (!handler) return UCS_OK;
  handler({static_cast<const std::byte*>(header), header_bytes},
          {static_cast<const std::byte*>(data), bytes});
  return UCS_OK;
}

bool UcxWorker::Progress() {
  bool happened = ucp_worker_progress(worker_) != 0;
  if (!closing_.empty()) Reap();
  return happened;
}

void UcxWorker::Reap() {
  std::erase_if(closing_, [](Closing& c) {
    if (ucp_request_check_status(c.request) == UCS_INPROGRESS) return false;
    ucp_request_free(c.request);
    return true;
  });
}

absl::StatusOr<bool> UcxWorker::Arm() {
  ucs_status_t status = ucp_worker_arm(worker_);
  if (status == UCS_ERR_BUSY) return false;
  RETURN_IF_ERROR(UcxStatus(status, "ucp_worker_arm"));
  return true;
}

absl::StatusOr<std::unique_ptr<UcxEndpoint>> UcxEndpoint::Create(UcxWorker* worker,
                                                                 const std::string& address,
                                                                 OnError on_error) {
  ASSIGN_OR_RETURN(std::string_view blob, Unseal(address, "ucx_address"));
  std::unique_ptr<UcxEndpoint> endpoint(new UcxEndpoint(worker));
  endpoint->on_error_ = std::make_unique<OnError>(std::move(on_error));
  // UCX wants the blob aligned for its integers.
  std::vector<uint64_t> aligned((blob.size() + 7) / 8);
  std::memcpy(aligned.data(), blob.data(), blob.size());
  ucp_ep_params_t params{};
  params.field_mask = UCP_EP_PARAM_FIELD_REMOTE_ADDRESS | UCP_EP_PARAM_FIELD_ERR_HANDLING_MODE |
                      UCP_EP_PARAM_FIELD_ERR_HANDLER;
  params.address = reinterpret_cast<const ucp_address_t*>(aligned.data());
  params.err_mode = UCP_ERR_HANDLING_MODE_PEER;
  params.err_handler.arg = endpoint->on_error_.get();
  params.err_handler.cb = [](void* arg, ucp_ep_h, ucs_status_t status) {
    // Once: the function is moved out before the call.
    OnError call = std::exchange(*static_cast<OnError*>(arg), nullptr);
    if (call) call(UcxStatus(status, "peer lost"));
  };
  RETURN_IF_ERROR(
      UcxStatus(ucp_ep_create(worker->worker_, &params, &endpoint->endpoint_), "ucp_ep_create"));
  return endpoint;
}

UcxEndpoint::~UcxEndpoint() { Close(false); }

void UcxEndpoint::Close(bool flush) {
  if (endpoint_ == nullptr) return;
  *on_error_ = nullptr;
  ucp_request_param_t param{};
  if (!flush) {
    param.op_attr_mask = UCP_OP_ATTR_FIELD_FLAGS;
    param.flags = UCP_EP_CLOSE_FLAG_FORCE;
  }
  void* request = ucp_ep_close_nbx(std::exchange(endpoint_, nullptr), &param);
  // An error here means that the endpoint was already in an error state; it is released anyway.
  if (UCS_PTR_IS_PTR(request)) worker_->closing_.push_back({request, std::move(on_error_)});
}

void UcxEndpoint::Send(unsigned id, std::span<const std::byte> header,
                       std::span<const std::byte> payload, std::function<void(absl::Status)> done) {
  SY_CHECK(header.size() <= kHeaderBytesMax && id < UcxWorker::kAmIds);
  if (endpoint_ == nullptr) return done(absl::UnavailableError("the endpoint is closed"));
  auto op = std::make_unique<SendOp>();
  std::memcpy(op->header.data(), header.data(), header.size());
  op->done = std::move(done);
  ucp_request_param_t param{};
  param.op_attr_mask =
      UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA | UCP_OP_ATTR_FIELD_FLAGS;
  param.flags = UCP_AM_SEND_FLAG_EAGER;
  param.user_data = op.get();
  param.cb.send = [](void* request, ucs_status_t status, void* arg) {
    ucp_request_free(request);
    FinishSend(static_cast<SendOp*>(arg), status);
  };
  void* request = ucp_am_send_nbx(endpoint_, id, op->header.data(), header.size(), payload.data(),
                                  payload.size(), &param);
  if (UCS_PTR_IS_PTR(request)) {
    (void)op.release();  // the callback owns it
  } else {
    FinishSend(op.release(), UCS_PTR_STATUS(request));
  }
}

std::string UcxEndpoint::DescribeLanes() const {
  if (endpoint_ == nullptr) return "closed";
  char* text = nullptr;
  size_t bytes = 0;
  FILE* stream = open_memstream(&text, &bytes);
  if (stream == nullptr) return "unknown";
  ucp_ep_print_info(endpoint_, stream);
  std::fclose(stream);
  std::unique_ptr<char, decltype(&std::free)> owned(text, &std::free);
  // Lines of interest: "lane[0]:  0:tcp/lo.0 md[0] -> …". ucp_ep_query of 1.13 cannot tell.
  std::string out;
  std::string_view rest(text, bytes);
  for (size_t at; (at = rest.find("lane[")) != rest.npos;) {
    rest.remove_prefix(at);
    size_t colon = rest.find(':', rest.find(':') + 1);
    if (colon == rest.npos) break;
    rest.remove_prefix(colon + 1);
    absl::StrAppend(&out, out.empty() ? "" : ",", std::string(rest.substr(0, rest.find(' '))));
  }
  return out.empty() ? "none" : out;
}

absl::StatusOr<std::unique_ptr<UcxMemory>> UcxMemory::Create(UcxContext* context, size_t bytes) {
  std::unique_ptr<UcxMemory> memory(new UcxMemory(context));
  ucp_mem_map_params_t params{};
  params.field_mask = UCP_MEM_MAP_PARAM_FIELD_LENGTH | UCP_MEM_MAP_PARAM_FIELD_FLAGS;
  params.length = bytes;
  params.flags = UCP_MEM_MAP_ALLOCATE;
  RETURN_IF_ERROR(UcxStatus(ucp_mem_map(context->get(), &params, &memory->memory_),
                            absl::StrCat("ucp_mem_map of ", bytes, " bytes")));
  ucp_mem_attr_t attr{};
  attr.field_mask = UCP_MEM_ATTR_FIELD_ADDRESS | UCP_MEM_ATTR_FIELD_LENGTH;
  RETURN_IF_ERROR(UcxStatus(ucp_mem_query(memory->memory_, &attr), "ucp_mem_query"));
  SY_CHECK(attr.length >= bytes);
  memory->data_ = static_cast<std::byte*>(attr.address);
  memory->bytes_ = bytes;
  if (madvise(memory->data_, bytes, MADV_POPULATE_WRITE) != 0 && errno != EINVAL) {
    return absl::ResourceExhaustedError(
        absl::StrCat("shared memory of ", bytes, " bytes: ", std::strerror(errno)));
  }
  void* rkey = nullptr;
  size_t rkey_bytes = 0;
  RETURN_IF_ERROR(UcxStatus(ucp_rkey_pack(context->get(), memory->memory_, &rkey, &rkey_bytes),
                            "ucp_rkey_pack"));
  memory->rkey_ = Seal(rkey, rkey_bytes);
  ucp_rkey_buffer_release(rkey);
  return memory;
}

UcxMemory::~UcxMemory() {
  if (memory_ != nullptr) (void)ucp_mem_unmap(context_->get(), memory_);
}

absl::StatusOr<std::unique_ptr<UcxMapping>> UcxMapping::Create(UcxEndpoint* endpoint,
                                                               const std::string& rkey,
                                                               uint64_t address, size_t bytes) {
  ASSIGN_OR_RETURN(std::string_view blob, Unseal(rkey, "rkey"));
  std::vector<uint64_t> aligned((blob.size() + 7) / 8);
  std::memcpy(aligned.data(), blob.data(), blob.size());
  std::unique_ptr<UcxMapping> mapping(new UcxMapping());
  RETURN_IF_ERROR(
      UcxStatus(ucp_ep_rkey_unpack(endpoint->endpoint_, aligned.data(), &mapping->rkey_),
                "ucp_ep_rkey_unpack"));
  void* pointer = nullptr;
  RETURN_IF_ERROR(UcxStatus(ucp_rkey_ptr(mapping->rkey_, address, &pointer), "ucp_rkey_ptr"));
  mapping->bytes_ = {static_cast<std::byte*>(pointer), bytes};
  return mapping;
}

UcxMapping::~UcxMapping() {
  if (rkey_ != nullptr) ucp_rkey_destroy(rkey_);
}

}  // namespace switchyard
