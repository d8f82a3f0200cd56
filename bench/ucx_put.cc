#include "bench/ucx_put.h"

#include <cstring>
#include <vector>

#include "common/status_macros.h"

namespace switchyard {
namespace {

absl::Status MakeWorker(const std::string& transport, std::unique_ptr<UcxContext>* context,
                        ucp_worker_h* worker) {
  UcxOptions options;
  options.transport = transport;
  ASSIGN_OR_RETURN(*context, UcxContext::Create(options));
  ucp_worker_params_t params{};
  return UcxStatus(ucp_worker_create((*context)->get(), &params, worker), "ucp_worker_create");
}

// UCX wants blobs aligned for its integers.
std::vector<uint64_t> Aligned(const std::string& blob) {
  std::vector<uint64_t> words((blob.size() + 7) / 8);
  std::memcpy(words.data(), blob.data(), blob.size());
  return words;
}

}  // namespace

absl::StatusOr<std::unique_ptr<PutTarget>> PutTarget::Create(const std::string& transport,
                                                             size_t bytes) {
  std::unique_ptr<PutTarget> target(new PutTarget);
  RETURN_IF_ERROR(MakeWorker(transport, &target->context_, &target->worker_));
  ucp_mem_map_params_t params{};
  params.field_mask = UCP_MEM_MAP_PARAM_FIELD_LENGTH | UCP_MEM_MAP_PARAM_FIELD_FLAGS;
  params.length = bytes;
  params.flags = UCP_MEM_MAP_ALLOCATE;
  RETURN_IF_ERROR(
      UcxStatus(ucp_mem_map(target->context_->get(), &params, &target->memory_), "ucp_mem_map"));
  ucp_mem_attr_t attributes{};
  attributes.field_mask = UCP_MEM_ATTR_FIELD_ADDRESS;
  RETURN_IF_ERROR(UcxStatus(ucp_mem_query(target->memory_, &attributes), "ucp_mem_query"));
  target->data_ = static_cast<std::byte*>(attributes.address);
  target->bytes_ = bytes;
  void* rkey = nullptr;
  size_t size = 0;
  RETURN_IF_ERROR(UcxStatus(ucp_rkey_pack(target->context_->get(), target->memory_, &rkey, &size),
                            "ucp_rkey_pack"));
  target->rkey_.assign(static_cast<const char*>(rkey), size);
  ucp_rkey_buffer_release(rkey);
  ucp_address_t* address = nullptr;
  RETURN_IF_ERROR(UcxStatus(ucp_worker_get_address(target->worker_, &address, &size),
                            "ucp_worker_get_address"));
  target->address_.assign(reinterpret_cast<const char*>(address), size);
  ucp_worker_release_address(target->worker_, address);
  std::memset(target->data_, 0, bytes);  // every page is there before the first put
  return target;
}

PutTarget::~PutTarget() {
  if (memory_ != nullptr) ucp_mem_unmap(context_->get(), memory_);
  if (worker_ != nullptr) ucp_worker_destroy(worker_);
}

absl::StatusOr<std::unique_ptr<PutSource>> PutSource::Create(const std::string& transport,
                                                             const std::string& address,
                                                             const std::string& rkey,
                                                             uint64_t base) {
  std::unique_ptr<PutSource> source(new PutSource);
  RETURN_IF_ERROR(MakeWorker(transport, &source->context_, &source->worker_));
  const std::vector<uint64_t> blob = Aligned(address);
  ucp_ep_params_t params{};
  params.field_mask = UCP_EP_PARAM_FIELD_REMOTE_ADDRESS;
  params.address = reinterpret_cast<const ucp_address_t*>(blob.data());
  RETURN_IF_ERROR(
      UcxStatus(ucp_ep_create(source->worker_, &params, &source->endpoint_), "ucp_ep_create"));
  RETURN_IF_ERROR(
      UcxStatus(ucp_ep_rkey_unpack(source->endpoint_, Aligned(rkey).data(), &source->rkey_),
                "ucp_ep_rkey_unpack"));
  source->base_ = base;
  return source;
}

PutSource::~PutSource() {
  if (rkey_ != nullptr) ucp_rkey_destroy(rkey_);
  if (endpoint_ != nullptr) {
    ucp_request_param_t param{};
    param.op_attr_mask = UCP_OP_ATTR_FIELD_FLAGS;
    param.flags = UCP_EP_CLOSE_FLAG_FORCE;
    (void)Wait(ucp_ep_close_nbx(endpoint_, &param));
  }
  if (worker_ != nullptr) ucp_worker_destroy(worker_);
}

void PutSource::Put(std::span<const std::byte> from, size_t offset) {
  constexpr size_t kOutstandingMax = 4096;
  while (outstanding_ >= kOutstandingMax) ucp_worker_progress(worker_);
  ucp_request_param_t param{};
  param.op_attr_mask = UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA;
  param.user_data = this;
  param.cb.send = [](void* request, ucs_status_t status, void* self) {
    auto* const source = static_cast<PutSource*>(self);
    --source->outstanding_;
    if (status != UCS_OK) source->error_ = UcxStatus(status, "ucp_put");
    ucp_request_free(request);
  };
  ucs_status_ptr_t request =
      ucp_put_nbx(endpoint_, from.data(), from.size(), base_ + offset, rkey_, &param);
  if (UCS_PTR_IS_PTR(request)) {
    ++outstanding_;
  } else if (UCS_PTR_IS_ERR(request)) {
    error_ = UcxStatus(UCS_PTR_STATUS(request), "ucp_put");
  }
}

absl::Status PutSource::Wait(ucs_status_ptr_t request) {
  if (!UCS_PTR_IS_PTR(request)) return UcxStatus(UCS_PTR_STATUS(request), "ucp flush or close");
  ucs_status_t status = UCS_INPROGRESS;
  while ((status = ucp_request_check_status(request)) == UCS_INPROGRESS) {
    ucp_worker_progress(worker_);
  }
  ucp_request_free(request);
  return UcxStatus(status, "ucp flush or close");
}

absl::Status PutSource::Flush() {
  ucp_request_param_t param{};
  RETURN_IF_ERROR(Wait(ucp_ep_flush_nbx(endpoint_, &param)));
  while (outstanding_ > 0) ucp_worker_progress(worker_);
  return error_;
}

absl::StatusOr<std::byte*> PutSource::Map() {
  void* here = nullptr;
  RETURN_IF_ERROR(UcxStatus(ucp_rkey_ptr(rkey_, base_, &here), "ucp_rkey_ptr"));
  return static_cast<std::byte*>(here);
}

}  // namespace switchyard
