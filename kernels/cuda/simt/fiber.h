// kernels/cuda/simt/fiber.h: a function with a stack of its own that can be left and entered again.
// x86-64, one host thread; tells AddressSanitizer which stack is in use.
#pragma once

#include <cstddef>

namespace switchyard::simt {

class Fiber {
 public:
  Fiber() = default;
  ~Fiber();
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  // The next Enter calls function(argument), which leaves for good by its last Leave.
  void Start(void (*function)(void*), void* argument);
  void Enter();  // returns when the fiber leaves
  void Leave();  // called on the fiber; returns at the next Enter

 private:
  static void Main();

  void (*function_)(void*) = nullptr;
  void* argument_ = nullptr;
  std::byte* stack_ = nullptr;
  void* inside_ = nullptr;   // stack pointer of the fiber while it is left
  void* outside_ = nullptr;  // of who entered it
  // AddressSanitizer's view of the two stacks.
  void* fake_inside_ = nullptr;
  void* fake_outside_ = nullptr;
  const void* outer_bottom_ = nullptr;
  size_t outer_size_ = 0;
};

}  // namespace switchyard::simt
