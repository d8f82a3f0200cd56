#include "router/http/openai_response.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <random>

#include "absl/strings/match.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "router/http/openai_fields.h"

namespace switchyard {
namespace {

using Json = nlohmann::json;

std::vector<Json> Events(const std::string& stream) {
  std::vector<Json> out;
  for (absl::string_view event : absl::StrSplit(stream, "\n\n", absl::SkipEmpty())) {
    EXPECT_TRUE(absl::ConsumePrefix(&event, "data: ")) << std::string(event);
    out.push_back(event == "[DONE]" ? Json("[DONE]") : Json::parse(std::string(event)));
  }
  return out;
}

class OpenAiResponseTest : public testing::Test {
 protected:
  OpenAiResponseTest() {
    auto loaded = Tokenizer::Load("models/fables-7m");
    EXPECT_TRUE(loaded.ok()) << loaded.status();
    tokenizer_ = *std::move(loaded);
    ids_ = *tokenizer_->Encode(" upon a time", false);
  }
  ApiRequest Request(size_t choices = 1) {
    ApiRequest request;
    for (size_t i = 0; i < choices; ++i) {
      request.choices.emplace_back().prompt_ids = {0, ids_[0]};
    }
    return request;
  }
  ApiAnswer Answer(ApiRequest request, bool with_tokenizer = true) {
    return ApiAnswer(std::move(request), "cmpl-1", "fables", 1700000000,
                     with_tokenizer ? tokenizer_.get() : nullptr);
  }
  SampledToken Token(size_t i, float logprob) {
    return {ids_[i], logprob, 2, {{ids_[(i + 1) % ids_.size()], -0.125f}, {ids_[i], logprob}}};
  }
  static ClientUpdate Update(std::string text, std::vector<SampledToken> tokens) {
    ClientUpdate update;
    update.text = std::move(text);
    update.tokens = std::move(tokens);
    return update;
  }
  static ClientUpdate End(ClientUpdate::Finish finish, int completion_tokens) {
    ClientUpdate update;
    update.finish = finish;
    update.completion_tokens = completion_tokens;
    update.attempts = 2;
    update.ttft = absl::Microseconds(1500);
    update.kv_bytes_moved = 4096;
    update.kv_lane = "tcp";
    update.prefill_worker = "p";
    update.decode_worker = "d";
    return update;
  }

  std::unique_ptr<Tokenizer> tokenizer_;
  std::vector<TokenId> ids_;
};

TEST_F(OpenAiResponseTest, FloatsKeepTheirBitsInTheFewestDigits) {
  EXPECT_EQ(Json(ShortestDouble(-0.1f)).dump(), "-0.1");
  EXPECT_EQ(Json(ShortestDouble(-3.3333333f)).dump(), "-3.3333333");
  std::mt19937 rng(7);
  for (int i = 0; i < 20000; ++i) {
    const float f = std::bit_cast<float>(static_cast<uint32_t>(rng()));
    if (!std::isfinite(f)) continue;
    const auto back = static_cast<float>(Json::parse(Json(ShortestDouble(f)).dump()).get<double>());
    EXPECT_EQ(std::bit_cast<uint32_t>(back), std::bit_cast<uint32_t>(f)) << f;
  }
}

TEST_F(OpenAiResponseTest, WholeCompletion) {
  ApiRequest request = Request();
  request.logprobs = 1;
  request.return_token_ids = true;
  ApiAnswer answer = Answer(std::move(request));
  ClientUpdate first = Update(" upon", {Token(0, -0.5f)});
  first.first = true;
  first.seed = 42;
  EXPECT_EQ(answer.Take(0, first), "");
  EXPECT_EQ(answer.Take(0, Update(" a", {Token(1, -0.1f)})), "");
  EXPECT_FALSE(answer.done());
  ClientUpdate end = End(ClientUpdate::Finish::kStop, 2);
  end.stop_match = "x";
  answer.Take(0, end);
  ASSERT_TRUE(answer.done());
  const Json body = Json::parse(answer.Body());
  EXPECT_EQ(body["id"], "cmpl-1");
  EXPECT_EQ(body["object"], "text_completion");
  EXPECT_EQ(body["model"], "fables");
  const Json& choice = body["choices"][0];
  EXPECT_EQ(choice["text"], " upon a");
  EXPECT_EQ(choice["finish_reason"], "stop");
  EXPECT_EQ(choice["stop_reason"], "x");
  EXPECT_EQ(choice["token_ids"], Json({ids_[0], ids_[1]}));
  EXPECT_EQ(choice["logprobs"]["tokens"], Json({" upon", " a"}));
  EXPECT_EQ(choice["logprobs"]["token_logprobs"].dump(), "[-0.5,-0.1]");
  EXPECT_EQ(choice["logprobs"]["text_offset"], Json({0, 5}));
  // The best one, and the chosen one, which is not it.
  EXPECT_EQ(choice["logprobs"]["top_logprobs"][0], Json({{" a", -0.125}, {" upon", -0.5}}));
  EXPECT_EQ(body["usage"], Json({{"prompt_tokens", 2},
                                 {"completion_tokens", 2},
                                 {"total_tokens", 4},
                                 {"prompt_tokens_details", {{"cached_tokens", 0}}}}));
  EXPECT_EQ(body["switchyard"]["ttft_ms"], 1.5);
  EXPECT_EQ(body["switchyard"]["seed"], 42);
  EXPECT_EQ(body["switchyard"]["kv_lane"], "tcp");
  EXPECT_EQ(body["switchyard"]["attempts"], 2);
}

TEST_F(OpenAiResponseTest, EchoComesFirstWithNullForTheFirstToken) {
  for (const bool stream : {false, true}) {
    ApiRequest request = Request();
    request.echo = true;
    request.logprobs = 0;
    request.prompt_logprobs = 1;
    request.stream = stream;
    ApiAnswer answer = Answer(std::move(request));
    ClientUpdate first = Update(" a", {Token(1, -0.25f)});
    first.first = true;
    first.prompt_logprobs = {Token(0, -2)};
    std::string out = answer.Take(0, first);
    out += answer.Take(0, End(ClientUpdate::Finish::kLength, 1));
    const Json choice =
        stream ? Events(out)[0]["choices"][0] : Json::parse(answer.Body())["choices"][0];
    EXPECT_EQ(choice["text"], " upon a");
    EXPECT_EQ(choice["logprobs"]["tokens"].size(), 3u);
    EXPECT_EQ(choice["logprobs"]["token_logprobs"], Json({nullptr, -2, -0.25}));
    EXPECT_TRUE(choice["logprobs"]["top_logprobs"][0].is_null());
    EXPECT_EQ(choice["logprobs"]["top_logprobs"][1], Json({{" upon", -2}}));
    EXPECT_EQ(choice["logprobs"]["text_offset"], Json({0, 0, 5}));
    ASSERT_EQ(choice["prompt_logprobs"].size(), 2u);
    EXPECT_TRUE(choice["prompt_logprobs"][0].is_null());
    const Json& scored = choice["prompt_logprobs"][1][std::to_string(ids_[0])];
    EXPECT_EQ(scored["rank"], 2);
    EXPECT_EQ(scored["decoded_token"], " upon");
  }
}

TEST_F(OpenAiResponseTest, OffsetsPointIntoTheEchoAlsoBehindSpecialTokens) {
  for (const bool skip : {true, false}) {
    ApiRequest request = Request();
    request.echo = true;
    request.logprobs = 0;
    request.choices[0].skip_special_tokens = skip;
    request.choices[0].prompt_ids = {0, ids_[0], 0, ids_[1]};
    ApiAnswer answer = Answer(std::move(request));
    ClientUpdate first = Update(" time", {Token(2, -0.25f)});
    first.first = true;
    answer.Take(0, first);
    answer.Take(0, End(ClientUpdate::Finish::kLength, 1));
    const Json choice = Json::parse(answer.Body())["choices"][0];
    const std::string text = choice["text"];
    EXPECT_EQ(text, skip ? " upon a time" : " upon<|endoftext|> a time");
    const std::vector<size_t> offsets = choice["logprobs"]["text_offset"];
    EXPECT_EQ(offsets,
              skip ? std::vector<size_t>({0, 0, 5, 5, 7}) : std::vector<size_t>({0, 0, 5, 18, 20}));
    EXPECT_EQ(text.substr(offsets[4]), " time");
  }
}

// The half character becomes one U+FFFD of the echo; the generated text does not continue it.
TEST_F(OpenAiResponseTest, OffsetsCountAPromptThatEndsAmidACharacter) {
  std::vector<TokenId> prompt = *tokenizer_->Encode("\xf0\x9f\xa6\x94", false);
  ASSERT_GT(prompt.size(), 1u);
  prompt.pop_back();
  ApiRequest request = Request();
  request.echo = true;
  request.logprobs = 0;
  request.choices[0].prompt_ids = prompt;
  ApiAnswer answer = Answer(std::move(request));
  ClientUpdate first = Update(" a", {Token(1, -0.25f)});
  first.first = true;
  answer.Take(0, first);
  answer.Take(0, End(ClientUpdate::Finish::kLength, 1));
  const Json choice = Json::parse(answer.Body())["choices"][0];
  EXPECT_EQ(choice["text"], *tokenizer_->Decode(prompt, true) + " a");
  EXPECT_EQ(choice["logprobs"]["text_offset"].back(), 1);
}

TEST_F(OpenAiResponseTest, ScoreOnlyShowsNoGeneratedToken) {
  ApiRequest request = Request();
  request.echo = request.score_only = request.return_token_ids = true;
  request.logprobs = 1;
  ApiAnswer answer = Answer(std::move(request));
  ClientUpdate first = Update(" a", {Token(1, -0.25f)});
  first.first = true;
  first.prompt_logprobs = {Token(0, -2)};
  answer.Take(0, first);
  answer.Take(0, End(ClientUpdate::Finish::kStop, 1));
  const Json body = Json::parse(answer.Body());
  EXPECT_EQ(body["choices"][0]["text"], " upon");
  EXPECT_EQ(body["choices"][0]["finish_reason"], "length");
  EXPECT_EQ(body["choices"][0]["logprobs"]["tokens"].size(), 2u);
  EXPECT_EQ(body["choices"][0]["token_ids"], Json::array());
  EXPECT_EQ(body["usage"]["completion_tokens"], 0);
}

TEST_F(OpenAiResponseTest, ChunksHaveTheIdsOfTheirTokens) {
  ApiRequest request = Request();
  request.stream = request.return_token_ids = true;
  ApiAnswer answer = Answer(std::move(request));
  std::string out = answer.Take(0, Update("a", {Token(0, 0)}));
  out += answer.Take(0, Update("b", {Token(1, 0)}));
  out += answer.Take(0, End(ClientUpdate::Finish::kLength, 2));
  const std::vector<Json> events = Events(out);
  ASSERT_EQ(events.size(), 3u);
  EXPECT_EQ(events[0]["choices"][0]["prompt_token_ids"], Json({0, ids_[0]}));
  EXPECT_EQ(events[0]["choices"][0]["token_ids"], Json::array({ids_[0]}));
  EXPECT_EQ(events[1]["choices"][0]["token_ids"], Json::array({ids_[1]}));
  EXPECT_FALSE(events[1]["choices"][0].contains("prompt_token_ids"));
  EXPECT_EQ(events[2]["choices"][0]["token_ids"], Json::array());
}

TEST_F(OpenAiResponseTest, StreamOfABatchKeepsIndices) {
  ApiRequest request = Request(2);
  request.stream = request.include_usage = true;
  ApiAnswer answer = Answer(std::move(request));
  std::string out = answer.Take(1, Update("b", {Token(0, 0)}));
  out += answer.Take(0, Update("a", {Token(0, 0)}));
  out += answer.Take(1, Update("", {}));  // nothing to say
  out += answer.Take(1, End(ClientUpdate::Finish::kLength, 1));
  EXPECT_FALSE(answer.done());
  out += answer.Take(0, End(ClientUpdate::Finish::kStop, 3));
  EXPECT_EQ(answer.Take(0, End(ClientUpdate::Finish::kStop, 3)), "");  // after its end: nothing
  ASSERT_TRUE(answer.done());
  out += answer.Tail();
  const std::vector<Json> events = Events(out);
  ASSERT_EQ(events.size(), 6u);
  EXPECT_EQ(events[0]["choices"][0]["index"], 1);
  EXPECT_EQ(events[0]["choices"][0]["text"], "b");
  EXPECT_TRUE(events[0]["choices"][0]["finish_reason"].is_null());
  EXPECT_EQ(events[1]["choices"][0]["index"], 0);
  EXPECT_EQ(events[2]["choices"][0]["finish_reason"], "length");
  EXPECT_EQ(events[2]["switchyard"]["decode_worker"], "d");
  EXPECT_EQ(events[4]["choices"], Json::array());
  EXPECT_EQ(events[4]["usage"]["completion_tokens"], 4);
  EXPECT_EQ(events[4]["usage"]["prompt_tokens"], 4);
  EXPECT_EQ(events[5], "[DONE]");
}

TEST_F(OpenAiResponseTest, ChatStreamsTheRoleFirst) {
  ApiRequest request = Request();
  request.chat = request.stream = true;
  request.logprobs = 1;
  ApiAnswer answer = Answer(request);
  std::string out = answer.Take(0, Update(" upon", {Token(0, -0.5f)}));
  out += answer.Take(0, Update(" a", {Token(1, -0.5f)}));
  out += answer.Take(0, End(ClientUpdate::Finish::kStop, 2));
  out += answer.Tail();
  const std::vector<Json> events = Events(out);
  ASSERT_EQ(events.size(), 4u);
  EXPECT_EQ(events[0]["object"], "chat.completion.chunk");
  EXPECT_EQ(events[0]["choices"][0]["delta"], Json({{"role", "assistant"}, {"content", " upon"}}));
  EXPECT_EQ(events[1]["choices"][0]["delta"], Json({{"content", " a"}}));
  EXPECT_EQ(events[2]["choices"][0]["delta"], Json::object());
  const Json& logprob = events[0]["choices"][0]["logprobs"]["content"][0];
  EXPECT_EQ(logprob["token"], " upon");
  EXPECT_EQ(logprob["bytes"], Json({32, 117, 112, 111, 110}));
  EXPECT_EQ(logprob["top_logprobs"].size(), 1u);
  request.stream = false;
  ApiAnswer whole = Answer(std::move(request));
  whole.Take(0, Update(" upon", {Token(0, -0.5f)}));
  whole.Take(0, End(ClientUpdate::Finish::kLength, 1));
  const Json body = Json::parse(whole.Body());
  EXPECT_EQ(body["object"], "chat.completion");
  EXPECT_EQ(body["choices"][0]["message"], Json({{"role", "assistant"}, {"content", " upon"}}));
}

TEST_F(OpenAiResponseTest, WithoutATokenizerTokensAreNamedById) {
  ApiRequest request = Request();
  request.logprobs = 0;
  ApiAnswer answer = Answer(std::move(request), /*with_tokenizer=*/false);
  answer.Take(0, Update("", {{7, -1.0f, 1, {}}}));
  answer.Take(0, End(ClientUpdate::Finish::kLength, 1));
  const Json choice = Json::parse(answer.Body())["choices"][0];
  EXPECT_EQ(choice["text"], "");
  EXPECT_EQ(choice["logprobs"]["tokens"], Json({"token_id:7"}));
  EXPECT_EQ(choice["logprobs"]["top_logprobs"], Json::array({{{"token_id:7", -1.0}}}));
}

TEST_F(OpenAiResponseTest, PartsOfCharactersAreStillJson) {
  // Byte tokens of one character: each alone is not UTF-8.
  const std::vector<TokenId> ids = *tokenizer_->Encode("\xf0\x9f\xa6\x94", false);
  ASSERT_GT(ids.size(), 1u);
  ApiRequest request = Request();
  request.logprobs = 0;
  ApiAnswer answer = Answer(std::move(request));
  std::vector<SampledToken> tokens;
  for (const TokenId id : ids) tokens.push_back({id, -1, 1, {}});
  answer.Take(0, Update("\xf0\x9f\xa6\x94", tokens));
  answer.Take(0, End(ClientUpdate::Finish::kLength, static_cast<int>(ids.size())));
  const Json choice = Json::parse(answer.Body())["choices"][0];
  EXPECT_EQ(choice["text"], "\xf0\x9f\xa6\x94");
  for (const Json& offset : choice["logprobs"]["text_offset"]) EXPECT_EQ(offset, 0);
}

TEST_F(OpenAiResponseTest, ErrorsMidStreamAreEvents) {
  ApiRequest request = Request();
  request.stream = request.include_usage = true;
  ApiAnswer answer = Answer(std::move(request));
  std::string out = answer.Take(0, Update("a", {Token(0, 0)}));
  ClientUpdate failed = End(ClientUpdate::Finish::kError, 1);
  failed.error = absl::UnavailableError("no worker is left");
  out += answer.Take(0, failed);
  out += answer.Tail();
  const std::vector<Json> events = Events(out);
  ASSERT_EQ(events.size(), 3u);
  EXPECT_EQ(events[1]["error"]["message"], "no worker is left");
  EXPECT_EQ(events[2], "[DONE]");
}

TEST(ErrorResponseTest, CodesBecomeStatuses) {
  const std::pair<absl::StatusCode, int> codes[] = {
      {absl::StatusCode::kInvalidArgument, 400}, {absl::StatusCode::kResourceExhausted, 429},
      {absl::StatusCode::kUnavailable, 503},     {absl::StatusCode::kDeadlineExceeded, 504},
      {absl::StatusCode::kAlreadyExists, 409},   {absl::StatusCode::kNotFound, 404},
      {absl::StatusCode::kDataLoss, 500},        {absl::StatusCode::kInternal, 500}};
  for (const auto& [code, http] : codes) {
    const HttpResponse response = ErrorResponse(absl::Status(code, "why"));
    EXPECT_EQ(response.status, http);
    EXPECT_EQ(Json::parse(response.body)["error"]["message"], "why");
    EXPECT_EQ(response.headers.size(), http == 429 ? 1u : 0u);
  }
  const Json error = Json::parse(ErrorResponse(FieldError("top_p", "2 is too much")).body)["error"];
  EXPECT_EQ(error["param"], "top_p");
  EXPECT_EQ(error["type"], "invalid_request_error");
  EXPECT_EQ(error["message"], "top_p: 2 is too much");
}

}  // namespace
}  // namespace switchyard
