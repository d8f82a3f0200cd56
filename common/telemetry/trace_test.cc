#include "common/telemetry/trace.h"

#include <gtest/gtest.h>

namespace switchyard {
namespace {

constexpr char kHeader[] = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

TEST(TraceTest, ReadsTheHeader) {
  const auto context = ParseTraceparent(kHeader);
  ASSERT_TRUE(context.has_value());
  EXPECT_EQ(TraceId(*context), "0af7651916cd43dd8448eb211c80319c");
  EXPECT_EQ(context->span, 0xb7ad6b7169203331u);
  EXPECT_TRUE(context->sampled);
  EXPECT_FALSE(
      ParseTraceparent("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00")->sampled);
  EXPECT_TRUE(ParseTraceparent("01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-later"));
}

TEST(TraceTest, WhatIsNoHeaderIsNone) {
  const std::string good = kHeader;
  EXPECT_FALSE(ParseTraceparent(""));
  for (size_t i = 0; i < good.size(); ++i) {
    EXPECT_FALSE(ParseTraceparent(good.substr(0, i))) << i;
    std::string bad = good;
    bad[i] = 'G';
    EXPECT_FALSE(ParseTraceparent(bad)) << i;
  }
  EXPECT_FALSE(ParseTraceparent(good + "-more")) << "version 0 has no more";
  EXPECT_FALSE(ParseTraceparent("ff" + good.substr(2)));
  EXPECT_FALSE(ParseTraceparent("00-00000000000000000000000000000000-b7ad6b7169203331-01"));
  EXPECT_FALSE(ParseTraceparent("00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01"));
}

TEST(TraceTest, WritesTheHeaderThatItReads) {
  EXPECT_EQ(Traceparent(*ParseTraceparent(kHeader)), kHeader);
  EXPECT_EQ(Traceparent({1, 2, 3, false}),
            "00-00000000000000010000000000000002-0000000000000003-00");
}

}  // namespace
}  // namespace switchyard
