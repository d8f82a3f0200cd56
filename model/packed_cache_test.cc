// The weights cache: what it gives back, what it refuses, and that a model computes the same with
// it.
#include "model/packed_cache.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>
#include <xxhash.h>

#include <chrono>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <map>
#include <optional>
#include <stop_token>
#include <thread>

#include "common/net/ucx.h"
#include "model/model_testing.h"

namespace switchyard {
namespace {

namespace fs = std::filesystem;

std::string FreshFolder(const std::string& name) {
  const std::string folder = testing::TempDir() + "/" + name;
  fs::remove_all(folder);
  fs::create_directories(folder);
  return folder;
}

std::string Content(const fs::path& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

void Put(const fs::path& path, const std::string& content) {
  std::ofstream(path, std::ios::binary | std::ios::trunc) << content;
}

bool Has(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

PackedWeight Weight(size_t bytes, uint8_t first, WeightFormat format = WeightFormat::kInt8) {
  PackedWeight w{AlignedBuffer(bytes), format, 3, 5};
  for (size_t i = 0; i < bytes; ++i) w.bytes.data()[i] = static_cast<std::byte>(first + 7 * i);
  return w;
}

std::vector<PackedWeight> TwoWeights(uint8_t first = 1) {
  std::vector<PackedWeight> weights;
  weights.push_back(Weight(1000, first));
  weights.push_back(Weight(300'007, first + 1, WeightFormat::kBfloat16));
  return weights;
}

std::vector<PackedShape> ShapesOf(const std::vector<PackedWeight>& weights) {
  std::vector<PackedShape> shapes;
  for (const PackedWeight& w : weights) shapes.push_back({w.format, w.n, w.k, w.bytes.size()});
  return shapes;
}

bool Same(const std::vector<PackedWeight>& a, const std::vector<PackedWeight>& b) {
  const auto same = [](const PackedWeight& x, const PackedWeight& y) {
    return x.format == y.format && x.n == y.n && x.k == y.k && x.bytes.size() == y.bytes.size() &&
           std::memcmp(x.bytes.data(), y.bytes.data(), x.bytes.size()) == 0;
  };
  return std::equal(a.begin(), a.end(), b.begin(), b.end(), same);
}

TEST(PackedCacheTest, RemovesWhatAKilledProcessLeftUnfinished) {
  const std::string folder = FreshFolder("abandoned");
  const fs::path abandoned = folder + "/w.packed.AbCdEf", under_way = folder + "/w.packed.ghIjKl",
                 whole = folder + "/w.packed";
  for (const fs::path& path : {abandoned, under_way, whole}) Put(path, "x");
  const auto old = fs::file_time_type::clock::now() - std::chrono::hours(2);
  for (const fs::path& path : {abandoned, whole}) fs::last_write_time(path, old);
  const PackedCache cache(folder, "identity");
  EXPECT_FALSE(fs::exists(abandoned));
  EXPECT_TRUE(fs::exists(under_way));
  EXPECT_TRUE(fs::exists(whole));
}

TEST(PackedCacheTest, GivesBackWhatItWasGiven) {
  const std::string folder = FreshFolder("hit");
  const auto weights = TwoWeights();
  PackedCache writer(folder, "model a");
  EXPECT_FALSE(writer.Read("w", ShapesOf(weights)));
  writer.Write("w", weights);
  EXPECT_TRUE(Has(writer.Report(),
                  "0 files read, 1 missing (the first: w); those were packed anew "
                  "and kept"))
      << writer.Report();
  PackedCache reader(folder, "model a");
  const auto read = reader.Read("w", ShapesOf(weights));
  ASSERT_TRUE(read);
  EXPECT_TRUE(Same(*read, weights));
  EXPECT_TRUE(reader.Report().ends_with(": 1 files read")) << reader.Report();
  EXPECT_EQ(std::distance(fs::directory_iterator(folder), {}), 1) << "a temporary file is left";
}

TEST(PackedCacheTest, RefusesOtherModelsNamesAndShapes) {
  const std::string folder = FreshFolder("stale");
  const auto weights = TwoWeights();
  const auto shapes = ShapesOf(weights);
  PackedCache(folder, "model a").Write("w", weights);
  PackedCache other(folder, "model b");
  EXPECT_FALSE(other.Read("w", shapes));
  EXPECT_TRUE(Has(other.Report(), "1 of another model or release (the first: w)"))
      << other.Report();
  PackedCache same(folder, "model a");
  fs::copy(folder + "/w.packed", folder + "/v.packed");
  EXPECT_FALSE(same.Read("v", shapes));
  for (int field = 0; field < 4; ++field) {
    auto changed = shapes;
    if (field == 0) changed[0].format = WeightFormat::kInt4;
    if (field == 1) ++changed[0].n;
    if (field == 2) ++changed[1].k;
    if (field == 3) ++changed[1].bytes;
    EXPECT_FALSE(same.Read("w", changed)) << field;
  }
  EXPECT_FALSE(same.Read("w", std::span(shapes).first(1)));
  EXPECT_TRUE(Has(same.Report(), "6 of another model or release")) << same.Report();
  other.Write("w", weights);  // takes the place
  EXPECT_TRUE(other.Read("w", shapes));
  EXPECT_FALSE(same.Read("w", shapes));
}

TEST(PackedCacheTest, RefusesEveryFlippedBitAndEveryLength) {
  const std::string folder = FreshFolder("damaged"), path = folder + "/w.packed";
  std::vector<PackedWeight> weights;
  weights.push_back(Weight(100, 9));
  const auto shapes = ShapesOf(weights);
  PackedCache cache(folder, "model a");
  cache.Write("w", weights);
  const std::string whole = Content(path);
  for (size_t i = 0; i < whole.size(); ++i) {
    std::string damaged = whole;
    damaged[i] = static_cast<char>(damaged[i] ^ (1 << i % 8));
    Put(path, damaged);
    EXPECT_FALSE(cache.Read("w", shapes)) << i;
  }
  for (size_t length = 0; length < whole.size(); ++length) {
    Put(path, whole.substr(0, length));
    EXPECT_FALSE(cache.Read("w", shapes)) << length;
  }
  Put(path, whole + "x");
  EXPECT_FALSE(cache.Read("w", shapes));
  fs::remove(path);
  fs::create_directory(path);
  EXPECT_FALSE(cache.Read("w", shapes));
  EXPECT_TRUE(Has(cache.Report(), " damaged (the first: w)")) << cache.Report();
  fs::remove(path);
  Put(path, whole);
  EXPECT_TRUE(cache.Read("w", shapes));
}

// Nothing of the file stays in the page cache, where the file system has one.
void LeaveToTheDisk(const std::string& path) {
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  ASSERT_GE(fd, 0);
  EXPECT_EQ(fsync(fd), 0);
  EXPECT_EQ(posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED), 0);
  close(fd);
}

TEST(PackedCacheTest, WhatOnlyTheDiskHas) {
  const std::string folder = FreshFolder("disk"), path = folder + "/w.packed";
  std::vector<PackedWeight> weights;  // of odd sizes
  weights.push_back(Weight(5'000'007, 3));
  weights.push_back(Weight(4'000'001, 4));
  const auto shapes = ShapesOf(weights);
  PackedCache cache(folder, "model a");
  cache.Write("w", weights);
  LeaveToTheDisk(path);
  const auto read = cache.Read("w", shapes);
  ASSERT_TRUE(read);
  EXPECT_TRUE(Same(*read, weights));
  const size_t size = fs::file_size(path);
  for (const size_t damaged_at : {size_t{100}, size_t{4'200'000}, size - 1}) {
    const std::string whole = Content(path);
    std::string damaged = whole;
    damaged[damaged_at] = static_cast<char>(damaged[damaged_at] ^ 1);
    Put(path, damaged);
    LeaveToTheDisk(path);
    EXPECT_FALSE(cache.Read("w", shapes)) << damaged_at;
    Put(path, whole);
  }
  for (const size_t shorter : {size - 1, size_t{8192}}) {
    fs::resize_file(path, shorter);
    LeaveToTheDisk(path);
    EXPECT_FALSE(cache.Read("w", shapes)) << shorter;
  }
}

// A read of what is still the file's would end the process once it is cut short.
TEST(PackedCacheTest, MovesToMemoryOfItsOwnWhileItIsRead) {
  const auto ucx = UcxContext::Create({});  // replaces libc's functions for mappings
  ASSERT_TRUE(ucx.ok()) << ucx.status();
  const std::string folder = FreshFolder("moved");
  std::vector<PackedWeight> large, small;
  large.push_back(Weight(5'000'007, 3));
  large.push_back(Weight(4'000'001, 4));
  small.push_back(Weight(300'007, 5));
  PackedCache cache(folder, "model a");
  cache.Write("large", large);
  cache.Write("small", small);
  (void)cache.Read("large", ShapesOf(large));  // and goes again
  const auto first = cache.Read("large", ShapesOf(large)),
             second = cache.Read("large", ShapesOf(large)),
             kept = cache.Read("small", ShapesOf(small));
  ASSERT_TRUE(first && second && kept);
  const size_t size = fs::file_size(folder + "/large.packed");
  const size_t to_move = PackedFile::Moves(size) ? 2 * size : 0;
  std::jthread reader([&](const std::stop_token& stop) {
    while (!stop.stop_requested()) EXPECT_TRUE(Same(*first, large));
  });
  cache.MoveToHugePages();
  const auto until = std::chrono::steady_clock::now() + std::chrono::seconds(60);
  while (cache.bytes_moved() < to_move && std::chrono::steady_clock::now() < until) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  reader.request_stop();
  reader.join();
  ASSERT_EQ(cache.bytes_moved(), to_move);
  for (const char* name : {"/large.packed", "/small.packed"}) fs::resize_file(folder + name, 0);
  EXPECT_TRUE(Same(*first, large));
  EXPECT_TRUE(Same(*second, large));
  EXPECT_TRUE(Same(*kept, small));
}

TEST(PackedCacheTest, AnEndWhileItMovesLeavesTheWeights) {
  const std::string folder = FreshFolder("end");
  std::vector<PackedWeight> weights;
  weights.push_back(Weight(30'000'007, 3));
  std::optional<PackedCache> cache(std::in_place, folder, "model a");
  cache->Write("w", weights);
  const auto read = cache->Read("w", ShapesOf(weights));
  ASSERT_TRUE(read);
  cache->MoveToHugePages();
  cache.reset();
  EXPECT_TRUE(Same(*read, weights));
}

TEST(PackedCacheTest, AFullDiskIsNoFailure) {
  const std::string folder = FreshFolder("full");
  const auto weights = TwoWeights();
  PackedCache cache(folder, "model a");
  // Files end at 100,000 bytes, as on a disk without room for more.
  rlimit before;
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &before), 0);
  const auto old_handler = signal(SIGXFSZ, SIG_IGN);
  const rlimit small = {100'000, before.rlim_max};
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &small), 0);
  cache.Write("w", weights);
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &before), 0);
  signal(SIGXFSZ, old_handler);
  EXPECT_TRUE(Has(cache.Report(), "cannot keep more: " + folder + "/w.packed: ")) << cache.Report();
  EXPECT_TRUE(fs::is_empty(folder)) << "a part is left";
  cache.Write("w", weights);
  EXPECT_TRUE(fs::is_empty(folder)) << "it has not given up";
  PackedCache gone(folder + "/none", "model a");
  gone.Write("w", weights);
  EXPECT_TRUE(Has(gone.Report(), "cannot keep more")) << gone.Report();
}

TEST(PackedCacheTest, TwoProcessesAtOnce) {
  const std::string folder = FreshFolder("two");
  const auto weights = TwoWeights();
  const auto shapes = ShapesOf(weights);
  const pid_t child = fork();
  PackedCache cache(folder, "model a");
  int read = 0, wrong = 0;
  for (int i = 0; i < 30; ++i) {
    if (const auto found = cache.Read("w", shapes)) ++read, wrong += !Same(*found, weights);
    cache.Write("w", weights);
  }
  // Missing once at most: what is there is always whole.
  const bool good = wrong == 0 && read >= 29 && !Has(cache.Report(), "damaged");
  if (child == 0) _exit(good ? 0 : 1);
  EXPECT_TRUE(good) << cache.Report();
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
  EXPECT_EQ(std::distance(fs::directory_iterator(folder), {}), 1) << "a temporary file is left";
}

// ---- With a model ----

struct Loaded {
  std::unique_ptr<Model> model;
  std::vector<float> logits;
  std::string report;
};

Loaded Load(const Case& c, const std::string& folder) {
  ModelOptions options;
  options.kernels = c.kernels;
  options.dtype = c.dtype;
  options.quantization = c.quantization;
  options.mla = c.mla;
  options.threads = 2;
  options.weights_cache = folder;
  auto model = Model::Load(c.dir, options);
  SY_CHECK_MSG(model.ok(), model.status().ToString());
  Loaded out{*std::move(model), {}, {}};
  std::mt19937 rng(5);
  const auto tokens = RandomTokens(rng, 20, out.model->config().vocab_size);
  const auto blocks = Blocks(0, 2);
  Bench bench(*out.model, 2);
  out.logits = bench.Run(std::vector<Bench::Part>{{tokens, 0, blocks}});
  if (!out.model->notices().empty()) out.report = out.model->notices().back();
  return out;
}

class CachedModelTest : public testing::TestWithParam<Case> {};

TEST_P(CachedModelTest, SameBitsWithAndWithout) {
  const Case& c = GetParam();
  const std::string folder = FreshFolder("model_" + CaseName({c, 0}));
  const Loaded plain = Load(c, ""), cold = Load(c, folder), warm = Load(c, folder);
  EXPECT_TRUE(SameBits(cold.logits, plain.logits));
  EXPECT_TRUE(SameBits(warm.logits, plain.logits));
  EXPECT_TRUE(Has(cold.report, ": 0 files read")) << cold.report;
  EXPECT_FALSE(Has(warm.report, "missing")) << warm.report;
  EXPECT_FALSE(Has(warm.report, ": 0 files read")) << warm.report;
  // Experts alone, as a rank that takes one over reads them.
  const auto source = warm.model->OpenExperts(), other = plain.model->OpenExperts();
  ASSERT_TRUE(source.ok() && other.ok());
  const auto expert = (*source)->Load({1, 2}), wanted = (*other)->Load({1, 2});
  ASSERT_TRUE(expert.ok() && wanted.ok());
  EXPECT_EQ(BytesOf(*expert), BytesOf(*wanted));
  EXPECT_EQ(
      std::memcmp(expert->down.bytes.data(), wanted->down.bytes.data(), wanted->down.bytes.size()),
      0);
}

INSTANTIATE_TEST_SUITE_P(
    All, CachedModelTest,
    testing::Values(Case{kV3, "auto", DType::kBfloat16}, Case{kV3, "reference", DType::kFloat32},
                    Case{kQwen3, "auto", DType::kBfloat16},
                    Case{kQwen3, "reference", DType::kBfloat16, WeightFormat::kInt4},
                    Case{kV3Fp8, "auto", DType::kBfloat16, WeightFormat::kInt8}),
    CaseName);

TEST(CachedModelTest, DamageIsMendedAndAnotherPathTakesThePlace) {
  const Case c{kQwen3, "reference", DType::kBfloat16};
  const std::string folder = FreshFolder("mended");
  const Loaded first = Load(c, folder);
  std::map<fs::path, std::string> files;
  for (const auto& entry : fs::directory_iterator(folder)) {
    files[entry.path()] = Content(entry.path());
  }
  int i = 0;
  for (const auto& [path, content] : files) {
    std::string damaged = content;
    damaged[damaged.size() / 2] ^= 4;
    if (++i % 5 == 0) Put(path, damaged);
  }
  const Loaded mended = Load(c, folder);
  EXPECT_TRUE(SameBits(mended.logits, first.logits));
  EXPECT_TRUE(Has(mended.report, absl::StrCat(" ", files.size() / 5, " damaged"))) << mended.report;
  for (const auto& [path, content] : files) EXPECT_TRUE(Content(path) == content) << path;
  const Loaded wide = Load({kQwen3, "reference", DType::kFloat32}, folder);
  EXPECT_TRUE(SameBits(wide.logits, Load({kQwen3, "reference", DType::kFloat32}, "").logits));
  EXPECT_TRUE(Has(wide.report, absl::StrCat(" ", files.size(), " of another model or release")))
      << wide.report;
}

// The form of MLA adds weights and changes none.
TEST(CachedModelTest, BothFormsOfMlaShareAFolder) {
  const Case absorbed{kV3, "auto", DType::kBfloat16};
  Case expanded = absorbed;
  expanded.mla = MlaForms::kAuto;
  const std::string folder = FreshFolder("forms");
  const Loaded first = Load(absorbed, folder), second = Load(expanded, folder),
               third = Load(expanded, folder), again = Load(absorbed, folder);
  const int layers = first.model->config().layers;
  EXPECT_TRUE(Has(second.report, absl::StrCat(" ", layers, " missing"))) << second.report;
  for (const Loaded* l : {&third, &again}) {
    EXPECT_FALSE(Has(l->report, "missing") || Has(l->report, "another")) << l->report;
  }
  EXPECT_TRUE(SameBits(second.logits, Load(expanded, "").logits));
  EXPECT_TRUE(SameBits(second.logits, third.logits));
  EXPECT_TRUE(SameBits(first.logits, again.logits));
}

// ---- The layout ----

// Files of one release are read by the next. If a sum differs because the packed form has changed,
// raise kLayout in packed_cache.cc.
TEST(PackedLayoutTest, IsThatOfTheNumberInTheFiles) {
  std::vector<float> w(100 * 150);
  for (size_t i = 0; i < w.size(); ++i) {
    w[i] = static_cast<float>(static_cast<int>(i * 2654435761u >> 8 & 0xffff) - 0x8000) * 0x1p-12f;
  }
  const WeightView view{w.data(), DType::kFloat32, 100, 150};
  const WeightView down{w.data(), DType::kFloat32, 150, 100};
  const std::map<std::string, uint64_t> sums = {
      {"reference float32", 3403359438004297985u},
      {"reference bfloat16", 13181718832417019363u},
      {"reference int8", 6043626093623860468u},
      {"reference int4", 2117637174428554453u},
      {"avx2 float32", 10731313005744360995u},
      {"avx2 bfloat16", 15431807769481869566u},
      {"avx2 int8", 13835870179834136902u},
      {"avx2 int4", 11691121611706939953u},
      {"avx512 float32", 12713852756056012670u},
      {"avx512 bfloat16", 15035894957470022699u},
      {"avx512 int8", 15696238763398601716u},
      {"avx512 int4", 7074082869510889223u},
      {"avx512_vnni float32", 12713852756056012670u},
      {"avx512_vnni bfloat16", 15035894957470022699u},
      {"avx512_vnni int8", 15602758800080693257u},
      {"avx512_vnni int4", 7221146762921441632u},
      {"avx512_bf16 float32", 12713852756056012670u},
      {"avx512_bf16 bfloat16", 15035894957470022699u},
      {"avx512_bf16 int8", 15602758800080693257u},
      {"avx512_bf16 int4", 7221146762921441632u},
  };
  for (const KernelSet& set : AvailableKernels()) {
    for (const WeightFormat format : {WeightFormat::kFloat32, WeightFormat::kBfloat16,
                                      WeightFormat::kInt8, WeightFormat::kInt4}) {
      const PackedWeight one = set.gemm->Pack(view, format);
      const PackedExpert expert = set.grouped_gemm->PackExpert(view, view, down, format);
      EXPECT_EQ(one.bytes.size(), set.gemm->PackedBytes(format, 100, 150));
      EXPECT_EQ(expert.gate_up.n, set.grouped_gemm->GateUpRows(100));
      EXPECT_EQ(expert.gate_up.bytes.size(),
                set.gemm->PackedBytes(format, expert.gate_up.n, expert.gate_up.k));
      uint64_t sum = 0;
      for (const PackedWeight* p : {&one, &expert.gate_up, &expert.down}) {
        sum = XXH3_64bits_withSeed(p->bytes.data(), p->bytes.size(), sum);
      }
      const std::string name = absl::StrCat(set.name, " ", std::string(Name(format)));
      const auto pinned = sums.find(name);
      EXPECT_TRUE(pinned != sums.end() && pinned->second == sum)
          << "{\"" << name << "\", " << sum << "u},";
    }
  }
}

}  // namespace
}  // namespace switchyard
