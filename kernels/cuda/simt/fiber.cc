#include "kernels/cuda/simt/fiber.h"

#include <sys/mman.h>

#include <cstdint>
#include <cstring>

#include "common/check.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

// Saves what the System V ABI has a callee keep on this stack, and goes on on the other.
extern "C" void sy_simt_switch(void** save, void* to);
asm(R"(
.text
.globl sy_simt_switch
.type sy_simt_switch, @function
sy_simt_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size sy_simt_switch, .-sy_simt_switch
)");

namespace switchyard::simt {
namespace {

constexpr size_t kStackBytes = 256 << 10;  // untouched pages cost nothing

thread_local Fiber* entered = nullptr;

// AddressSanitizer's marks of frames that were left for good.
void Forget([[maybe_unused]] std::byte* stack) {
#if defined(__SANITIZE_ADDRESS__)
  __asan_unpoison_memory_region(stack, kStackBytes);
#endif
}

}  // namespace

Fiber::~Fiber() {
  if (stack_ == nullptr) return;
  Forget(stack_);
  munmap(stack_, kStackBytes);
}

void Fiber::Start(void (*function)(void*), void* argument) {
  if (stack_ == nullptr) {
    void* p = mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    SY_CHECK(p != MAP_FAILED);
    stack_ = static_cast<std::byte*>(p);
  }
  function_ = function;
  argument_ = argument;
  fake_inside_ = nullptr;
  Forget(stack_);
  // Six registers and the address that `ret` goes to, where a call would have put them: the stack
  // is 16-byte aligned before the call.
  void** top = reinterpret_cast<void**>(stack_ + kStackBytes) - 8;
  std::memset(static_cast<void*>(top), 0, 8 * sizeof(void*));
  void (*main)() = &Fiber::Main;
  std::memcpy(&top[6], &main, sizeof main);
  inside_ = top;
}

void Fiber::Main() {
  Fiber* self = entered;
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &self->outer_bottom_, &self->outer_size_);
#endif
  self->function_(self->argument_);
  SY_CHECK_MSG(false, "a fiber returned");
}

void Fiber::Enter() {
  entered = this;
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&fake_outside_, stack_, kStackBytes);
#endif
  sy_simt_switch(&outside_, inside_);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(fake_outside_, nullptr, nullptr);
#endif
}

void Fiber::Leave() {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&fake_inside_, outer_bottom_, outer_size_);
#endif
  sy_simt_switch(&inside_, outside_);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(fake_inside_, &outer_bottom_, &outer_size_);
#endif
}

}  // namespace switchyard::simt
