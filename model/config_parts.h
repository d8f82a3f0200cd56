// model/config_parts.h: the parts that config.json's parser is made of: what every architecture has
// is read in config.cc, attention in attention_config.cc, the rest in architectures.cc. Private to
// them. Each part reads fields into the config; the first error stays in the fields.
#pragma once

#include <string>
#include <string_view>

#include "model/config.h"
#include "model/json_fields.h"

namespace switchyard {

// Upper bounds: a few times the largest model that exists, small enough that no product of two
// overflows and that a hostile file cannot ask for absurd tables.
inline constexpr int kWidthMax = 1 << 17, kHeadDimMax = 512, kHeadsMax = 1024, kLayersMax = 1024;
inline constexpr int kVocabMax = 1 << 22, kPositionsMax = 1 << 21, kExpertsMax = 4096;
inline constexpr int kTopKMax = 64;

// Attention by family, rope included.
void ReadGqa(JsonFields& f, ModelConfig& c);
void ReadMla(JsonFields& f, ModelConfig& c);

struct Architecture {
  std::string_view name;  // architectures[0]
  // What a file that does not say means.
  float rms_norm_eps;
  double rope_theta;
  // Reads all that is not common to every architecture.
  void (*read)(JsonFields&, ModelConfig&);
};

// nullptr if we do not have it.
const Architecture* FindArchitecture(std::string_view name);
// Their names, joined by commas.
std::string SupportedArchitectures();

}  // namespace switchyard
