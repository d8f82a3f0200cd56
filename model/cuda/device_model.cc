#include "model/cuda/device_model.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numeric>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "model/cuda/packers.h"
#include "model/cuda/support.h"
#include "model/head_share.h"
#include "model/hosted_experts.h"

namespace switchyard::cuda {
namespace {

constexpr size_t kSlabBytes = size_t{256} << 20;
// Of attention's partial results: 16 rows of 128 heads of MLA at 131,072 tokens are 1,028 MiB.
constexpr size_t kSplitBytesMax = size_t{1040} << 20;

}  // namespace

DeviceModel::DeviceModel(ModelConfig config, ModelOptions options, GemmPath path)
    : config_(std::move(config)),
      options_(std::move(options)),
      path_(path),
      packers_(Packers()),
      weights_(kSlabBytes),
      memory_(kSlabBytes) {}

absl::StatusOr<std::unique_ptr<DeviceModel>> DeviceModel::Load(const std::string& dir,
                                                               ModelConfig config,
                                                               ModelOptions options) {
  if (options.placement != nullptr) {
    RETURN_IF_ERROR(CheckPlacement(config, *options.placement, options.rank));
  }
  ASSIGN_OR_RETURN(const DeviceProperties device, OpenDevice(options.device_index));
  ASSIGN_OR_RETURN(const GemmPath path, PathOfDevice());
  RETURN_IF_ERROR(CheckSupported(config, options, path, device));
  std::unique_ptr<DeviceModel> model(new DeviceModel(std::move(config), std::move(options), path));
  RETURN_IF_ERROR(model->LoadFrom(dir, NumericsPath(path, device)));
  model->notices_.push_back(absl::StrCat("computes on ", device.name, ", ",
                                         model->weights_.bytes() >> 20, " MiB of weights"));
  return model;
}

absl::Status DeviceModel::LoadFrom(const std::string& dir, const std::string& numerics_path) {
  ASSIGN_OR_RETURN(compute_, MakeStream());
  ASSIGN_OR_RETURN(copies_, MakeStream());
  ASSIGN_OR_RETURN(uploaded_, MakeEvent());
  for (std::vector<Event>* events : {&written_, &copied_}) {
    for (int l = 0; l < config_.layers; ++l) {
      ASSIGN_OR_RETURN(Event event, MakeEvent());
      events->push_back(std::move(event));
    }
  }
  ASSIGN_OR_RETURN(const OpenedModel opened, OpenModel(dir, config_, options_.dummy_weights));
  dir_ = dir;
  digest_ = opened.digest;
  numerics_id_ = NumericsId(opened.digest, config_, options_, numerics_path);
  if (!options_.weights_cache.empty()) {
    cache_ = std::make_unique<PackedCache>(options_.weights_cache, numerics_id_);
  }
  std::vector<int32_t> all(config_.gate.experts);
  std::iota(all.begin(), all.end(), 0);
  WeightUploader uploader(&weights_, compute_);
  LoadWeightsOptions load = WeightsOptions([&](int layer) -> std::span<const int32_t> {
    if (options_.placement == nullptr) return all;
    return options_.placement->Hosted(layer, options_.rank);
  });
  load.progress = options_.progress;
  load.on_layer = [&](int, LayerWeights* weights) { return uploader.Layer(weights); };
  ComputePool pool(options_.threads);
  ASSIGN_OR_RETURN(const ModelWeights host,
                   LoadWeights(*opened.source, config_, packers_, pool, load));
  RETURN_IF_ERROR(uploader.Rest(host, config_.MakeRopeTable(options_.max_model_len)));
  notices_ = config_.notices;
  for (std::string& notice : opened.source->notices()) notices_.push_back(std::move(notice));
  if (cache_ != nullptr) notices_.push_back(cache_->Report());
  return Allocate();
}

absl::Status DeviceModel::Allocate() {
  const int rows = options_.max_batch_tokens, groups = std::max(config_.heads, 1);
  limits_ = {.rows = rows, .sequences = rows, .tables = 0, .logit_rows = rows, .groups = groups};
  ASSIGN_OR_RETURN(workspace_, MakeWorkspace(config_, rows, &memory_));
  layers_ = std::make_unique<DeviceLayers>(config_, weights_, options_.dtype, path_, workspace_,
                                           compute_);
  if (options_.placement != nullptr) {
    RETURN_IF_ERROR(experts_.Create(config_, options_.dtype, options_.device_index, workspace_,
                                    *layers_, compute_));
  }
  // Taken now, so that no context is too long for it later.
  const StepShape longest{
      .rows = rows, .sequences = rows, .rows_max = 1, .context_max = options_.max_model_len};
  const size_t split = SplitBytes(longest, AttentionShapeOf(config_), options_.dtype, SIZE_MAX);
  ASSIGN_OR_RETURN(attention_, DeviceBuffer::Create(std::min(split, kSplitBytesMax)));
  const size_t result = sizeof(int32_t) + sizeof(float) + sizeof(int32_t);
  ASSIGN_OR_RETURN(drawn_, DeviceBuffer::Create(rows * result));
  ASSIGN_OR_RETURN(results_, PinnedBuffer::Create(rows * result));
  return absl::OkStatus();
}

absl::StatusOr<KvStorage> DeviceModel::MakeKv(const KvLayout& layout, int blocks) {
  ASSIGN_OR_RETURN(KvStorage kv, KvStorage::Create(layout, blocks));
  ASSIGN_OR_RETURN(std::unique_ptr<DeviceKv> device, DeviceKv::Create(kv));
  graphs_.clear();  // a cache that is gone may have had the new one's address
  kv.Attach(std::move(device));
  return kv;
}

LoadWeightsOptions DeviceModel::WeightsOptions(HostedExperts hosted) const {
  return {.dtype = options_.dtype,
          .quantization = options_.quantization,
          .heads = HeadsOf(config_, 0, 1),
          .local_experts = std::move(hosted),
          .cache = cache_.get(),
          .progress = {}};
}

ExpertsFrom DeviceModel::Source() const {
  return {.dir = dir_,
          .config = config_,
          .dummy_weights = options_.dummy_weights,
          .digest = digest_,
          .kernels = packers_,
          .load = WeightsOptions(nullptr)};
}

absl::StatusOr<std::unique_ptr<ExpertSource>> DeviceModel::OpenExperts() const {
  return OpenExpertSource(Source());
}

// A layer at a time, so that the device has at most one of them twice.
absl::Status DeviceModel::Host(const Placement& placement, SpareExperts* spare) {
  const HostedExperts wanted = [&](int l) { return placement.Hosted(l, options_.rank); };
  const HostedExperts there = [&](int l) -> std::span<const int32_t> {
    return weights_.layers[l].experts.logical;
  };
  ComputePool pool(options_.threads);
  RETURN_IF_ERROR(
      LoadExperts(Source(), MissingExperts(config_.layers, there, wanted, *spare), pool, spare));
  WeightUploader uploader(&weights_, compute_);
  for (int l = 0; l < config_.layers; ++l) {
    if (config_.layer_is_moe[l]) RETURN_IF_ERROR(uploader.Rehost(l, wanted(l), spare));
  }
  return absl::OkStatus();
}

absl::Status DeviceModel::Rehost(std::shared_ptr<const Placement> placement, SpareExperts* spare) {
  if (options_.placement == nullptr) {
    return absl::FailedPreconditionError("a model without a placement hosts all experts");
  }
  RETURN_IF_ERROR(CheckPlacement(config_, *placement, options_.rank));
  RETURN_IF_ERROR(UseDevice(options_.device_index));
  const absl::Status done = Host(*placement, spare);
  if (!done.ok()) {
    RETURN_IF_ERROR(Host(*options_.placement, spare));
    return done;
  }
  options_.placement = std::move(placement);
  dispatcher_ = nullptr;  // it speaks of the old placement
  return absl::OkStatus();
}

template <Memory kind>
absl::Status DeviceModel::Grow(size_t bytes, Buffer<kind>* buffer) {
  if (bytes <= buffer->size()) return absl::OkStatus();
  // What is launched may use the old one.
  RETURN_IF_ERROR(Synchronize(compute_));
  graphs_.clear();
  const size_t wanted = std::max(bytes, buffer->size() + buffer->size() / 2);
  *buffer = Buffer<kind>();  // not both at once
  ASSIGN_OR_RETURN(*buffer, Buffer<kind>::Create(wanted));
  return absl::OkStatus();
}

absl::StatusOr<LayerStep> DeviceModel::Prepare(const ForwardBatch& batch, const DeviceKv& kv) {
  const StepShape exact = ShapeOf(batch);
  LayerStep step;
  step.shape = Records(exact)
                   ? DecodeClass(exact, options_.max_batch_tokens, options_.max_model_len)
                   : exact;
  if (const int tables = TablesOf(batch); tables > limits_.tables || arrays_.tokens == nullptr) {
    StepLimits limits = limits_;
    limits.tables = std::max(tables, limits_.tables * 2);
    arrays_ = {};  // until there are others
    RETURN_IF_ERROR(Grow(BytesFor(limits), &host_arrays_));
    RETURN_IF_ERROR(Grow(BytesFor(limits), &device_arrays_));
    graphs_.clear();
    limits_ = limits;
    arrays_ = PlaceArrays(host_arrays_.data(), limits_);
  }
  step.arrays = PlaceArrays(device_arrays_.data(), limits_);
  step.split =
      SplitBytes(step.shape, AttentionShapeOf(config_), options_.dtype, attention_.size()) > 0;
  step.attention_workspace = attention_.data();
  const size_t logits = static_cast<size_t>(step.shape.logit_rows) * config_.vocab_size;
  RETURN_IF_ERROR(Grow(logits * sizeof(float), &logits_));
  FillArrays(batch, kv.addressing().block_tokens, limits_.groups, step.shape, arrays_);
  RETURN_IF_ERROR(ForFilled(arrays_, host_arrays_.data(), step.shape, TablesOf(batch),
                            limits_.groups, [&](size_t at, size_t bytes) {
                              return CopyAsync(device_arrays_.data() + at, host_arrays_.data() + at,
                                               bytes, compute_);
                            }));
  return step;
}

absl::Status DeviceModel::Layer(int layer, const LayerStep& step, DeviceKv& kv) {
  RETURN_IF_ERROR(layers_->Attention(layer, step, kv));
  if (!downloads_.empty()) {
    RETURN_IF_ERROR(kv.Clear(layer, tails_, compute_));  // there: before its next rows are written
    // Beside this layer's experts, and the next layers.
    RETURN_IF_ERROR(Record(written_[layer], compute_));
    RETURN_IF_ERROR(WaitFor(written_[layer], copies_));
    RETURN_IF_ERROR(kv.Download(layer, downloads_, copies_));
    RETURN_IF_ERROR(Record(copied_[layer], copies_));
  }
  if (dispatcher_ != nullptr && config_.layer_is_moe[layer]) {
    return experts_.Run(layer, step, arrays_.positions);
  }
  return layers_->Ffn(layer, step);
}

absl::Status DeviceModel::Tell(int layer, LayerObserver* observer) {
  if (observer == nullptr) return absl::OkStatus();
  if (!downloads_.empty()) {
    RETURN_IF_ERROR(experts_.Await(copied_[layer]));
    RETURN_IF_ERROR(Synchronize(copied_[layer]));
  }
  observer->OnLayerWritten(layer);
  return absl::OkStatus();
}

absl::Status DeviceModel::Finish(const LayerStep& step) {
  const int rows = step.shape.logit_rows;
  if (rows == 0) return absl::OkStatus();
  const DeviceMatrix<float> logits(logits_.as<float>(), rows, config_.vocab_size);
  RETURN_IF_ERROR(layers_->Logits(step, logits));
  int32_t* const tokens = drawn_.as<int32_t>();
  float* const logprobs = reinterpret_cast<float*>(tokens + rows);
  int32_t* const ranks = reinterpret_cast<int32_t*>(logprobs + rows);
  RETURN_IF_ERROR(SampleTokens(compute_.get(), logits, step.arrays.sampling, tokens));
  return ScoreTokens(compute_.get(), logits, tokens, logprobs, ranks);
}

absl::Status DeviceModel::Compute(const LayerStep& step, DeviceKv& kv, LayerObserver* observer) {
  // Layers are launched so far ahead of the one whose bytes are waited for that the device has
  // work.
  constexpr int kAhead = 2;
  RETURN_IF_ERROR(layers_->Begin(step));
  for (int l = 0; l < config_.layers; ++l) {
    RETURN_IF_ERROR(Layer(l, step, kv));
    if (l >= kAhead) RETURN_IF_ERROR(Tell(l - kAhead, observer));
  }
  RETURN_IF_ERROR(Finish(step));
  if (dispatcher_ != nullptr) RETURN_IF_ERROR(experts_.Settle());
  for (int l = std::max(0, config_.layers - kAhead); l < config_.layers; ++l) {
    RETURN_IF_ERROR(Tell(l, observer));
  }
  return absl::OkStatus();
}

absl::Status DeviceModel::Replay(const LayerStep& step, DeviceKv& kv, LayerObserver* observer) {
  if (graphs_kv_ != &kv) graphs_.clear();
  graphs_kv_ = &kv;
  const auto [it, first] = graphs_.try_emplace(step.shape);
  // The first of a class is not recorded: kernels are loaded when they first run.
  if (first) return Compute(step, kv, observer);
  Graph& graph = it->second;
  if (!graph) {
    RETURN_IF_ERROR(BeginCapture(compute_));
    const absl::Status recorded = Compute(step, kv, nullptr);
    ASSIGN_OR_RETURN(graph, EndCapture(compute_, recorded));
  }
  RETURN_IF_ERROR(Launch(graph, compute_));
  for (int l = 0; observer != nullptr && l < config_.layers; ++l) observer->OnLayerWritten(l);
  return absl::OkStatus();
}

absl::Status DeviceModel::Collect(const ForwardBatch& batch, int drawn_rows, Matrix<float> logits) {
  const size_t vocab = config_.vocab_size;
  const auto drawn = [&](size_t i) {
    return !batch.draws.empty() && batch.draws[i].params != nullptr;
  };
  RETURN_IF_ERROR(CopyAsync(results_.data(), drawn_.data(),
                            drawn_rows * (sizeof(int32_t) + sizeof(float)), compute_));
  for (size_t i = 0; i < batch.logit_rows.size(); ++i) {
    if (drawn(i)) continue;
    RETURN_IF_ERROR(
        CopyAsync(logits.row(i), logits_.as<float>() + i * vocab, vocab * sizeof(float), compute_));
  }
  RETURN_IF_ERROR(Synchronize(compute_));
  const int32_t* const tokens = results_.as<int32_t>();
  const float* const logprobs = reinterpret_cast<const float*>(tokens + drawn_rows);
  for (size_t i = 0; i < batch.logit_rows.size(); ++i) {
    // A logit that is no number, or infinite, leaves no log-probability.
    if (drawn(i)) batch.drawn[i] = std::isfinite(logprobs[i]) ? tokens[i] : -1;
  }
  return absl::OkStatus();
}

absl::Status DeviceModel::FetchFromHost(const ForwardBatch& batch, DeviceKv& kv) {
  uploads_ = kv.image().TakeUploads(batch.sequences);
  if (uploads_.empty()) return absl::OkStatus();
  const auto upload = [&]() -> absl::Status {
    for (int l = 0; l < config_.layers; ++l) RETURN_IF_ERROR(kv.Upload(l, uploads_, copies_));
    RETURN_IF_ERROR(Record(uploaded_, copies_));
    return WaitFor(uploaded_, compute_);
  };
  const absl::Status done = upload();
  if (!done.ok()) kv.image().NotUploaded(uploads_);
  return done;
}

absl::Status DeviceModel::Forward(const ForwardBatch& batch, KvStorage& kv, LayerObserver* observer,
                                  Matrix<float> logits) {
  RETURN_IF_ERROR(CheckForward(config_, options_, batch, kv, logits));
  auto* const device = dynamic_cast<DeviceKv*>(kv.device());
  if (device == nullptr) {
    return absl::FailedPreconditionError("device cuda: the KV cache is not of this model's MakeKv");
  }
  if (options_.placement != nullptr && dispatcher_ == nullptr) {
    return absl::FailedPreconditionError("the model has a placement and no dispatcher");
  }
  if (dispatcher_ != nullptr && dispatcher_->micro_batches() != 1) {
    return absl::UnimplementedError(
        "device cuda: two micro-batches are not built; --ep-overlap off");
  }
  if (batch.tokens.empty() && dispatcher_ == nullptr) return absl::OkStatus();
  RETURN_IF_ERROR(UseDevice(options_.device_index));
  RETURN_IF_ERROR(FetchFromHost(batch, *device));
  KvImage& image = device->image();
  image.DeviceWrites(batch.sequences);
  std::vector<AttentionSequence> wanted;
  for (size_t i = 0; observer != nullptr && i < batch.sequences.size(); ++i) {
    if (observer->Reads(i)) wanted.push_back(batch.sequences[i]);
  }
  downloads_ = image.TakeDownloads(wanted);
  tails_ = TailsOf(wanted, device->addressing().block_tokens);
  const auto compute = [&]() -> absl::Status {
    if (dispatcher_ != nullptr) RETURN_IF_ERROR(experts_.Begin(*dispatcher_));
    ASSIGN_OR_RETURN(const LayerStep step, Prepare(batch, *device));
    const bool replays = Records(ShapeOf(batch)) && downloads_.empty();
    RETURN_IF_ERROR((replays ? Replay(step, *device, observer) : Compute(step, *device, observer)));
    RETURN_IF_ERROR(Collect(batch, step.shape.logit_rows, logits));
    return device->CheckUploads(uploads_);
  };
  const absl::Status done = compute();
  if (!done.ok()) {
    if (dispatcher_ != nullptr) experts_.Abandon();
    // What is under way must not land in an image's block that is another's by then.
    static_cast<void>(Synchronize(copies_));
    image.NotDownloaded(downloads_);
    image.NotUploaded(uploads_);
  }
  return done;
}

}  // namespace switchyard::cuda
