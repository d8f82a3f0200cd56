// model/weight_source.h: where weights come from: a checkpoint, or a seed (--load-format dummy).
#pragma once

#include <initializer_list>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/gemm.h"
#include "model/config.h"
#include "model/safetensors.h"

namespace switchyard {

// A tensor's elements. `view` is into `owned`, or into the source's own memory.
struct LoadedTensor {
  WeightView view;  // a vector is one row
  AlignedBuffer owned;
};

// Thread-safe: experts of a layer are packed in parallel.
class WeightSource {
 public:
  virtual ~WeightSource() = default;
  // `shape` has one or two dimensions. Elements are BF16 or FP32, aligned for their type;
  // FP8 is dequantised to BF16. Errors name tensor, wanted, found and file.
  virtual absl::StatusOr<LoadedTensor> Get(const std::string& name,
                                           std::initializer_list<uint64_t> shape) const = 0;
  // Memory that the source's own tensors take is given back; who uses one still has it, and reads
  // it from the file again.
  virtual void Release() const {}
  // All that a whole model takes from here, for the progress report.
  virtual size_t total_bytes() const = 0;
  // What was found and is not used on purpose.
  virtual std::vector<std::string> notices() const { return {}; }
};

// `checkpoint` must outlive the source.
std::unique_ptr<WeightSource> MakeCheckpointSource(const Checkpoint& checkpoint,
                                                   const ModelConfig& config);

// Every tensor is a pure function of its name and shape: BF16, uniform with variance 1/columns;
// norms are 1, biases 0.
std::unique_ptr<WeightSource> MakeDummySource(const ModelConfig& config);

// Weights of a layer's attention. What MLA absorbs is never quantised.
struct AttentionParameters {
  uint64_t projections = 0, absorbed = 0;
};
AttentionParameters CountAttentionParameters(const ModelConfig& config);
// Weights of the model, embeddings and head included.
uint64_t ParameterCount(const ModelConfig& config);

// The first 16 hex digits of a model's identity: xxh3-64 of config.json's text, of the headers and
// of the data: all of it below 64 MiB, else samples spread over every file.
std::string ModelDigest(std::string_view config_json, const Checkpoint* checkpoint);

}  // namespace switchyard
