#include "cli/api_key.h"

#include <algorithm>
#include <cstdlib>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "common/file.h"
#include "common/status_macros.h"

namespace switchyard {
namespace {

constexpr char kVariable[] = "SWITCHYARD_API_KEY";
constexpr size_t kFileBytesMax = 1 << 20;
constexpr size_t kKeyBytesMax = 1024;

absl::Status CheckKey(const std::string& where, const std::string& key) {
  const bool plain =
      std::all_of(key.begin(), key.end(), [](char c) { return c > ' ' && c < '\x7f'; });
  if (plain && key.size() <= kKeyBytesMax) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(where, ": a key is 1 to ", kKeyBytesMax, " visible ASCII characters"));
}

}  // namespace

std::string ApiKeyOfEnvironment() {
  const char* key = std::getenv(kVariable);
  return key == nullptr ? "" : key;
}

void SendApiKey(grpc::ClientContext* context) {
  if (const std::string key = ApiKeyOfEnvironment(); !key.empty()) {
    context->AddMetadata("authorization", absl::StrCat("Bearer ", key));
  }
}

absl::StatusOr<std::vector<std::string>> LoadKeyFile(const std::string& file) {
  std::vector<std::string> keys;
  if (file.empty()) return keys;
  ASSIGN_OR_RETURN(const std::string text, ReadFile(file, kFileBytesMax));
  int number = 0;
  for (const absl::string_view line : absl::StrSplit(text, '\n')) {
    ++number;
    const std::string key(absl::StripAsciiWhitespace(line));
    if (key.empty()) continue;
    RETURN_IF_ERROR(CheckKey(absl::StrCat(file, ", line ", number), key));
    keys.push_back(key);
  }
  if (keys.empty()) return absl::InvalidArgumentError(absl::StrCat(file, " has no key"));
  return keys;
}

absl::StatusOr<std::vector<std::string>> LoadApiKeys(const std::string& file) {
  ASSIGN_OR_RETURN(std::vector<std::string> keys, LoadKeyFile(file));
  if (const std::string key = ApiKeyOfEnvironment(); !key.empty()) {
    RETURN_IF_ERROR(CheckKey(kVariable, key));
    keys.push_back(key);
  }
  return keys;
}

bool IsLoopback(const std::string& host) {
  return absl::StartsWith(host, "127.") || host == "localhost" || host == "::1" || host == "[::1]";
}

bool IsWildcard(const std::string& host) {
  return host == "0.0.0.0" || host == "::" || host == "[::]";
}

}  // namespace switchyard
