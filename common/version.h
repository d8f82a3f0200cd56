// common/version.h: the release, as /version and --version tell it.
#pragma once

namespace switchyard {

inline constexpr char kVersion[] = "0.1.0";

}  // namespace switchyard
