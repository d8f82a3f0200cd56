#include "cli/tls_files.h"

#include <tuple>
#include <utility>

#include "common/file.h"
#include "common/status_macros.h"

namespace switchyard {
namespace {
constexpr size_t kFileBytesMax = 4 << 20;
}  // namespace

absl::StatusOr<TlsOptions> LoadTls(const std::string& certificate, const std::string& key,
                                   const std::string& client_ca) {
  if (certificate.empty() != key.empty()) {
    return absl::InvalidArgumentError("--ssl-certfile and --ssl-keyfile go together");
  }
  if (certificate.empty() && !client_ca.empty()) {
    return absl::InvalidArgumentError("--ssl-ca-certs needs --ssl-certfile and --ssl-keyfile");
  }
  TlsOptions tls;
  for (const auto& [file, text] :
       {std::pair(&certificate, &tls.certificate), std::pair(&key, &tls.key),
        std::pair(&client_ca, &tls.client_ca)}) {
    if (file->empty()) continue;
    ASSIGN_OR_RETURN(*text, ReadFile(*file, kFileBytesMax));
    if (text->find("-----BEGIN ") == std::string::npos) {
      return absl::InvalidArgumentError(*file + " is not a PEM file");
    }
  }
  return tls;
}

void WorkerTlsFlags::AddTo(CLI::App& app) {
  for (auto [name, file, what] :
       {std::tuple("--worker-ssl-certfile", &certificate,
                   "mTLS of gRPC between router and ranks: this process's certificate, PEM"),
        std::tuple("--worker-ssl-keyfile", &key, "its private key, PEM"),
        std::tuple("--worker-ssl-ca-certs", &ca, "who signed the others' certificates, PEM")}) {
    app.add_option(name, *file, what)->check(CLI::ExistingFile);
  }
}

absl::StatusOr<TlsOptions> WorkerTlsFlags::Load() const {
  const bool any = !certificate.empty() || !key.empty() || !ca.empty();
  if (any && (certificate.empty() || key.empty() || ca.empty())) {
    return absl::InvalidArgumentError(
        "--worker-ssl-certfile, --worker-ssl-keyfile and --worker-ssl-ca-certs go together");
  }
  return LoadTls(certificate, key, ca);
}

}  // namespace switchyard
