// usage: stub_router_main PORT: a server for measuring the driver, until SIGTERM.
#include <signal.h>

#include <cstdio>
#include <cstdlib>

#include "bench/stub_router.h"

int main(int argc, char** argv) {
  sigset_t stop;
  sigemptyset(&stop);
  sigaddset(&stop, SIGTERM);
  sigaddset(&stop, SIGINT);
  pthread_sigmask(SIG_BLOCK, &stop, nullptr);
  switchyard::StubRouterOptions options;
  if (argc > 1) options.port = std::atoi(argv[1]);
  const auto stub = switchyard::StubRouter::Create(options);
  if (!stub.ok()) {
    std::fprintf(stderr, "%s\n", stub.status().ToString().c_str());
    return 1;
  }
  std::printf("127.0.0.1:%d\n", (*stub)->port());
  std::fflush(stdout);
  int signal_number = 0;
  return sigwait(&stop, &signal_number);
}
