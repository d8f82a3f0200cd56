#include "common/net/http_server_stream.h"

#include <openssl/ssl.h>

#include <boost/asio/buffer.hpp>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"

namespace switchyard::http_internal {
namespace {

namespace ssl = boost::asio::ssl;
using boost::system::error_code;

absl::Status Check(const char* what, const error_code& error) {
  if (!error) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("TLS ", what, ": ", error.message()));
}

}  // namespace

absl::StatusOr<std::unique_ptr<ssl::context>> MakeTlsContext(const TlsOptions& options) {
  auto context = std::make_unique<ssl::context>(ssl::context::tls_server);
  error_code error;
  const auto pem = [](const std::string& text) { return boost::asio::buffer(text); };
  SSL_CTX_set_min_proto_version(context->native_handle(), TLS1_2_VERSION);
  context->use_certificate_chain(pem(options.certificate), error);
  RETURN_IF_ERROR(Check("certificate", error));
  context->use_private_key(pem(options.key), ssl::context::pem, error);
  RETURN_IF_ERROR(Check("key", error));
  // Sessions that are taken up again must be of this server's: OpenSSL refuses client certificates
  // otherwise.
  static constexpr unsigned char kSessions[] = "switchyard";
  SSL_CTX_set_session_id_context(context->native_handle(), kSessions, sizeof(kSessions) - 1);
  if (options.client_ca.empty()) return context;
  context->add_certificate_authority(pem(options.client_ca), error);
  RETURN_IF_ERROR(Check("certificates of clients", error));
  context->set_verify_mode(ssl::verify_peer | ssl::verify_fail_if_no_peer_cert, error);
  RETURN_IF_ERROR(Check("verification of clients", error));
  return context;
}

}  // namespace switchyard::http_internal
