// Attention as config.json tells it, by family.
#include <cmath>

#include "absl/strings/str_cat.h"
#include "model/config_parts.h"

namespace switchyard {
namespace {

using nlohmann::json;

// YaRN's temperature, section 3.4 of the paper; DeepSeek scales it by `mscale`.
double YarnMscale(double factor, double mscale) {
  return factor <= 1 ? 1.0 : 0.1 * mscale * std::log(factor) + 1.0;
}

// What RoPE leaves for the attention scale: DeepSeek multiplies it by mscale_all_dim's temperature,
// squared; others do not.
struct RopeExtras {
  double factor = 1;
  double mscale_all_dim = 0;
};

RopeExtras ReadYarn(JsonFields& f, ModelConfig& c) {
  YarnScaling y;
  y.factor = f.Number("factor", 1, 4096);
  y.beta_fast = f.Number("beta_fast", 1e-3, 1e6, 32);
  y.beta_slow = f.Number("beta_slow", 1e-3, 1e6, 1);
  y.truncate = f.Bool("truncate", true);
  y.original_max_position_embeddings =
      f.Int("original_max_position_embeddings", 1, kPositionsMax, c.max_position_embeddings);
  const double mscale = f.Number("mscale", 0, 100, 0);
  const double mscale_all_dim = f.Number("mscale_all_dim", 0, 100, 0);
  const double derived = mscale != 0 && mscale_all_dim != 0
                             ? YarnMscale(y.factor, mscale) / YarnMscale(y.factor, mscale_all_dim)
                             : YarnMscale(y.factor, 1);
  y.attention_factor = f.Number("attention_factor", 1e-3, 1e3, derived);
  c.yarn = y;
  return {y.factor, mscale_all_dim};
}

// rope_theta and rope_scaling; newer files put both into rope_parameters.
RopeExtras ReadRope(JsonFields& f, ModelConfig& c) {
  constexpr double kThetaMax = 1e12;
  f.Require(f.Number("partial_rotary_factor", 0, 1, 1) == 1, "partial_rotary_factor", "1");
  c.rope_theta = f.Number("rope_theta", 1.001, kThetaMax, c.rope_theta);
  const char* name = f.Has("rope_parameters") ? "rope_parameters" : "rope_scaling";
  const json* object = f.Object(name);
  if (object == nullptr) return {};
  JsonFields s(*object, absl::StrCat(f.where(), ": ", name));
  c.rope_theta = s.Number("rope_theta", 1.001, kThetaMax, c.rope_theta);
  s.Require(s.Number("partial_rotary_factor", 0, 1, 1) == 1, "partial_rotary_factor", "1");
  const char* key = s.Has("rope_type") ? "rope_type" : "type";
  const std::string type = s.String(key, "default");
  RopeExtras extras;
  if (type == "yarn") {
    extras = ReadYarn(s, c);
  } else {
    s.Require(type == "default", key, "default, yarn");
  }
  f.Adopt(s.status());
  return extras;
}

}  // namespace

void ReadGqa(JsonFields& f, ModelConfig& c) {
  c.attention = ModelConfig::Attention::kGqa;
  c.kv_heads = f.Int("num_key_value_heads", 1, kHeadsMax, c.heads);
  f.Require(c.heads % c.kv_heads == 0, "num_key_value_heads",
            absl::StrCat("a divisor of num_attention_heads = ", c.heads));
  if (!f.Has("head_dim")) {
    f.Require(c.hidden_size % c.heads == 0, "head_dim",
              absl::StrCat("a value, as num_attention_heads = ", c.heads,
                           " does not divide hidden_size = ", c.hidden_size));
  }
  c.head_dim = f.Int("head_dim", 1, kHeadDimMax, c.hidden_size / c.heads);
  f.Require(c.head_dim % 2 == 0 && c.head_dim <= kHeadDimMax, "head_dim",
            absl::StrCat("an even number, at most ", kHeadDimMax));
  c.rope_style = RopeStyle::kHalfSplit;
  ReadRope(f, c);
  c.attention_scale = static_cast<float>(1 / std::sqrt(static_cast<double>(c.head_dim)));
}

void ReadMla(JsonFields& f, ModelConfig& c) {
  c.attention = ModelConfig::Attention::kMla;
  c.kv_heads = f.Int("num_key_value_heads", 1, kHeadsMax, c.heads);
  f.Require(c.kv_heads == c.heads, "num_key_value_heads",
            absl::StrCat("num_attention_heads = ", c.heads));
  c.q_lora_rank = f.Int("q_lora_rank", 1, kWidthMax, 0);
  c.kv_lora_rank = f.Int("kv_lora_rank", 1, 8192);
  c.qk_nope_head_dim = f.Int("qk_nope_head_dim", 1, kHeadDimMax);
  c.qk_rope_head_dim = f.Int("qk_rope_head_dim", 2, kHeadDimMax);
  c.v_head_dim = f.Int("v_head_dim", 1, kHeadDimMax);
  f.Require(c.qk_rope_head_dim % 2 == 0, "qk_rope_head_dim", "an even number");
  c.rope_style = f.Bool("rope_interleave", true) ? RopeStyle::kInterleaved : RopeStyle::kHalfSplit;
  const RopeExtras rope = ReadRope(f, c);
  double scale = 1 / std::sqrt(static_cast<double>(c.qk_nope_head_dim + c.qk_rope_head_dim));
  if (rope.mscale_all_dim != 0) {
    const double mscale = YarnMscale(rope.factor, rope.mscale_all_dim);
    scale *= mscale * mscale;
  }
  c.attention_scale = static_cast<float>(scale);
}

}  // namespace switchyard
