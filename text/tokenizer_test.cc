#include "text/tokenizer.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <random>

#include "common/file.h"
#include "text/regex.h"
#include "text/utf8.h"

namespace switchyard {
namespace {

using nlohmann::json;

constexpr char kGoldens[] = "tests/data/goldens/tokenizers/";

std::string ReadOrDie(const std::string& path) {
  auto content = ReadFile(path, 64 << 20);
  EXPECT_TRUE(content.ok()) << content.status();
  return content.ok() ? *content : "";
}

json GoldenJson(const std::string& name) {
  return json::parse(ReadOrDie(kGoldens + name + ".tokenizer.json"));
}

std::unique_ptr<Tokenizer> ParseOrDie(const json& definition) {
  auto tokenizer = Tokenizer::Parse(definition.dump());
  EXPECT_TRUE(tokenizer.ok()) << tokenizer.status();
  return tokenizer.ok() ? *std::move(tokenizer) : nullptr;
}

std::vector<TokenId> EncodeOrDie(const Tokenizer& tokenizer, std::string_view text) {
  auto ids = tokenizer.Encode(text, false);
  EXPECT_TRUE(ids.ok()) << ids.status();
  return ids.ok() ? *ids : std::vector<TokenId>();
}

std::string StreamAll(const Tokenizer& tokenizer, std::span<const TokenId> ids, bool skip) {
  DetokenizerStream stream(&tokenizer, skip);
  std::string text;
  for (TokenId id : ids) {
    const std::string piece = stream.Push(id);
    EXPECT_EQ(FindInvalidUtf8(piece), std::string::npos);
    text += piece;
  }
  return text + stream.Finish();
}

class GoldenTokenizerTest : public testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    auto loaded = Tokenizer::Load(kGoldens + std::string(GetParam()) + ".tokenizer.json");
    ASSERT_TRUE(loaded.ok()) << loaded.status();
    tokenizer_ = *std::move(loaded);
  }
  std::unique_ptr<Tokenizer> tokenizer_;
};

TEST_P(GoldenTokenizerTest, EncodesAndDecodesAsTheReference) {
  const json vectors = json::parse(ReadOrDie(kGoldens + std::string(GetParam()) + ".vectors.json"));
  ASSERT_EQ(vectors.size(), 400u);
  for (const json& v : vectors) {
    const auto text = v["text"].get<std::string>();
    const auto ids = v["ids"].get<std::vector<TokenId>>();
    EXPECT_EQ(*tokenizer_->Encode(text, true), ids) << text;
    EXPECT_EQ(*tokenizer_->Encode(text, false), v["ids_no_special"].get<std::vector<TokenId>>())
        << text;
    EXPECT_EQ(*tokenizer_->Decode(ids, true), v["decoded"].get<std::string>());
    EXPECT_EQ(*tokenizer_->Decode(ids, false), v["decoded_keep_special"].get<std::string>());
    EXPECT_EQ(StreamAll(*tokenizer_, ids, true), v["decoded"].get<std::string>());
  }
}

// Random ids make every kind of broken UTF-8.
TEST_P(GoldenTokenizerTest, StreamedPiecesAreTheDecodedText) {
  const unsigned seed = GTEST_FLAG_GET(random_seed);
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937 rng(seed);
  for (int round = 0; round < 500; ++round) {
    std::vector<TokenId> ids(rng() % 60);
    // Half of the rounds draw from the low ids, where the single bytes and special tokens are.
    const int range = round % 2 ? 270 : tokenizer_->vocab_size();
    for (TokenId& id : ids) id = rng() % range;
    for (bool skip : {false, true}) {
      EXPECT_EQ(StreamAll(*tokenizer_, ids, skip), *tokenizer_->Decode(ids, skip));
    }
  }
}

TEST_P(GoldenTokenizerTest, OneMegabyteWordIsNotQuadratic) {
  std::string word;
  while (word.size() < 1 << 20) word += "the";
  const std::vector<TokenId> ids = EncodeOrDie(*tokenizer_, word);
  EXPECT_LT(ids.size(), word.size());
  EXPECT_EQ(*tokenizer_->Decode(ids, true), word);
}

TEST_P(GoldenTokenizerTest, RefusesBrokenTextAndUnknownIds) {
  const auto status = tokenizer_->Encode("abc\xff", false).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_NE(status.message().find("byte 3"), absl::string_view::npos) << status;
  for (TokenId id : {-1, tokenizer_->vocab_size()}) {
    EXPECT_EQ(tokenizer_->Decode(std::vector<TokenId>{id}, true).status().code(),
              absl::StatusCode::kInvalidArgument);
    EXPECT_EQ(tokenizer_->TokenBytes(id), "");
    EXPECT_FALSE(tokenizer_->IsSpecial(id));
  }
}

// transformers 5.23 takes no heed of add_bos_token and add_eos_token where there is a
// tokenizer.json, whichever class the other file names: its ids are then those of the vectors, and
// without a post-processor those that have nothing added.
TEST_P(GoldenTokenizerTest, TokenizerConfigAddsNothing) {
  const json vectors = json::parse(ReadOrDie(kGoldens + std::string(GetParam()) + ".vectors.json"));
  json definition = GoldenJson(GetParam());
  const std::string dir = testing::TempDir() + "/bos_" + GetParam();
  std::filesystem::create_directories(dir);
  for (const char* ids : {"ids", "ids_no_special"}) {
    for (const bool add : {false, true}) {
      std::ofstream(dir + "/tokenizer.json") << definition;
      std::ofstream(dir + "/tokenizer_config.json")
          << json{{"tokenizer_class", "LlamaTokenizerFast"},
                  {"bos_token", "<s>"},
                  {"add_bos_token", add},
                  {"eos_token", "</s>"},
                  {"add_eos_token", add}};
      const auto tokenizer = Tokenizer::Load(dir);
      ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
      for (int i = 0; i < 20; ++i) {
        EXPECT_EQ(*(*tokenizer)->Encode(vectors[i]["text"].get<std::string>(), true),
                  vectors[i][ids].get<std::vector<TokenId>>());
      }
    }
    definition["post_processor"] = nullptr;
  }
}

INSTANTIATE_TEST_SUITE_P(All, GoldenTokenizerTest,
                         testing::Values("qwen", "deepseek", "gpt2", "mixtral"),
                         [](const auto& info) { return std::string(info.param); });

TEST(TokenizerTest, LoadsFromADirectory) {
  auto tokenizer = Tokenizer::Load("models/fables-7m");
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  const std::string text = "Once upon a time, there were 1234 hens.\n\nThe end \xf0\x9f\x90\x94";
  const auto ids = (*tokenizer)->Encode(text, true);
  ASSERT_TRUE(ids.ok());
  EXPECT_EQ(ids->front(), 0);
  EXPECT_TRUE((*tokenizer)->IsSpecial(0));
  EXPECT_EQ(*(*tokenizer)->Decode(*ids, true), text);
  EXPECT_EQ(Tokenizer::Load("models/none").status().code(), absl::StatusCode::kNotFound);
}

json AddedToken(int id, const char* content) {
  return {{"id", id},        {"content", content},  {"single_word", false}, {"lstrip", false},
          {"rstrip", false}, {"normalized", false}, {"special", false}};
}

// The answers in the tests below are those of Hugging Face's tokenizers 0.23.
TEST(TokenizerTest, AddedTokensStripAndStandAlone) {
  json definition = GoldenJson("deepseek");
  json stripping = AddedToken(2000, "@@");
  stripping["lstrip"] = stripping["rstrip"] = true;
  definition["added_tokens"] = {stripping, AddedToken(2001, " \n")};
  auto tokenizer = ParseOrDie(definition);
  ASSERT_NE(tokenizer, nullptr);
  EXPECT_EQ(EncodeOrDie(*tokenizer, "a  @@  \nb\u3000@@\u200bc"),
            (std::vector<TokenId>{68, 2000, 2001, 69, 2000, 1353, 237, 70}));
  EXPECT_EQ(tokenizer->vocab_size(), 2002);

  tokenizer = ParseOrDie(GoldenJson("deepseek"));  // 2000: "hello world", single_word
  EXPECT_EQ(EncodeOrDie(*tokenizer, "hello world"), std::vector<TokenId>{2000});
  for (const char* text : {"hello worlds", "hello world_", "hello world中", "éhello world"}) {
    for (TokenId id : EncodeOrDie(*tokenizer, text)) EXPECT_NE(id, 2000) << text;
  }
}

// As `tokenizers` 0.23.3: what Prepend puts in stems from the first character, so that the word
// behind it, cut off by Digits, is a first one too.
TEST(TokenizerTest, FirstWordsAreThoseThatStemFromTheFirstCharacter) {
  json definition = GoldenJson("mixtral");
  definition["normalizer"] = {{"type", "Prepend"}, {"prepend", "▁"}};
  definition["pre_tokenizer"] = {{"type", "Sequence"},
                                 {"pretokenizers",
                                  {{{"type", "Digits"}, {"individual_digits", false}},
                                   {{"type", "Metaspace"},
                                    {"replacement", "▁"},
                                    {"prepend_scheme", "first"},
                                    {"split", false}}}}};
  const auto tokenizer = ParseOrDie(definition);
  using Ids = std::vector<TokenId>;
  EXPECT_EQ(*tokenizer->Encode("1 2", false), (Ids{364, 364, 270, 364, 271}));
  EXPECT_EQ(*tokenizer->Encode("a1", false), (Ids{381, 270}));
}

TEST(TokenizerTest, SpaceThatAnEarlierTokenTookIsNoTokenAnyMore) {
  json definition = GoldenJson("gpt2");
  const json& vocab = definition["model"]["vocab"];
  auto id = static_cast<int>(vocab.size());
  for (const json& token : definition["added_tokens"]) {
    id += !vocab.contains(token["content"].get<std::string>());
  }
  json stripping = AddedToken(id, "<x>"), space = AddedToken(id + 1, "\n\n");
  stripping["rstrip"] = space["lstrip"] = space["rstrip"] = true;
  definition["added_tokens"].push_back(stripping);
  definition["added_tokens"].push_back(space);
  const auto ids = ParseOrDie(definition)->Encode("<x>\n\n", false);
  ASSERT_TRUE(ids.ok()) << ids.status();
  EXPECT_EQ(*ids, std::vector<TokenId>{id});
}

TEST(TokenizerTest, TextsOfSoManyBytesHaveSoManyTokens) {
  EXPECT_GT(ParseOrDie(GoldenJson("gpt2"))->bytes_per_token_max(), 1u);
  const auto mixtral = ParseOrDie(GoldenJson("mixtral"));
  const size_t per_token = mixtral->bytes_per_token_max();
  ASSERT_GT(per_token, 1u);
  const std::string text(per_token * 10 + 1, 'e');
  EXPECT_GT(EncodeOrDie(*mixtral, text).size(), 10u);
  json removing = GoldenJson("mixtral");
  removing["normalizer"] = {{"type", "Replace"}, {"pattern", {{"String", "ab"}}}, {"content", "c"}};
  EXPECT_EQ(ParseOrDie(removing)->bytes_per_token_max(), 0u);
}

TEST(TokenizerTest, MergesMayBeStringsToo) {
  json definition = GoldenJson("gpt2");
  const auto expected = EncodeOrDie(*ParseOrDie(definition), "The quick brown fox");
  for (json& merge : definition["model"]["merges"]) {
    merge = merge[0].get<std::string>() + " " + merge[1].get<std::string>();
  }
  EXPECT_EQ(EncodeOrDie(*ParseOrDie(definition), "The quick brown fox"), expected);
}

TEST(TokenizerTest, IgnoreMergesTakesWholeWords) {
  json definition = GoldenJson("gpt2");
  definition["model"]["merges"] = json::array();
  const size_t letters = EncodeOrDie(*ParseOrDie(definition), "the").size();
  definition["model"]["ignore_merges"] = true;
  EXPECT_EQ(letters, 3u);
  EXPECT_EQ(EncodeOrDie(*ParseOrDie(definition), "the").size(), 1u);
}

TEST(TokenizerTest, ByteRunsAreTextOnlyAsAWhole) {
  const auto tokenizer = ParseOrDie(GoldenJson("mixtral"));
  const auto byte = [](int b) { return TokenId{3 + b}; };
  const std::vector<TokenId> good = {byte(0xe4), byte(0xbd), byte(0xa0)};
  std::vector<TokenId> bad = good;
  bad.push_back(byte(0xe4));
  EXPECT_EQ(*tokenizer->Decode(good, true), "你");
  EXPECT_EQ(*tokenizer->Decode(bad, true), "\uFFFD\uFFFD\uFFFD\uFFFD");
  EXPECT_EQ(*tokenizer->Decode(std::vector<TokenId>{364, 1, 364}, true), " ");
  EXPECT_EQ(*tokenizer->Decode(std::vector<TokenId>{364, 1, 364}, false), "<s> ");
}

TEST(TokenizerTest, RefusalsNameTheComponentAndItsValue) {
  const auto expect_refused = [](const char* pointer, const json& value, const char* named) {
    json definition = GoldenJson("qwen");
    definition[json::json_pointer(pointer)] = value;
    const auto status = Tokenizer::Parse(definition.dump()).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << pointer;
    EXPECT_NE(status.message().find(named), absl::string_view::npos) << status;
  };
  expect_refused("/normalizer", {{"type", "Lowercase"}}, "normalizer: type 'Lowercase'");
  expect_refused("/pre_tokenizer", {{"type", "BertPreTokenizer"}}, "'BertPreTokenizer'");
  expect_refused("/post_processor", {{"type", "BertProcessing"}}, "'BertProcessing'");
  expect_refused("/decoder", {{"type", "WordPiece"}}, "'WordPiece'");
  expect_refused("/model/type", "Unigram", "model: type 'Unigram'");
  expect_refused("/model/dropout", 0.1, "dropout");
  expect_refused("/model/vocab/the", -1, "'the'");
  expect_refused("/model/vocab/the", 1 << 30, "'the'");
  expect_refused("/model/merges/0", "x", "merge 0");
  expect_refused("/model/merges/0", {"x", "no such token"}, "merge 0");
  expect_refused("/added_tokens/0/id", 77, "has id 77");
  expect_refused("/pre_tokenizer/pretokenizers/0/pattern/Regex", "(", "regex '('");
  expect_refused("/pre_tokenizer/pretokenizers/0/behavior", "Sometimes", "'Sometimes'");
  for (const char* text : {"", "{", "[]", "{}", "null", "{\"model\":[]}"}) {
    EXPECT_EQ(Tokenizer::Parse(text).status().code(), absl::StatusCode::kInvalidArgument) << text;
  }
}

std::vector<std::string> SplitWords(const json& pre_tokenizer, const std::string& text) {
  // This model joins equal neighbours, so that only word boundaries keep them apart.
  json vocab, merges = json::array();
  for (int n = 0; n < 4; ++n) {
    for (char c : std::string("ab1 ")) vocab[std::string(1 << n, c)] = vocab.size();
  }
  for (int n = 0; n < 3; ++n) {
    for (char c : std::string("ab1 ")) {
      merges.push_back({std::string(1 << n, c), std::string(1 << n, c)});
    }
  }
  const auto tokenizer =
      ParseOrDie({{"pre_tokenizer", pre_tokenizer},
                  {"decoder", {{"type", "Fuse"}}},
                  {"model", {{"type", "BPE"}, {"vocab", vocab}, {"merges", merges}}}});
  std::vector<std::string> words;
  if (tokenizer == nullptr) return words;
  for (TokenId id : EncodeOrDie(*tokenizer, text)) words.emplace_back(tokenizer->TokenBytes(id));
  return words;
}

TEST(PreTokenizerTest, SplitsByBehavior) {
  using W = std::vector<std::string>;
  const auto split = [](const char* behavior, bool invert) {
    return SplitWords({{"type", "Split"},
                       {"pattern", {{"Regex", "1"}}},
                       {"behavior", behavior},
                       {"invert", invert}},
                      "aa11bb");
  };
  EXPECT_EQ(split("Isolated", false), (W{"aa", "1", "1", "bb"}));
  EXPECT_EQ(split("Contiguous", false), (W{"aa", "11", "bb"}));
  EXPECT_EQ(split("Removed", false), (W{"aa", "bb"}));
  EXPECT_EQ(split("Removed", true), (W{"1", "1"}));
  EXPECT_EQ(split("MergedWithPrevious", false), (W{"aa", "1", "1", "bb"}));
  const json digits = {{"type", "Digits"}, {"individual_digits", true}};
  EXPECT_EQ(SplitWords(digits, "a111"), (W{"a", "1", "1", "1"}));
  EXPECT_EQ(SplitWords({{"type", "Digits"}}, "a1111"), (W{"a", "1111"}));
}

std::vector<std::string> Find(const char* pattern, std::string_view text) {
  auto regex = Regex::Compile(pattern);
  EXPECT_TRUE(regex.ok()) << regex.status();
  std::vector<std::string> found;
  if (!regex.ok()) return found;
  const auto matches = regex->FindAll(text);
  EXPECT_TRUE(matches.ok()) << matches.status();
  for (const TextRange& m : *matches) found.emplace_back(text.substr(m.begin, m.end - m.begin));
  return found;
}

TEST(RegexTest, MatchesAsOnigurumaDoes) {
  using W = std::vector<std::string>;
  const std::string text = "1234567aaa、中bé\nagh b\n(a.c)\u0301 _x";
  EXPECT_EQ(Find("\\p{N}{1,3}+", text), W{"1234567"});
  EXPECT_EQ(Find("\\w+", text), (W{"1234567aaa", "中bé", "agh", "b", "a", "c", "\u0301", "_x"}));
  EXPECT_EQ(Find("[\\p{L}&&[^a-f]]+", text), (W{"中", "é", "gh", "x"}));
  EXPECT_EQ(Find("^a|b$", text), (W{"a", "b"}));
  EXPECT_EQ(Find("\\p{Han}+", text), W{"中"});
  EXPECT_EQ(Find("[^(\\s|[.,])]+", text),
            (W{"1234567aaa、中bé", "agh", "b", "a", "c", "\u0301", "_x"}));
  EXPECT_EQ(Find("\\u0061+", text), (W{"aaa", "a", "a"}));
  EXPECT_EQ(Find("(?m:.)+", text), W{text});
  EXPECT_EQ(Find("[[:alpha:]]+", text), (W{"aaa", "中bé", "agh", "b", "a", "c", "x"}));
  EXPECT_EQ(Find("(?i:'s)", "'S '\u017f 's"), (W{"'S", "'\u017f", "'s"}));
  EXPECT_EQ(Find("a*", "baac"), (W{"", "aa", ""}));
  EXPECT_EQ(Find("\\s", "\u180e\u0085"), W{"\u0085"});
  EXPECT_EQ(Find("[\\v]|\\Q|\\E|\\V", "\vQEV\u2028"), (W{"\v", "Q", "E", "V"}));
}

TEST(RegexTest, BacktrackingIsBounded) {
  auto regex = Regex::Compile("(a+)+$");
  ASSERT_TRUE(regex.ok());
  EXPECT_EQ(regex->FindAll(std::string(5000, 'a') + "b").status().code(),
            absl::StatusCode::kResourceExhausted);
}

TEST(Utf8Test, InvalidBytesBecomeOneReplacementPerMaximalSubpart) {
  const auto lossy = [](std::string_view bytes) {
    std::string out;
    EXPECT_EQ(AppendLossyUtf8(bytes, true, &out), bytes.size());
    return out;
  };
  EXPECT_EQ(lossy("a\xe4\xbdz"), "a\uFFFDz");
  EXPECT_EQ(lossy("\xf0\x9f\x98"), "\uFFFD");
  EXPECT_EQ(lossy("\xed\xa0\x80"), "\uFFFD\uFFFD\uFFFD");
  EXPECT_EQ(lossy("\xc0\xaf\xff"), "\uFFFD\uFFFD\uFFFD");
  EXPECT_EQ(lossy("\xf4\x90\x80\x80"), "\uFFFD\uFFFD\uFFFD\uFFFD");
}

}  // namespace
}  // namespace switchyard
