// usage: stub_worker_main PORT STEP_US VOCABULARY CONTEXT [PROMPT_TOKEN_US]: a worker for measuring
// the router, until SIGTERM. VOCABULARY and CONTEXT are those of the router's model.
#include <signal.h>

#include <cstdio>
#include <cstdlib>

#include "bench/stub_worker.h"

int main(int argc, char** argv) {
  if (argc != 5 && argc != 6) {
    std::fputs("usage: stub_worker_main PORT STEP_US VOCABULARY CONTEXT [PROMPT_TOKEN_US]\n",
               stderr);
    return 2;
  }
  sigset_t stop;
  sigemptyset(&stop);
  sigaddset(&stop, SIGTERM);
  sigaddset(&stop, SIGINT);
  pthread_sigmask(SIG_BLOCK, &stop, nullptr);
  const auto stub = switchyard::StubWorker::Create(
      {.port = std::atoi(argv[1]),
       .step = absl::Microseconds(std::atoi(argv[2])),
       .prompt_token = absl::Microseconds(argc == 6 ? std::atoi(argv[5]) : 0),
       .vocab_size = std::atoi(argv[3]),
       .max_model_len = std::atoi(argv[4])});
  if (!stub.ok()) {
    std::fprintf(stderr, "%s\n", stub.status().ToString().c_str());
    return 1;
  }
  std::printf("127.0.0.1:%d\n", (*stub)->port());
  std::fflush(stdout);
  int signal_number = 0;
  return sigwait(&stop, &signal_number);
}
