#include "engine/requests_file.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>

namespace switchyard {
namespace {

TEST(RequestsFileTest, ReadsEveryField) {
  const auto parsed = ParseRequests(
      R"({"id":"a","prompt_ids":[5,6],"max_tokens":7,"temperature":0.5,"top_k":3,"top_p":0.25,)"
      R"("seed":18446744073709551615,"logprobs":2,"prompt_logprobs":0,"stop_token_ids":[9],)"
      R"("ignore_eos":true,"priority":-4,"min_p":0.5,"presence_penalty":1,)"
      R"("frequency_penalty":-1,"repetition_penalty":1.5,"logit_bias":{"7":-2.5},"sample":3,)"
      R"("min_tokens":2})"
      "\n\n"
      R"({"prompt":"Once","temperature":null})"
      "\r\n"
      R"({"prompt":[1,2],"prompt_ids":[3]})");
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  ASSERT_EQ(parsed->size(), 3u);
  const EngineRequest& a = (*parsed)[0].request;
  EXPECT_EQ(a.key.request, "a");
  EXPECT_EQ(a.prompt_ids, (std::vector<TokenId>{5, 6}));
  EXPECT_EQ(a.max_tokens, 7);
  EXPECT_EQ(a.min_tokens, 2);
  EXPECT_EQ(a.sampling.min_p, 0.5f);
  EXPECT_EQ(a.sampling.presence_penalty, 1);
  EXPECT_EQ(a.sampling.frequency_penalty, -1);
  EXPECT_EQ(a.sampling.repetition_penalty, 1.5f);
  EXPECT_EQ(a.sampling.logit_bias, (std::vector<std::pair<TokenId, float>>{{7, -2.5f}}));
  EXPECT_EQ(a.sampling.sample, 3u);
  EXPECT_EQ(a.sampling.temperature, 0.5f);
  EXPECT_EQ(a.sampling.top_k, 3);
  EXPECT_EQ(a.sampling.top_p, 0.25f);
  EXPECT_EQ(a.sampling.seed, 18446744073709551615ull);
  EXPECT_EQ(a.sampling.logprobs, 2);
  EXPECT_EQ(a.prompt_logprobs, 0);
  EXPECT_EQ(a.stop_token_ids, std::vector<TokenId>{9});
  EXPECT_TRUE(a.ignore_eos);
  EXPECT_EQ(a.priority, -4);
  EXPECT_FALSE((*parsed)[0].text.has_value());
  EXPECT_EQ((*parsed)[1].text, "Once");
  EXPECT_EQ((*parsed)[1].request.key.request, "3");
  EXPECT_EQ((*parsed)[1].request.sampling.temperature, 1.0f);
  EXPECT_EQ((*parsed)[2].request.prompt_ids, std::vector<TokenId>{3});
}

TEST(RequestsFileTest, ErrorsNameLineFieldAndValue) {
  const auto error = [](std::string_view text) {
    return std::string(ParseRequests(text).status().message());
  };
  EXPECT_EQ(error("{}"), "line 1: prompt_ids is empty");
  EXPECT_EQ(error("\n{"), "line 2: is not a JSON object");
  EXPECT_EQ(error("[1]"), "line 1: is not a JSON object");
  EXPECT_EQ(error(R"({"prompt":"a","max_token":3})"), "line 1: unknown field \"max_token\"");
  EXPECT_EQ(error(R"({"prompt":"a","max_tokens":3.5})"),
            "line 1: max_tokens is 3.5; an integer from -2147483648 to 2147483647 is wanted");
  EXPECT_EQ(error(R"({"prompt":"a","max_tokens":0})"),
            "line 1: max_tokens is 0; it must be at least 1");
  EXPECT_EQ(error(R"({"prompt_ids":[1,4294967296]})"),
            "line 1: prompt_ids[1] is 4294967296; an integer from -2147483648 to 2147483647 is "
            "wanted");
  EXPECT_EQ(error(R"({"prompt":"a","seed":-1})"),
            "line 1: seed is -1; an integer from 0 to 18446744073709551615 is wanted");
  EXPECT_EQ(error(R"({"prompt":"a","temperature":"hot"})"),
            "line 1: temperature is \"hot\"; a number is wanted");
  EXPECT_EQ(error(R"({"prompt":"a","temperature":1e300})"),
            "line 1: temperature is 1e+300; a number is wanted");
  EXPECT_EQ(error(R"({"prompt":"a","logit_bias":{"x":1}})"),
            "line 1: logit_bias is \"x\"; a token id is wanted");
  EXPECT_EQ(error(R"({"prompt":"a","min_tokens":17})"),
            "line 1: min_tokens is 17; allowed are 0 to max_tokens, 16");
  EXPECT_EQ(error("{\"id\":\"x\",\"prompt\":\"a\"}\n{\"id\":\"x\",\"prompt\":\"a\"}"),
            "line 2: id \"x\" is used before");
  EXPECT_NE(error("{\"prompt\":\"\xff\"}"), "");
  EXPECT_NE(error(std::string(100000, '[')), "");
}

TEST(RequestsFileTest, FloatsComeBackToTheLastBit) {
  FileResult result;
  result.id = "q\"";
  result.prompt_tokens = 3;
  result.finish = FinishReason::kLength;
  EngineRequest request;
  request.sampling.logprobs = 1;
  request.prompt_logprobs = 0;
  for (float f : {-0.1f, -1e-30f, -123456.789f, std::nextafter(-1.0f, 0.0f)}) {
    result.tokens.push_back({.token = 4, .logprob = f, .rank = 2, .top = {{7, f}}});
    result.prompt_logprobs.push_back({.token = 1, .logprob = f, .rank = 1, .top = {}});
  }
  const std::string line = FormatResult(result, request);
  EXPECT_EQ(line.back(), '\n');
  EXPECT_NE(line.find("[-0.1,"), std::string::npos) << line;
  const auto json = nlohmann::json::parse(line);
  EXPECT_EQ(json["id"], "q\"");
  EXPECT_EQ(json["finish_reason"], "length");
  EXPECT_TRUE(json["prompt_logprobs"][0].is_null());
  for (size_t i = 0; i < result.tokens.size(); ++i) {
    const float want = result.tokens[i].logprob;
    EXPECT_EQ(json["logprobs"][i].get<float>(), want);
    EXPECT_EQ(json["top_logprobs"][i][0]["logprob"].get<float>(), want);
    EXPECT_EQ(json["prompt_logprobs"][i + 1].get<float>(), want);
    EXPECT_EQ(json["token_ids"][i], 4);
  }
}

TEST(RequestsFileTest, ErrorsAreTold) {
  FileResult result;
  result.id = "a";
  result.finish = FinishReason::kError;
  result.error = absl::InternalError("no");
  EXPECT_EQ(FormatResult(result, EngineRequest()),
            "{\"id\":\"a\",\"prompt_tokens\":0,\"token_ids\":[],\"finish_reason\":\"error\","
            "\"error\":\"no\"}\n");
}

}  // namespace
}  // namespace switchyard
