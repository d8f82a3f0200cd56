#include "model/safetensors.h"

#include <gtest/gtest.h>

#include <cstring>
#include <fstream>
#include <random>

namespace switchyard {
namespace {

std::string FileOf(const std::string& header, size_t data_bytes) {
  const uint64_t length = header.size();
  std::string out(sizeof(length), '\0');
  std::memcpy(out.data(), &length, sizeof(length));
  out += header;
  for (size_t i = 0; i < data_bytes; ++i) out += static_cast<char>(i);
  return out;
}

absl::StatusOr<SafetensorsHeader> Parse(const std::string& file) {
  return ParseSafetensors(std::as_bytes(std::span(file)), "f");
}

constexpr char kGood[] =
    R"({"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]},)"
    R"("b":{"dtype":"BF16","shape":[4],"data_offsets":[24,32]},)"
    R"("scalar":{"dtype":"I64","shape":[],"data_offsets":[32,40]},)"
    R"("none":{"dtype":"F32","shape":[0,7],"data_offsets":[40,40]}})";

TEST(SafetensorsTest, ReadsNamesShapesAndOffsets) {
  const auto h = Parse(FileOf(kGood, 40));
  ASSERT_TRUE(h.ok()) << h.status();
  EXPECT_EQ(h->tensors.size(), 4u);
  EXPECT_EQ(h->tensors.at("a").shape, (std::vector<uint64_t>{2, 3}));
  EXPECT_EQ(h->tensors.at("b").begin, 24u);
  EXPECT_EQ(h->data_begin, 8 + std::strlen(kGood));
}

TEST(SafetensorsTest, RefusesTensorsThatDoNotFit) {
  const std::pair<const char*, const char*> cases[] = {
      {R"("dtype":"F32","shape":[2,3],"data_offsets":[0,20])", "shape"},
      {R"("dtype":"F32","shape":[2,3],"data_offsets":[0,28])", "shape"},
      {R"("dtype":"F32","shape":[2,3],"data_offsets":[24,0])", "data_offsets"},
      {R"("dtype":"F32","shape":[2,3],"data_offsets":[20,44])", "data_offsets"},
      {R"("dtype":"F32","shape":[2,3],"data_offsets":[-24,0])", "data_offsets"},
      {R"("dtype":"F32","shape":[2,3],"data_offsets":[0,24,48])", "data_offsets"},
      {R"("dtype":"F32","shape":[2,3],"data_offsets":24)", "data_offsets"},
      {R"("dtype":"F32","shape":[2,-3],"data_offsets":[0,24])", "shape"},
      {R"("dtype":"F32","shape":[2,3.0],"data_offsets":[0,24])", "shape"},
      {R"("dtype":"F32","shape":"x","data_offsets":[0,24])", "shape"},
      // 2^62 · 4 and 2^32 · 2^32 are 0 in 64 bits.
      {R"("dtype":"F32","shape":[4611686018427387904],"data_offsets":[0,0])", "shape"},
      {R"("dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0])", "shape"},
      {R"("dtype":"F32","shape":[18446744073709551616],"data_offsets":[0,0])", "shape"},
      {R"("dtype":"F32","data_offsets":[0,24])", "shape"},
      {R"("dtype":"F32","shape":[2,3])", "data_offsets"},
      {R"("dtype":"Q4","shape":[2,3],"data_offsets":[0,24])", "Q4"},
      {R"("dtype":3,"shape":[2,3],"data_offsets":[0,24])", "dtype"},
  };
  for (const auto& [entry, named] : cases) {
    const auto h = Parse(FileOf(std::string("{\"a\":{") + entry + "}}", 40));
    ASSERT_EQ(h.status().code(), absl::StatusCode::kInvalidArgument) << entry;
    EXPECT_NE(h.status().message().find("f: a: "), std::string::npos) << h.status();
    EXPECT_NE(h.status().message().find(named), std::string::npos) << h.status();
  }
}

TEST(SafetensorsTest, RefusesHeadersThatLie) {
  EXPECT_EQ(Parse("").status().code(), absl::StatusCode::kDataLoss);
  for (const uint64_t length : {uint64_t{100'000'001}, UINT64_MAX, UINT64_MAX - 7}) {
    std::string file = FileOf("{}", 0);
    std::memcpy(file.data(), &length, sizeof(length));
    EXPECT_EQ(Parse(file).status().code(), absl::StatusCode::kInvalidArgument);
  }
  const std::string entry = R"("a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]})";
  EXPECT_FALSE(Parse(FileOf("{" + entry + "," + entry + "}", 1)).ok());
  EXPECT_FALSE(Parse(FileOf("[]", 0)).ok());
  EXPECT_FALSE(Parse(FileOf("{\"a\":[]}", 0)).ok());
  EXPECT_FALSE(Parse(FileOf(std::string(100000, '['), 0)).ok());
}

TEST(SafetensorsTest, ACutFileIsRefusedAtEveryLength) {
  const std::string whole = FileOf(kGood, 40);
  for (size_t n = 0; n < whole.size(); ++n) EXPECT_FALSE(Parse(whole.substr(0, n)).ok()) << n;
}

// A flipped bit is refused, or leaves tensors that lie in the file.
TEST(SafetensorsTest, FlippedBitsNeverPointOutside) {
  const uint32_t seed = 31;
  SCOPED_TRACE(seed);
  std::mt19937 rng(seed);
  int accepted = 0;
  for (int round = 0; round < 20000; ++round) {
    std::string file = FileOf(kGood, 40);
    const size_t flips = 1 + rng() % 3;
    for (size_t i = 0; i < flips; ++i) {
      file[rng() % (8 + std::strlen(kGood))] ^= static_cast<char>(1 << rng() % 8);
    }
    const auto h = Parse(file);
    if (!h.ok()) continue;
    ++accepted;
    ASSERT_LE(h->data_begin, file.size());
    for (const auto& [name, t] : h->tensors) {
      ASSERT_LE(t.begin, t.end);
      ASSERT_LE(t.end, file.size() - h->data_begin);
    }
  }
  EXPECT_GT(accepted, 0);  // flips in names, mostly
}

class CheckpointTest : public testing::Test {
 protected:
  void SetUp() override {
    dir_ = testing::TempDir() + "/checkpoint";
    ASSERT_EQ(0, system(("rm -rf " + dir_ + " && mkdir -p " + dir_).c_str()));
  }
  void Write(const std::string& name, const std::string& content) {
    std::ofstream(dir_ + "/" + name, std::ios::binary) << content;
  }
  static std::string Shard(const std::string& tensor) {
    return FileOf("{\"" + tensor + R"(":{"dtype":"F32","shape":[1,2],"data_offsets":[0,8]}})", 8);
  }
  std::string dir_;
};

constexpr std::string_view kFloats[] = {"F32", "BF16"};

TEST_F(CheckpointTest, FindsTensorsInShards) {
  Write("s1.safetensors", Shard("a"));
  Write("s2.safetensors", Shard("b"));
  Write("model.safetensors.index.json",
        R"({"metadata":{},"weight_map":{"a":"s1.safetensors","b":"s2.safetensors"}})");
  const auto c = Checkpoint::Open(dir_);
  ASSERT_TRUE(c.ok()) << c.status();
  const uint64_t shape[] = {1, 2};
  const auto b = c->Get("b", shape, kFloats);
  ASSERT_TRUE(b.ok()) << b.status();
  EXPECT_EQ(b->bytes.size(), 8u);
  EXPECT_EQ(b->bytes[7], std::byte{7});
}

TEST_F(CheckpointTest, ErrorsNameTensorWantedFoundAndFile) {
  Write("model.safetensors", FileOf(kGood, 40));
  const auto c = Checkpoint::Open(dir_);
  ASSERT_TRUE(c.ok()) << c.status();
  const uint64_t shape[] = {3, 2};
  const auto named = [](const absl::Status& s, std::initializer_list<const char*> parts) {
    for (const char* part : parts) {
      EXPECT_NE(s.message().find(part), std::string::npos) << part << " in " << s;
    }
  };
  named(c->Get("a", shape, kFloats).status(), {"model.safetensors", "a", "[2, 3]", "[3, 2]"});
  named(c->Get("scalar", kFloats).status(), {"model.safetensors", "scalar", "I64", "F32, BF16"});
  EXPECT_EQ(c->Get("zzz", kFloats).status().code(), absl::StatusCode::kNotFound);
  named(c->Get("zzz", kFloats).status(), {dir_.c_str(), "zzz"});
}

TEST_F(CheckpointTest, RefusesIndexesThatLie) {
  Write("s1.safetensors", Shard("a"));
  Write("s2.safetensors", Shard("a"));
  for (const char* index : {
           R"({"weight_map":{"a":"../s1.safetensors"}})",
           R"({"weight_map":{"a":"/etc/passwd"}})",
           R"({"weight_map":{"a":""}})",
           R"({"weight_map":{"a":7}})",
           R"({"weight_map":{"b":"s1.safetensors"}})",
           R"({"weight_map":{"a":"s1.safetensors","b":"s2.safetensors"}})",
           R"({"weight_map":{"a":"missing.safetensors"}})",
           R"({"weight_map":[]})",
           R"({})",
           "",
       }) {
    Write("model.safetensors.index.json", index);
    EXPECT_FALSE(Checkpoint::Open(dir_).ok()) << index;
  }
}

}  // namespace
}  // namespace switchyard
