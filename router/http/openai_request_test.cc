#include "router/http/openai_request.h"

#include <gtest/gtest.h>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "router/http/openai_fields.h"
#include "text/chat_template.h"

namespace switchyard {
namespace {

class OpenAiRequestTest : public testing::Test {
 protected:
  OpenAiRequestTest() {
    auto loaded = Tokenizer::Load("models/fables-7m");
    EXPECT_TRUE(loaded.ok()) << loaded.status();
    tokenizer_ = *std::move(loaded);
    model_.id = "fables-7m";
    model_.vocab_size = tokenizer_->vocab_size();
    model_.max_model_len = 2048;
    context_ = {
        .model = &model_,
        .limits = &limits_,
        .tokenizer = tokenizer_.get(),
        .render_chat = [](const nlohmann::ordered_json& chat) -> absl::StatusOr<std::string> {
          std::string out;
          for (const auto& message : chat["messages"]) {
            if (message["content"] == "raise") {
              return absl::InvalidArgumentError("the template raised");
            }
            absl::StrAppend(&out, message["role"].get<std::string>(), ":",
                            message["content"].get<std::string>(), "\n");
          }
          if (chat["add_generation_prompt"]) out += "assistant:";
          return out;
        },
        .admit = nullptr};
  }

  ApiRequest Good(const std::string& body) {
    auto request = ParseCompletion(body, context_);
    EXPECT_TRUE(request.ok()) << body << ": " << request.status();
    return request.ok() ? *request : ApiRequest();
  }
  ApiRequest GoodChat(const std::string& body) {
    auto request = ParseChatCompletion(body, context_);
    EXPECT_TRUE(request.ok()) << body << ": " << request.status();
    return request.ok() ? *request : ApiRequest();
  }
  // `more` are members beside a good prompt.
  std::string With(const std::string& more) { return "{\"prompt\":[1,2,3]," + more + "}"; }
  void Refused(const std::string& body, const std::string& field, const std::string& words) {
    const absl::Status status = ParseCompletion(body, context_).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << body << status;
    EXPECT_EQ(FieldOf(status), field) << body << status;
    EXPECT_TRUE(absl::StrContains(status.message(), words)) << body << status;
  }
  void ChatRefused(const std::string& body, const std::string& field, const std::string& words) {
    const absl::Status status = ParseChatCompletion(body, context_).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << body << status;
    EXPECT_EQ(FieldOf(status), field) << body << status;
    EXPECT_TRUE(absl::StrContains(status.message(), words)) << body << status;
  }

  ModelDescription model_;
  RouterLimits limits_;
  std::unique_ptr<Tokenizer> tokenizer_;
  ApiContext context_;
};

TEST_F(OpenAiRequestTest, DefaultsAreTheApis) {
  const ApiRequest request = Good(R"({"model":"fables-7m","prompt":"Once upon a time"})");
  ASSERT_EQ(request.choices.size(), 1u);
  const ClientRequest& choice = request.choices[0];
  EXPECT_EQ(choice.prompt_ids, *tokenizer_->Encode("Once upon a time", true));
  EXPECT_EQ(choice.max_tokens, 16);
  EXPECT_EQ(choice.sampling.temperature, 1);
  EXPECT_EQ(choice.sampling.top_p, 1);
  EXPECT_EQ(choice.sampling.top_k, 0);
  EXPECT_EQ(choice.sampling.logprobs, -1);
  EXPECT_EQ(choice.prompt_logprobs, -1);
  EXPECT_FALSE(choice.seed_given);
  EXPECT_TRUE(choice.skip_special_tokens);
  EXPECT_FALSE(request.stream || request.echo || request.score_only);
}

TEST_F(OpenAiRequestTest, EveryFieldArrives) {
  const ApiRequest request = Good(
      R"({"prompt":[5,6],"max_tokens":7.0,"temperature":0.5,"top_p":0.25,"top_k":3,
          "seed":18446744073709551615,"stop":["a","b"],"stop_token_ids":[9],"ignore_eos":true,
          "stream":true,"stream_options":{"include_usage":true},"logprobs":5,
          "prompt_logprobs":2,"priority":-4,"user":"me","request_id":"r1",
          "min_p":0.125,"presence_penalty":-2,"frequency_penalty":1.5,"repetition_penalty":1.25,
          "logit_bias":{"4095":-100,"7":2.5},"min_tokens":4,"include_stop_str_in_output":true,
          "timeout":2.5,"skip_special_tokens":false,"return_token_ids":true,"no_such_field":{"x":1}})");
  const ClientRequest& choice = request.choices[0];
  EXPECT_EQ(choice.prompt_ids, (std::vector<TokenId>{5, 6}));
  EXPECT_EQ(choice.max_tokens, 7);
  EXPECT_EQ(choice.sampling.temperature, 0.5f);
  EXPECT_EQ(choice.sampling.top_p, 0.25f);
  EXPECT_EQ(choice.sampling.top_k, 3);
  EXPECT_EQ(choice.sampling.seed, ~uint64_t{0});
  EXPECT_TRUE(choice.seed_given);
  EXPECT_EQ(choice.stop, (std::vector<std::string>{"a", "b"}));
  EXPECT_EQ(choice.stop_token_ids, (std::vector<TokenId>{9}));
  EXPECT_TRUE(choice.ignore_eos);
  EXPECT_EQ(choice.sampling.min_p, 0.125f);
  EXPECT_EQ(choice.sampling.presence_penalty, -2);
  EXPECT_EQ(choice.sampling.frequency_penalty, 1.5f);
  EXPECT_EQ(choice.sampling.repetition_penalty, 1.25f);
  EXPECT_EQ(choice.sampling.logit_bias,
            (std::vector<std::pair<TokenId, float>>{{4095, -100.0f}, {7, 2.5f}}));
  EXPECT_EQ(choice.min_tokens, 4);
  EXPECT_TRUE(choice.include_stop);
  EXPECT_EQ(choice.deadline, absl::Seconds(2.5));
  EXPECT_FALSE(choice.skip_special_tokens);
  EXPECT_EQ(choice.priority, -4);
  EXPECT_EQ(choice.sampling.logprobs, 5);
  EXPECT_EQ(choice.prompt_logprobs, 2);
  EXPECT_EQ(request.request_id, "r1");
  EXPECT_TRUE(request.stream && request.include_usage && request.return_token_ids);
}

TEST_F(OpenAiRequestTest, PromptsOfAllForms) {
  EXPECT_EQ(Good(R"({"prompt":["a","b","c"]})").choices.size(), 3u);
  EXPECT_EQ(Good(R"({"prompt":[1,2,3]})").choices.size(), 1u);
  const ApiRequest lists = Good(R"({"prompt":[[1,2],[3]]})");
  ASSERT_EQ(lists.choices.size(), 2u);
  EXPECT_EQ(lists.choices[1].prompt_ids, (std::vector<TokenId>{3}));
  EXPECT_EQ(Good(R"({"prompt":"a","add_special_tokens":false})").choices[0].prompt_ids,
            *tokenizer_->Encode("a", false));
  Refused("{}", "prompt", "is missing");
  Refused(R"({"prompt":null})", "prompt", "is missing");
  Refused(R"({"prompt":[]})", "prompt", "neither text nor token ids");
  Refused(R"({"prompt":[[]]})", "prompt", "neither text nor token ids");
  Refused(R"({"prompt":["a",[1],3]})", "prompt", "3 is neither");
  Refused(R"({"prompt":[1,"a"]})", "prompt", "\"a\" at index 1 is not a token id from 0 to 4095");
  Refused(R"({"prompt":[1,-1]})", "prompt", "-1 at index 1");
  Refused(R"({"prompt":[4096]})", "prompt", "4096 at index 0");
  Refused(R"({"prompt":[1.5]})", "prompt", "1.5 at index 0");
  Refused(R"({"prompt":{"a":1}})", "prompt", "an object");
  Refused(R"({"prompt":"","add_special_tokens":false})", "prompt", "has no tokens");
  std::string many = "{\"prompt\":[[1]";
  for (size_t i = 0; i < kPromptsMax; ++i) many += ",[1]";
  Refused(many + "]}", "prompt", "1025 prompts are more than 1024");
}

TEST_F(OpenAiRequestTest, ValuesOutsideTheirRangeNameFieldValueAndLimit) {
  Refused(With(R"("max_tokens":0)"), "max_tokens", "0 is not an integer from 1 to");
  Refused(With(R"("max_tokens":-1,"echo":true)"), "max_tokens", "-1 is not an integer from 0 to");
  Refused(With(R"("max_tokens":1e300)"), "max_tokens", "not an integer");
  Refused(With(R"("max_tokens":3000000000)"), "max_tokens", "to 2147483647");
  Refused(With(R"("max_tokens":true)"), "max_tokens", "true is not");
  Refused(With(R"("max_tokens":"5")"), "max_tokens", "\"5\" is not");
  Refused(With(R"("temperature":-0.1)"), "temperature", "-0.1 is not a number from 0 to");
  Refused(With(R"("temperature":1e39)"), "temperature", "not a number");
  Refused(With(R"("temperature":1e6)"), "temperature", "1000000.0 is not a number from 0 to 100");
  Refused(With(R"("temperature":"hot")"), "temperature", "\"hot\"");
  Refused(With(R"("top_p":0)"), "top_p", "0 is not a number above 0 to 1");
  Refused(With(R"("top_p":1e-60)"), "top_p", "above 0");
  Refused(With(R"("top_p":1.01)"), "top_p", "to 1");
  Refused(With(R"("top_k":-2)"), "top_k", "from -1 to");
  Refused(With(R"("n":0)"), "n", "0 is not an integer from 1 to 128");
  Refused(With(R"("min_p":1.5)"), "min_p", "from 0 to 1");
  Refused(With(R"("presence_penalty":2.5)"), "presence_penalty", "from -2 to 2");
  Refused(With(R"("frequency_penalty":-3)"), "frequency_penalty", "from -2 to 2");
  Refused(With(R"("repetition_penalty":0)"), "repetition_penalty", "above 0 to 100");
  Refused(With(R"("logit_bias":[])"), "logit_bias", "an array of 0 is not an object");
  Refused(With(R"("logit_bias":{"x":1})"), "logit_bias", "\"x\" is not a token id");
  Refused(With(R"("logit_bias":{"4096":1})"), "logit_bias", "from 0 to 4095");
  Refused(With(R"("logit_bias":{"5":101})"), "logit_bias.5", "from -100 to 100");
  Refused(With(R"("min_tokens":17)"), "min_tokens", "17 is more than max_tokens, which is 16");
  Refused(With(R"("truncate_prompt_tokens":2048)"), "truncate_prompt_tokens", "from -1 to 2047");
  Refused(With(R"("timeout":0)"), "timeout", "above 0");
  Refused(With(R"("logprobs":21)"), "logprobs", "21 is not an integer from 0 to 20");
  Refused(With(R"("logprobs":-1)"), "logprobs", "-1 is not an integer from 0 to 20");
  Refused(With(R"("prompt_logprobs":21)"), "prompt_logprobs", "to 20");
  Refused(With(R"("seed":-2)"), "seed", "-2 is not an integer from 0");
  Refused(With(R"("seed":1.5)"), "seed", "1.5");
  Refused(With(R"("stream":1)"), "stream", "1 is not true or false");
  Refused(With(R"("stream":true,"stream_options":{"include_usage":"yes"})"),
          "stream_options.include_usage", "\"yes\"");
  Refused(With(R"("stream_options":{"include_usage":true})"), "stream_options", "stream true");
  Refused(With(R"("stream_options":5)"), "stream_options", "5 is not an object");
  Refused(With(R"("stop":[""])"), "stop", "1 to 1024 bytes");
  Refused(With(R"("stop":[1])"), "stop", "1 is not a string");
  Refused(With("\"stop\":\"" + std::string(1025, 'x') + "\""), "stop", "a string of 1025 bytes");
  Refused(With(R"("stop":["1","2","3","4","5","6","7","8","9","10","11","12","13","14","15","16",
                          "17"])"),
          "stop", "more than 16");
  Refused(With(R"("stop_token_ids":[4096])"), "stop_token_ids", "4096");
  Refused(With(R"("stop_token_ids":7)"), "stop_token_ids", "at most 256");
  Refused(With("\"request_id\":\"" + std::string(129, 'x') + "\""), "request_id",
          "at most 128 bytes");
  Refused(With(R"("model":7)"), "model", "7 is not a string");
}

TEST_F(OpenAiRequestTest, SamplesOfAPromptFollowEachOther) {
  const ApiRequest request = Good(R"({"prompt":[[1],[2,3]],"n":3})");
  ASSERT_EQ(request.choices.size(), 6u);
  EXPECT_EQ(request.n, 3);
  for (size_t i = 0; i < 6; ++i) {
    EXPECT_EQ(request.choices[i].prompt_ids.size(), i < 3 ? 1u : 2u);
    EXPECT_EQ(request.choices[i].sampling.sample, i % 3);
  }
  std::string many = "{\"n\":128,\"prompt\":[[1]";
  for (int i = 0; i < 8; ++i) many += ",[1]";
  Refused(many + "]}", "n", "128 samples of 9 prompts are more than 1024 choices");
}

TEST_F(OpenAiRequestTest, TooManyChoicesAreRefusedBeforeTokenizing) {
  // The second prompt is none.
  Refused(R"({"n":128,"prompt":["a",{},"","","","","","",""]})", "n", "1024 choices");
}

TEST_F(OpenAiRequestTest, ListedLogprobsAreBounded) {
  std::string ids = "[1";
  for (int i = 1; i < 2047; ++i) ids += ",1";
  ids += "]";
  const std::string scored = "{\"prompt\":" + ids + ",\"max_tokens\":1,\"prompt_logprobs\":20";
  Good(scored + "}");
  Good(scored + ",\"stream\":true}");
  Good(scored + ",\"n\":12}");
  Refused(scored + ",\"n\":128}", "prompt_logprobs", "must be at most 524288");
  Refused(scored + ",\"n\":2,\"stream\":true}", "prompt_logprobs", "must be at most 65536");
  Refused("{\"prompt\":" + ids + ",\"max_tokens\":1,\"echo\":true,\"logprobs\":20,\"n\":128}",
          "prompt_logprobs", "5502336 logprobs of prompts");
  const std::string chat =
      R"({"messages":[{"role":"user","content":"hi"}],"n":128,"logprobs":true,"top_logprobs":20)";
  ChatRefused(chat + R"(,"max_tokens":2000})", "logprobs", "5376000 of answers");
  EXPECT_EQ(GoodChat(chat + "}").choices[0].max_tokens, (1 << 19) / (128 * 21));
  EXPECT_GT(GoodChat(chat + R"(,"stream":true})").choices[0].max_tokens, 2000);
}

TEST_F(OpenAiRequestTest, LongPromptsAreTruncatedOrRefused) {
  using Ids = std::vector<TokenId>;
  const auto prompt = [this](const std::string& more) {
    return Good(With(more)).choices[0].prompt_ids;
  };
  EXPECT_EQ(prompt(R"("truncate_prompt_tokens":2)"), (Ids{2, 3}));
  EXPECT_EQ(prompt(R"("truncate_prompt_tokens":5)"), (Ids{1, 2, 3}));
  EXPECT_EQ(prompt(R"("truncate_prompt_tokens":-1)"), (Ids{1, 2, 3}));
  std::string ids = "1";
  for (int i = 1; i < 3000; ++i) ids += ",7";
  Refused("{\"prompt\":[" + ids + "]}", "prompt", "3000 tokens, must have fewer than");
  EXPECT_EQ(
      Good("{\"prompt\":[" + ids + "],\"truncate_prompt_tokens\":-1}").choices[0].prompt_ids.size(),
      2047u);
}

TEST_F(OpenAiRequestTest, AnotherModelIsNotFound) {
  const absl::Status status = ParseCompletion(With(R"("model":"gpt-9")"), context_).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
  EXPECT_TRUE(absl::StrContains(status.message(), "\"gpt-9\" is not served here; fables-7m is"));
}

TEST_F(OpenAiRequestTest, NeutralValuesPassAndOthersAreRefused) {
  Good(With(R"("n":1,"best_of":1,"presence_penalty":0.0,"frequency_penalty":0,"suffix":null,
               "logit_bias":{},"repetition_penalty":1.0,"min_p":0,"tools":[],"tool_choice":"auto",
               "response_format":{"type":"text"},"use_beam_search":false,"top_k":-1,"seed":-1,
               "stop":null,"stop_token_ids":null,"logprobs":null,"temperature":null,
               "max_tokens":null,"user":null,"guided_json":null)"));
  EXPECT_FALSE(Good(With(R"("seed":-1)")).choices[0].seed_given);
  Refused(With(R"("best_of":3)"), "best_of", "3 is not supported");
  Refused(With(R"("suffix":"x")"), "suffix", "\"x\" is not supported");
  const std::string chat = R"({"messages":[{"role":"user","content":"x"}],)";
  ChatRefused(chat + R"("tools":[{}]})", "tools", "tool_choice must be \"none\"");
  ChatRefused(chat + R"("tool_choice":"required"})", "tool_choice", "\"required\"");
  GoodChat(chat + R"("tools":[{}],"tool_choice":"none"})");
  Refused(With(R"("response_format":{"type":"json_object"})"), "response_format", "an object");
}

TEST_F(OpenAiRequestTest, EchoScoresWithoutTokens) {
  const ApiRequest request = Good(R"({"prompt":"Hello","echo":true,"logprobs":3,"max_tokens":0})");
  EXPECT_TRUE(request.echo && request.score_only);
  EXPECT_EQ(request.choices[0].max_tokens, 1);
  EXPECT_EQ(request.choices[0].prompt_logprobs, 3);
  EXPECT_EQ(Good(With(R"("echo":true)")).choices[0].prompt_logprobs, -1);
}

TEST_F(OpenAiRequestTest, TextThatCannotFitIsRefusedByItsBytes) {
  const std::string text(1 << 20, 'a');
  Refused("{\"prompt\":\"" + text + "\"}", "prompt", "has 1048576 bytes, which are at least");
  const std::string cut = "{\"truncate_prompt_tokens\":1,\"prompt\":\"" + text + "\"}";
  EXPECT_EQ(Good(cut).choices[0].prompt_ids.size(), 1u);
}

TEST_F(OpenAiRequestTest, WhoIsNotAdmittedIsRefusedBeforeThePromptIsRead) {
  context_.admit = [](int priority, absl::Duration) {
    return priority > 0 ? absl::ResourceExhaustedError("later") : absl::OkStatus();
  };
  EXPECT_TRUE(absl::IsResourceExhausted(
      ParseCompletion(R"({"prompt":[-1],"priority":1})", context_).status()));
  Good(R"({"prompt":[1],"priority":0})");
}

TEST_F(OpenAiRequestTest, SamplesShareTheirPrompt) {
  const ApiRequest request = Good(With("\"n\":128"));
  ASSERT_EQ(request.choices.size(), 128u);
  EXPECT_EQ(&request.choices[0].prompt_ids.ids(), &request.choices[127].prompt_ids.ids());
}

TEST_F(OpenAiRequestTest, WithoutATokenizerTextSaysWhy) {
  context_.tokenizer = nullptr;
  Refused(R"({"prompt":"text"})", "prompt", "no tokenizer: give token ids");
  Refused(With(R"("stop":"x")"), "stop", "use stop_token_ids");
  ChatRefused(R"({"messages":[{"role":"user","content":"hi"}]})", "messages", "no tokenizer");
  EXPECT_FALSE(ParseTokenize(R"({"prompt":"x"})", context_).ok());
  EXPECT_FALSE(ParseDetokenize(R"({"tokens":[1]})", context_).ok());
}

TEST_F(OpenAiRequestTest, BodiesThatAreNotJsonSayWhere) {
  Refused("", "", "not JSON: byte 1");
  Refused("[1]", "", "must be a JSON object");
  Refused("{\"prompt\":}", "", "not JSON: byte 11");
  Refused("{\"prompt\":\"\xff\"}", "", "ill-formed UTF-8");
  Refused("{\"prompt\":\"\\ud800\"}", "", "not JSON");
  Refused("{\"prompt\":1e999}", "", "body: not JSON: number overflow");
  Refused("{\"prompt\":[1]} x", "", "not JSON");
  Refused("{\"a\":" + std::string(64, '['), "", "byte 68: JSON deeper than 64");
  EXPECT_TRUE(ParseJsonObject("{\"a\":" + std::string(63, '[') + std::string(63, ']') + "}").ok());
  EXPECT_TRUE(ParseJsonObject("{\"a\":\"" + std::string(100, '[') + "\\\"[\"}").ok());
  EXPECT_LT(ParseJsonObject("{\"a\":" + std::string(5000, '9') + "}").status().message().size(),
            300);
  EXPECT_TRUE(ParseJsonObject(R"({"a":{"b":1},"b":[{"b":1},{"b":1}]})").ok());
  for (const char* twice :
       {R"({"n":1,"n":1})", R"({"a":[{"b":{},"b":1}]})", R"({"n":1,"\u006e":2})"}) {
    EXPECT_TRUE(absl::StrContains(ParseJsonObject(twice).status().message(), "is there twice"));
  }
  std::string wide = "{\"prompt\":[1";
  for (size_t i = 0; i < kJsonValuesMax; ++i) wide += ",1";
  Refused(wide + "]}", "", "more than 1048576 JSON values");
  std::string object = "{\"a\":[1,2],\"prompt\":{\"0\":1";
  for (size_t i = 1; i <= kJsonMembersMax; ++i) object += ",\"k" + std::to_string(i) + "\":1";
  Refused(object + "}}", "", "a JSON object of more than 1024 members");
  Refused("]]]]{\"a\":1}", "", "not JSON");
}

TEST_F(OpenAiRequestTest, ChatRendersAndEncodes) {
  const ApiRequest request = GoodChat(
      R"({"messages":[{"role":"system","content":"S"},
                      {"role":"user","content":[{"type":"text","text":"a"},{"type":"text","text":"b"}]},
                      {"role":"assistant","content":null}],
          "max_completion_tokens":5,"max_tokens":9,"logprobs":true,"top_logprobs":2})");
  EXPECT_TRUE(request.chat);
  EXPECT_EQ(request.choices[0].prompt_ids,
            *tokenizer_->Encode("system:S\nuser:a\nb\nassistant:\nassistant:", false));
  EXPECT_EQ(request.choices[0].max_tokens, 5);
  EXPECT_EQ(Good(With(R"("max_tokens":9,"max_completion_tokens":5)")).choices[0].max_tokens, 5);
  EXPECT_EQ(request.logprobs, 2);
  const ApiRequest open = GoodChat(R"({"messages":[{"role":"user","content":"hi"}]})");
  EXPECT_EQ(open.choices[0].max_tokens, 2048 - static_cast<int>(open.choices[0].prompt_ids.size()));
  EXPECT_EQ(open.logprobs, -1);
}

TEST_F(OpenAiRequestTest, ChatMayGoOnWithTheLastMessage) {
  const std::string chat =
      R"({"messages":[{"role":"user","content":"a"},{"role":"assistant","content":" The fox "}],)";
  const auto prompt = [&](const std::string& more) {
    return tokenizer_->Decode(GoodChat(chat + more).choices[0].prompt_ids, false).value();
  };
  EXPECT_EQ(prompt(R"("continue_final_message":true,"add_generation_prompt":false})"),
            "user:a\nassistant: The fox ");
  ChatRefused(chat + R"("continue_final_message":true})", "continue_final_message",
              "needs add_generation_prompt false");
}

TEST_F(OpenAiRequestTest, ToolCallsReachTheTemplateAsObjects) {
  nlohmann::ordered_json seen;
  context_.render_chat = [&](const nlohmann::ordered_json& chat) -> absl::StatusOr<std::string> {
    seen = chat;
    return "x";
  };
  const auto ids = ParseTokenize(
      R"({"messages":[{"role":"user","content":"a"},{"role":"assistant","content":null,"tool_calls":
          [{"function":{"name":"f","arguments":"{\"z\": 1, \"a\": 2}"}},
           {"function":{"name":"g","arguments":"not JSON"}},5]}],
          "tools":[{"b":1,"a":2}],"documents":[{"title":"t"}],"chat_template_kwargs":{"k":true}})",
      context_);
  ASSERT_TRUE(ids.ok()) << ids.status();
  const auto& calls = seen["messages"][1]["tool_calls"];
  EXPECT_EQ(calls[0]["function"]["arguments"].dump(), R"({"z":1,"a":2})");
  EXPECT_EQ(calls[1]["function"]["arguments"], "not JSON");
  EXPECT_EQ(seen["tools"].dump(), R"([{"b":1,"a":2}])");  // in the client's order
  EXPECT_EQ(seen["documents"].size(), 1u);
  EXPECT_EQ(seen["k"], true);
}

// What messages become in prompts of the forms that DeepSeek's templates have.
TEST_F(OpenAiRequestTest, TemplatesGetTheFormOfToolCallsThatTheyTake) {
  const std::string begin =
      "{% for message in messages %}{% if message['role'] == 'user' %}"
      "<U>{{ message['content'] }}";
  // V3: whether there are calls shows in the content, which is none.
  const std::string v3 =
      begin +
      "{% elif message['role'] == 'assistant' and message['content'] is none %}"
      "{% for call in message['tool_calls'] %}<C>{{ call['type'] + '<S>' + "
      "call['function']['name'] + '\\n```json\\n' + call['function']['arguments'] + '```' }}"
      "{% endfor %}{% elif message['role'] == 'assistant' %}<A>{{ message['content'] }}"
      "{% else %}<T>{{ message['content'] }}{% endif %}{% endfor %}";
  // R1: in the name's being there.
  const std::string r1 =
      begin +
      "{% elif message['role'] == 'assistant' and 'tool_calls' in message %}"
      "{% for call in message['tool_calls'] %}"
      "{% if message['content'] is none %}<C>{% else %}{{ message['content'] + '<C>' }}{% endif %}"
      "{{ call['type'] + '<S>' + call['function']['name'] + '\\n```json\\n' + "
      "call['function']['arguments'] + '```' }}"
      "{% endfor %}{% elif message['role'] == 'assistant' %}<A>{{ message['content'] }}"
      "{% else %}<T>{{ message['content'] }}{% endif %}{% endfor %}";
  // Takes the content for a text, and the arguments for an object.
  const std::string of_text =
      begin +
      "{% elif message['role'] == 'assistant' %}<A>{{ message['content'].strip() }}"
      "{% for call in message['tool_calls'] or [] %}<C>"
      "{% for name, value in call['function']['arguments'].items() %}{{ name }}={{ value }};"
      "{% endfor %}{% endfor %}{% else %}<T>{{ message['content'] }}{% endif %}{% endfor %}";
  const std::string called =
      R"([{"role":"user","content":"u"},{"role":"assistant","content":null,"tool_calls":[
          {"type":"function","function":{"name":"f","arguments":"{\"a\": 1}"}}]},
          {"role":"tool","content":"r"}])";
  // As the client library writes an answer back.
  const std::string plain =
      R"([{"role":"user","content":"u"},{"role":"assistant","content":"x","tool_calls":null,
          "refusal":null,"function_call":null,"audio":null},{"role":"user","content":"v"}])";
  const std::string empty_list =
      R"([{"role":"user","content":"u"},{"role":"assistant","content":"x","tool_calls":[]}])";
  const auto prompt = [this](const std::string& source, const std::string& messages) {
    const auto chat = ChatTemplate::Parse(source);
    if (!chat.ok()) return std::string(chat.status().message());
    context_.render_chat = [&](const nlohmann::ordered_json& c) { return (*chat)->Render(c); };
    const auto ids = ParseTokenize("{\"messages\":" + messages + "}", context_);
    if (!ids.ok()) return std::string(ids.status().message());
    return *tokenizer_->Decode(*ids, false);
  };
  for (const std::string& source : {v3, r1}) {
    EXPECT_EQ(prompt(source, called), "<U>u<C>function<S>f\n```json\n{\"a\": 1}```<T>r");
    EXPECT_EQ(prompt(source, plain), "<U>u<A>x<U>v");
    EXPECT_EQ(prompt(source, empty_list), "<U>u<A>x");
  }
  EXPECT_EQ(prompt(of_text, called), "<U>u<A><C>a=1;<T>r");
  EXPECT_EQ(prompt(of_text, R"([{"role":"assistant","content":"x","tool_calls":[
      {"function":{"arguments":""}},{"function":{"arguments":null}}]}])"),
            "<A>x<C><C>");
  EXPECT_EQ(prompt("{{ tools is none and documents is none }}", plain), "True");
}

TEST_F(OpenAiRequestTest, ChatErrorsNameTheMessage) {
  ChatRefused("{}", "messages", "at least one message");
  ChatRefused(R"({"messages":[]})", "messages", "at least one message");
  ChatRefused(R"({"messages":[5]})", "messages[0]", "5 is not an object");
  ChatRefused(R"({"messages":[{"role":"user","content":"a"},{"role":"king","content":"x"}]})",
              "messages[1].role", "\"king\" is none of");
  ChatRefused(R"({"messages":[{"role":"user"}]})", "messages[0].content", "null is neither");
  ChatRefused(R"({"messages":[{"role":"user","content":[{"type":"image_url"}]}]})",
              "messages[0].content[0]", "only parts of type text");
  ChatRefused(R"({"messages":[{"role":"user","content":"raise"}]})", "messages", "raised");
  const std::string good = R"({"messages":[{"role":"user","content":"x"}],)";
  ChatRefused(good + R"("top_logprobs":2})", "top_logprobs", "needs logprobs true");
  ChatRefused(good + R"("logprobs":true,"top_logprobs":21})", "top_logprobs", "0 to 20");
  ChatRefused(good + R"("max_completion_tokens":0})", "max_completion_tokens", "from 1");
  context_.render_chat = nullptr;
  ChatRefused(good + R"("n":1})", "messages", "no chat template");
}

TEST_F(OpenAiRequestTest, TokenizeAndDetokenizeAreInverse) {
  const std::string text = "The rabbit, “quietly”.";
  auto ids = ParseTokenize("{\"prompt\":\"" + text + "\"}", context_);
  ASSERT_TRUE(ids.ok()) << ids.status();
  EXPECT_EQ(*ids, *tokenizer_->Encode(text, true));
  EXPECT_EQ(*ParseTokenize("{\"text\":\"" + text + "\",\"add_special_tokens\":false}", context_),
            *tokenizer_->Encode(text, false));
  nlohmann::json body = {{"tokens", *ids}};
  EXPECT_EQ(*ParseDetokenize(body.dump(), context_), "<|endoftext|>" + text);
  body["skip_special_tokens"] = true;
  EXPECT_EQ(*ParseDetokenize(body.dump(), context_), text);
  const absl::Status list = ParseTokenize("{\"prompt\":[1]}", context_).status();
  EXPECT_EQ(list, FieldError("prompt", "must be a string, not an array of 1"));
  EXPECT_EQ(FieldOf(ParseDetokenize("{\"tokens\":[4096]}", context_).status()), "tokens");
  EXPECT_EQ(FieldOf(ParseDetokenize("{\"tokens\":1}", context_).status()), "tokens");
  model_.vocab_size += 100;  // padded beyond the tokenizer's, as some models' are
  const absl::Status padded =
      ParseDetokenize(absl::StrCat("{\"tokens\":[1,", tokenizer_->vocab_size(), "]}"), context_)
          .status();
  EXPECT_EQ(FieldOf(padded), "tokens") << padded;
}

TEST_F(OpenAiRequestTest, TokenizeCountsWhatTheContextDoesNotHold) {
  std::string text;
  for (int i = 0; i < 4096; ++i) text += " fox";
  const std::string chat = "{\"messages\":[{\"role\":\"user\",\"content\":\"" + text + "\"}]}";
  ChatRefused(chat, "messages", "max_model_len");
  const auto ids = ParseTokenize(chat, context_);
  ASSERT_TRUE(ids.ok()) << ids.status();
  EXPECT_GT(ids->size(), 4096u);
  const auto huge =
      ParseTokenize("{\"prompt\":\"" + std::string((4 << 20) + 1, 'a') + "\"}", context_);
  EXPECT_EQ(FieldOf(huge.status()), "prompt");
  EXPECT_TRUE(absl::StrContains(huge.status().message(), "must have at most 4194304"));
}

}  // namespace
}  // namespace switchyard
