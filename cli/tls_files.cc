#include "cli/tls_files.h"

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

}  // namespace switchyard
