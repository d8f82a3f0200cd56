// common/net/tls.h: what a process proves its name with, and whom it lets in.
#pragma once

#include <string>

namespace switchyard {

// PEM texts, not file names. Without a certificate a server speaks in clear.
struct TlsOptions {
  std::string certificate = {};  // the chain, the server's own first
  std::string key = {};          // its private key, without a password
  // mTLS: clients must show a certificate that one of these has signed. Empty: they need none.
  // Whoever dials with these options wants the server's to be signed so too.
  std::string client_ca = {};

  bool enabled() const { return !certificate.empty(); }
};

}  // namespace switchyard
