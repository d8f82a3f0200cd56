// cli/tls_files.h: a server's certificate and keys, from the files that flags name.
#pragma once

#include <CLI/CLI.hpp>
#include <string>

#include "absl/status/statusor.h"
#include "common/net/tls.h"

namespace switchyard {

// Of --ssl-certfile, --ssl-keyfile and --ssl-ca-certs; no file, no TLS. Errors: those of reading;
// kInvalidArgument for a part without the others.
absl::StatusOr<TlsOptions> LoadTls(const std::string& certificate, const std::string& key,
                                   const std::string& client_ca);

// What router and ranks prove their names to each other with.
struct WorkerTlsFlags {
  std::string certificate, key, ca;

  void AddTo(CLI::App& app);
  // All three or none.
  absl::StatusOr<TlsOptions> Load() const;
};

}  // namespace switchyard
