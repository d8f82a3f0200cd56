// model/config.h: a hub config.json, checked, in the project's own words.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/gate.h"
#include "kernels/rope.h"
#include "kvcache/layout.h"

namespace switchyard {

struct YarnScaling {  // Peng et al. 2023, section 3.4
  double factor = 1, beta_fast = 32, beta_slow = 1;
  double attention_factor = 1;  // multiplies cos and sin
  bool truncate = true;         // correction range in whole dimensions
  int original_max_position_embeddings = 0;
};

// How an architecture names the tensors of an MoE layer. Dense layers and shared experts are always
// named as these are by default.
struct MoeTensorNames {
  std::string_view block = "mlp", gate = "gate_proj", up = "up_proj", down = "down_proj";
};

// Weights stored as FP8 E4M3, with one scale per block of rows × columns.
struct Fp8Blocks {
  int rows = 0, columns = 0;
};

struct ModelConfig {
  enum class Attention { kGqa, kMla };
  enum class QkNorm { kNone, kPerHead, kFullWidth };  // RMSNorm of q and k before RoPE

  std::string architecture;  // architectures[0]
  int vocab_size = 0, hidden_size = 0, layers = 0, max_position_embeddings = 0;
  float rms_norm_eps = 1e-6f;
  bool tie_word_embeddings = false;
  std::vector<int32_t> eos_token_ids;  // config.json and generation_config.json
  std::optional<int32_t> bos_token_id;

  Attention attention = Attention::kGqa;
  int heads = 0, kv_heads = 0;
  int head_dim = 0;                // GQA: of q, k and v
  QkNorm qk_norm = QkNorm::kNone;  // GQA
  std::optional<float> clip_qkv;   // GQA: bounds |q|, |k| and |v| before RoPE
  bool attention_bias = false;     // GQA: of q, k, v and o; MLA: of q_a, kv_a and o
  int q_lora_rank = 0;             // MLA: 0 = q_proj directly
  int kv_lora_rank = 0, qk_nope_head_dim = 0, qk_rope_head_dim = 0, v_head_dim = 0;
  float attention_scale = 0;  // of q·k; YaRN's mscale² included
  int sliding_window = 0;     // GQA: a token attends to so many, itself included; 0: to all

  double rope_theta = 10000;
  RopeStyle rope_style = RopeStyle::kHalfSplit;
  std::optional<YarnScaling> yarn;

  int intermediate_size = 0;  // dense layers
  int moe_intermediate_size = 0;
  int shared_experts = 0;  // one FFN of shared_experts · moe_intermediate_size
  GateConfig gate;
  bool gate_bias = false;          // e_score_correction_bias
  std::vector<bool> layer_is_moe;  // [layers]
  MoeTensorNames moe_names;
  std::optional<Fp8Blocks> fp8;  // absent: BF16 and F32 tensors only
  int mtp_layers = 0;            // num_nextn_predict_layers: their tensors are skipped
  // What the file asks for and is honoured otherwise, one sentence each.
  std::vector<std::string> notices;

  KvLayout KvLayoutFor(DType dtype, int block_tokens) const;
  int RopeDim() const { return attention == Attention::kMla ? qk_rope_head_dim : head_dim; }
  // positions >= 1.
  RopeTable MakeRopeTable(int positions) const;
};

// Reads DIR/config.json (and generation_config.json if present). Errors are kInvalidArgument and
// name file, field, value and what is supported. Unknown fields are ignored; known fields with a
// value that we cannot honour are refused.
absl::StatusOr<ModelConfig> LoadModelConfig(const std::string& dir);
// The same from text; `generation_json` may be empty.
absl::StatusOr<ModelConfig> ParseModelConfig(std::string_view config_json,
                                             std::string_view generation_json);

}  // namespace switchyard
