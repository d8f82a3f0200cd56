// bench/stub_main.h: what the mains of stubs share.
#pragma once

#include <signal.h>

#include <cstdio>

#include "absl/synchronization/mutex.h"

namespace switchyard {

// Makes a stub (StatusOr of a pointer to it), says where it listens, and keeps it until SIGTERM or
// SIGINT. The process's exit code.
template <typename Make>
int RunStub(const Make& make) {
  // As the product does: gRPC has some locks per message, and each would be looked at for cycles.
  absl::SetMutexDeadlockDetectionMode(absl::OnDeadlockCycle::kIgnore);
  sigset_t stop;
  sigemptyset(&stop);
  sigaddset(&stop, SIGTERM);
  sigaddset(&stop, SIGINT);
  pthread_sigmask(SIG_BLOCK, &stop, nullptr);  // before there are threads
  const auto stub = make();
  if (!stub.ok()) {
    std::fprintf(stderr, "%s\n", stub.status().ToString().c_str());
    return 1;
  }
  std::printf("127.0.0.1:%d\n", (*stub)->port());
  std::fflush(stdout);
  int number = 0;
  return sigwait(&stop, &number);
}

}  // namespace switchyard
