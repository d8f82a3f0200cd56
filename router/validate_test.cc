#include "router/validate.h"

#include <gtest/gtest.h>

#include <cmath>
#include <functional>

namespace switchyard {
namespace {

class ValidateTest : public ::testing::Test {
 protected:
  ValidateTest() {
    model_.vocab_size = 100;
    model_.max_model_len = 32;
    request_.prompt_ids = {1, 2, 3};
  }
  // The change makes the request bad, and the message holds each of `parts`.
  void Refused(const std::function<void(ClientRequest&)>& change,
               std::initializer_list<const char*> parts) {
    ClientRequest r = request_;
    change(r);
    const absl::Status s = ValidateRequest(model_, limits_, has_tokenizer_, &r);
    EXPECT_EQ(s.code(), absl::StatusCode::kInvalidArgument) << s;
    for (const char* part : parts) {
      EXPECT_NE(s.message().find(part), absl::string_view::npos) << s << " lacks " << part;
    }
    EXPECT_EQ(s.GetPayload(kFieldPayload), absl::Cord(*parts.begin())) << s;
  }
  ModelDescription model_;
  RouterLimits limits_;
  bool has_tokenizer_ = true;
  ClientRequest request_;
};

TEST_F(ValidateTest, ErrorsNameFieldValueAndLimit) {
  using R = ClientRequest;
  Refused([](R& r) { r.prompt_ids = {}; }, {"prompt", "0", "1"});
  Refused([](R& r) { r.prompt_ids = std::vector<TokenId>(32, 1); },
          {"prompt", "32", "max_model_len"});
  Refused([](R& r) { r.prompt_ids = {1, 100, 3}; }, {"prompt[1]", "100"});
  Refused([](R& r) { r.prompt_ids = {1, 2, -1}; }, {"prompt[2]", "-1", "100"});
  Refused([](R& r) { r.max_tokens = 0; }, {"max_tokens", "0", "1"});
  Refused([](R& r) { r.sampling.temperature = -1; }, {"temperature", "-1", "100"});
  Refused([](R& r) { r.sampling.temperature = NAN; }, {"temperature", "nan"});
  Refused([](R& r) { r.sampling.temperature = INFINITY; }, {"temperature", "inf"});
  Refused([](R& r) { r.sampling.top_p = 0; }, {"top_p", "0", "1"});
  Refused([](R& r) { r.sampling.top_p = 1.5; }, {"top_p", "1.5"});
  Refused([](R& r) { r.sampling.top_k = -2; }, {"top_k", "-2", "-1"});
  Refused([](R& r) { r.sampling.min_p = 1.5; }, {"min_p", "1.5", "1"});
  Refused([](R& r) { r.sampling.presence_penalty = -3; }, {"presence_penalty", "-3", "-2"});
  Refused([](R& r) { r.sampling.frequency_penalty = NAN; }, {"frequency_penalty", "nan"});
  Refused([](R& r) { r.sampling.repetition_penalty = 0; }, {"repetition_penalty", "0", "100"});
  Refused([](R& r) { r.sampling.logit_bias = {{100, 1.0f}}; }, {"logit_bias[100]", "100"});
  Refused([](R& r) { r.sampling.logit_bias = {{1, 101.0f}}; }, {"logit_bias[1]", "101", "100"});
  Refused([](R& r) { r.sampling.logit_bias = {{1, 1.0f}, {1, 2.0f}}; }, {"logit_bias[1]", "twice"});
  Refused(
      [](R& r) {
        r.sampling.logit_bias.assign(1025, {1, 1.0f});
      },
      {"logit_bias", "1025", "1024"});
  Refused([](R& r) { r.min_tokens = 17; }, {"min_tokens", "17", "16"});
  Refused([](R& r) { r.sampling.logprobs = 21; }, {"logprobs", "21", "20"});
  Refused([](R& r) { r.prompt_logprobs = 21; }, {"prompt_logprobs", "21", "20"});
  Refused([](R& r) { r.stop.assign(17, "x"); }, {"stop", "17", "16"});
  Refused([](R& r) { r.stop = {""}; }, {"stop[0]", "0"});
  Refused([](R& r) { r.stop = {"a", std::string(1025, 'x')}; }, {"stop[1]", "1025", "1024"});
  Refused([](R& r) { r.stop_token_ids = {100}; }, {"stop_token_ids[0]", "100"});
  Refused([](R& r) { r.stop_token_ids.assign(257, 1); }, {"stop_token_ids", "257", "256"});
  Refused([](R& r) { r.request_id.assign(129, 'x'); }, {"request_id", "129", "128"});
  has_tokenizer_ = false;
  Refused([](R& r) { r.stop = {"a"}; }, {"stop", "tokenizer"});
}

TEST_F(ValidateTest, ListedLogprobsAreBounded) {
  model_.max_model_len = 2048;
  request_.prompt_ids = std::vector<TokenId>(2000, 1);
  request_.max_tokens = 100;  // of which 48 fit
  const auto check = [this](size_t n, bool streamed) {
    return CheckListed(model_, std::vector<ClientRequest>(n, request_), streamed);
  };
  EXPECT_TRUE(check(1024, false).ok());
  request_.prompt_logprobs = 20;  // 42,000 in each answer
  EXPECT_TRUE(check(12, false).ok());
  const absl::Status many = check(13, false);
  EXPECT_EQ(many.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(many.message(),
            "prompt_logprobs: 13 answers may list 546000 logprobs of prompts and 0 of answers, "
            "must be at most 524288");
  EXPECT_EQ(many.GetPayload(kFieldPayload), absl::Cord("prompt_logprobs"));
  EXPECT_TRUE(check(1, true).ok());  // 65,536 at most
  EXPECT_EQ(check(2, true).code(), absl::StatusCode::kInvalidArgument);
  request_.prompt_logprobs = -1;
  request_.sampling.logprobs = 20;  // 1,008 in each
  EXPECT_TRUE(check(520, false).ok());
  EXPECT_EQ(check(521, false).GetPayload(kFieldPayload), absl::Cord("logprobs"));
  EXPECT_TRUE(check(1024, true).ok());  // sent as they come
}

TEST_F(ValidateTest, MaxTokensIsCutToTheContext) {
  request_.max_tokens = 1000;
  request_.min_tokens = 500;
  request_.sampling.top_k = -1;
  ASSERT_TRUE(ValidateRequest(model_, limits_, has_tokenizer_, &request_).ok());
  EXPECT_EQ(request_.max_tokens, 29);
  EXPECT_EQ(request_.min_tokens, 29);
  EXPECT_EQ(request_.sampling.top_k, 0);
  request_.prompt_ids = std::vector<TokenId>(31, 1);
  ASSERT_TRUE(ValidateRequest(model_, limits_, has_tokenizer_, &request_).ok());
  EXPECT_EQ(request_.max_tokens, 1);
}

}  // namespace
}  // namespace switchyard
