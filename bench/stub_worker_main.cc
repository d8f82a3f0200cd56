// usage: stub_worker_main PORT STEP_US VOCABULARY CONTEXT [PROMPT_TOKEN_US]: a worker for measuring
// the router, until SIGTERM. VOCABULARY and CONTEXT are those of the router's model.
#include <cstdio>
#include <cstdlib>

#include "bench/stub_main.h"
#include "bench/stub_worker.h"

int main(int argc, char** argv) {
  if (argc != 5 && argc != 6) {
    std::fputs("usage: stub_worker_main PORT STEP_US VOCABULARY CONTEXT [PROMPT_TOKEN_US]\n",
               stderr);
    return 2;
  }
  const switchyard::StubWorkerOptions options{
      .port = std::atoi(argv[1]),
      .step = absl::Microseconds(std::atoi(argv[2])),
      .prompt_token = absl::Microseconds(argc == 6 ? std::atoi(argv[5]) : 0),
      .vocab_size = std::atoi(argv[3]),
      .max_model_len = std::atoi(argv[4])};
  return switchyard::RunStub([&] { return switchyard::StubWorker::Create(options); });
}
