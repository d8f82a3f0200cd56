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
  if (options_.placement != nullptr) {
    RETURN_IF_ERROR(experts_.Create(config_, options_.dtype, options_.device_index, compute_));
  }
  RETURN_IF_ERROR(AddPart(0, rows));
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

absl::Status DeviceModel::AddPart(int part, int rows) {
  Part& p = parts_[part];
  ASSIGN_OR_RETURN(p.workspace, MakeWorkspace(config_, rows, &memory_));
  p.layers = std::make_unique<DeviceLayers>(config_, weights_, options_.dtype, path_, p.workspace,
                                            compute_);
  if (options_.placement == nullptr) return absl::OkStatus();
  return experts_.AddPart(part, p.workspace, *p.layers);
}

absl::StatusOr<KvStorage> DeviceModel::MakeKv(const KvLayout& layout, int blocks) {
  ASSIGN_OR_RETURN(KvStorage kv, KvStorage::Create(layout, blocks));
  ASSIGN_OR_RETURN(std::unique_ptr<DeviceKv> device, DeviceKv::Create(kv));
  graphs_.clear();  // a cache that is gone may have had the new one's address
  kv.Attach(std::move(device));
  return kv;
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

absl::Status DeviceModel::ReserveArrays(int tables) {
  const bool there = host_arrays_.size() > 0 && device_arrays_.size() > 0;
  if (there && tables <= limits_.tables) return absl::OkStatus();
  StepLimits limits = limits_;
  limits.tables = std::max(tables, limits_.tables * 2);
  const int sets = options_.placement != nullptr ? 1 + RankedExperts::kParts : 1;
  limits_.tables = 0;  // until there is room
  RETURN_IF_ERROR(Grow(sets * BytesFor(limits), &host_arrays_));
  RETURN_IF_ERROR(Grow(sets * BytesFor(limits), &device_arrays_));
  graphs_.clear();
  limits_ = limits;
  return absl::OkStatus();
}

absl::StatusOr<LayerStep> DeviceModel::Upload(const ForwardBatch& batch, const DeviceKv& kv,
                                              int set) {
  const StepShape exact = ShapeOf(batch);
  LayerStep step;
  step.shape = Records(exact)
                   ? DecodeClass(exact, options_.max_batch_tokens, options_.max_model_len)
                   : exact;
  const size_t at = set * BytesFor(limits_);
  const StepArrays here = PlaceArrays(host_arrays_.data() + at, limits_);
  step.arrays = PlaceArrays(device_arrays_.data() + at, limits_);
  step.split =
      SplitBytes(step.shape, AttentionShapeOf(config_), options_.dtype, attention_.size()) > 0;
  step.attention_workspace = attention_.data();
  FillArrays(batch, kv.addressing().block_tokens, limits_.groups, step.shape, here);
  RETURN_IF_ERROR(ForFilled(here, host_arrays_.data(), step.shape, TablesOf(batch), limits_.groups,
                            [&](size_t at, size_t bytes) {
                              return CopyAsync(device_arrays_.data() + at, host_arrays_.data() + at,
                                               bytes, compute_);
                            }));
  Part& part = parts_[std::max(set - 1, 0)];
  part.positions = here.positions;
  return part.step = step;
}

absl::StatusOr<LayerStep> DeviceModel::Prepare(const ForwardBatch& batch, const DeviceKv& kv) {
  RETURN_IF_ERROR(ReserveArrays(TablesOf(batch)));
  ASSIGN_OR_RETURN(const LayerStep whole, Upload(batch, kv, 0));
  const size_t logits = static_cast<size_t>(whole.shape.logit_rows) * config_.vocab_size;
  RETURN_IF_ERROR(Grow(logits * sizeof(float), &logits_));
  if (micro_batches_ == 1) return whole;
  const int second = std::max(1, options_.max_batch_tokens / 2);  // rows at most
  if (parts_[1].layers == nullptr) RETURN_IF_ERROR(AddPart(1, second));
  const size_t rows = batch.tokens.size(), cut = rows - rows / 2;
  std::vector<AttentionSequence> sequences;
  RETURN_IF_ERROR(Upload(RowsOfBatch(batch, 0, cut, &sequences), kv, 1).status());
  RETURN_IF_ERROR(Upload(RowsOfBatch(batch, cut, rows, &sequences), kv, 2).status());
  return whole;
}

absl::Status DeviceModel::Download(int layer, DeviceKv& kv) {
  if (downloads_.empty()) return absl::OkStatus();
  RETURN_IF_ERROR(kv.Clear(layer, tails_, compute_));  // there: before its next rows are written
  // Beside this layer's experts, and the next layers.
  RETURN_IF_ERROR(Record(written_[layer], compute_));
  RETURN_IF_ERROR(WaitFor(written_[layer], copies_));
  RETURN_IF_ERROR(kv.Download(layer, downloads_, copies_));
  return Record(copied_[layer], copies_);
}

absl::Status DeviceModel::Layer(int layer, DeviceKv& kv) {
  for (int i = 0; i < micro_batches_; ++i) {
    Part& part = parts_[i];
    // What the other ranks' experts give has travelled while the other micro-batch was computed.
    if (layer > 0 && Ranked(layer - 1)) RETURN_IF_ERROR(experts_.Sum(i));
    RETURN_IF_ERROR(part.layers->Attention(layer, part.step, kv));
    if (i + 1 == micro_batches_) RETURN_IF_ERROR(Download(layer, kv));
    RETURN_IF_ERROR(Ranked(layer) ? experts_.Open(i, layer, part.step, part.positions)
                                  : part.layers->Ffn(layer, part.step));
  }
  if (!Ranked(layer)) return absl::OkStatus();
  for (int i = 0; i < micro_batches_; ++i) RETURN_IF_ERROR(experts_.Send(i));
  for (int i = 0; i < micro_batches_; ++i) RETURN_IF_ERROR(experts_.Compute(i));
  return absl::OkStatus();
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
  const int ranked = Ranked(config_.layers - 1) ? micro_batches_ : 0;
  for (int i = 0; i < ranked; ++i) RETURN_IF_ERROR(experts_.Sum(i));
  const int rows = step.shape.logit_rows;
  if (rows == 0) return absl::OkStatus();
  const Part &first = parts_[0], &second = parts_[1];
  if (micro_batches_ > 1) {  // logits are of the step's rows, whichever half they were in
    const auto row = static_cast<size_t>(config_.hidden_size);
    RETURN_IF_ERROR(CopyAsync(first.workspace.residual + first.step.shape.rows * row,
                              second.workspace.residual,
                              second.step.shape.rows * row * sizeof(float), compute_));
  }
  const DeviceMatrix<float> logits(logits_.as<float>(), rows, config_.vocab_size);
  RETURN_IF_ERROR(first.layers->Logits(step, logits));
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
  for (int i = 0; i < micro_batches_; ++i) {
    RETURN_IF_ERROR(parts_[i].layers->Begin(parts_[i].step));
  }
  for (int l = 0; l < config_.layers; ++l) {
    RETURN_IF_ERROR(Layer(l, kv));
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
  if (batch.tokens.empty() && dispatcher_ == nullptr) return absl::OkStatus();
  micro_batches_ = dispatcher_ != nullptr ? dispatcher_->micro_batches() : 1;
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
