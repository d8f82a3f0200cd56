// usage: stub_router_main [PORT]: a server for measuring the driver, until SIGTERM.
#include <cstdlib>

#include "bench/stub_main.h"
#include "bench/stub_router.h"

int main(int argc, char** argv) {
  switchyard::StubRouterOptions options;
  if (argc > 1) options.port = std::atoi(argv[1]);
  return switchyard::RunStub([&] { return switchyard::StubRouter::Create(options); });
}
