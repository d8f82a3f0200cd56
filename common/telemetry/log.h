// common/telemetry/log.h: one logger per process role, to stderr, as text or JSON lines.
#pragma once

#include <initializer_list>
#include <memory>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"

namespace spdlog {
class logger;
}

namespace switchyard {

enum class LogLevel { kDebug, kInfo, kWarning, kError };
enum class LogFormat { kText, kJson };

// kInvalidArgument lists the names: debug, info, warning, error; text, json.
absl::StatusOr<LogLevel> ParseLogLevel(std::string_view name);
absl::StatusOr<LogFormat> ParseLogFormat(std::string_view name);

// A named value next to the message. In text form it reads key=value, in JSON form it is a member.
struct LogField {
  LogField(std::string_view key, const absl::AlphaNum& value)
      : key(key), value(value.data(), value.size()) {}
  std::string_view key;  // must outlive the call
  std::string value;
};

// Thread-safe; a line is written whole. Line breaks and control characters from outside are
// escaped: a message can't forge a second line.
class Logger {
 public:
  // `name` says who speaks: "router", "decode-1".
  Logger(std::string name, LogLevel level, LogFormat format);
  ~Logger();

  bool enabled(LogLevel level) const { return level >= level_; }
  void Log(LogLevel level, std::string_view message, std::initializer_list<LogField> fields = {});

  void Debug(std::string_view message, std::initializer_list<LogField> fields = {}) {
    Log(LogLevel::kDebug, message, fields);
  }
  void Info(std::string_view message, std::initializer_list<LogField> fields = {}) {
    Log(LogLevel::kInfo, message, fields);
  }
  void Warning(std::string_view message, std::initializer_list<LogField> fields = {}) {
    Log(LogLevel::kWarning, message, fields);
  }
  void Error(std::string_view message, std::initializer_list<LogField> fields = {}) {
    Log(LogLevel::kError, message, fields);
  }

 private:
  const LogLevel level_;
  const LogFormat format_;
  std::unique_ptr<spdlog::logger> logger_;
};

// A line without time, level and name; the part that carries what came from outside.
std::string FormatLogMessage(LogFormat format, std::string_view message,
                             std::initializer_list<LogField> fields);

}  // namespace switchyard
