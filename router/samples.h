// router/samples.h: the n answers to one prompt, each a request of its own. They share a seed and
// draw by their index, so that (seed, index) gives an answer again.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "router/router.h"

namespace switchyard {

inline constexpr int kSamplesMax = 128;  // of one prompt

// Appends n samples of `prompt`; their request_ids, if it has one, end with "-<index>" if n > 1.
void AppendSamples(const ClientRequest& prompt, int n, std::vector<ClientRequest>* out);

// Draws a seed for each prompt that has more than one sample and none from the client. Samples of
// a prompt follow each other. A prompt's only answer is left to the core.
void ShareSeeds(const std::function<uint64_t()>& draw, std::vector<ClientRequest>* samples);

}  // namespace switchyard
