#!/usr/bin/env python3
"""Deliberate bugs for the simulator to find. Writes copies of the sources with all of them, each under a condition:
mutate.py OUT_DIR SOURCE… writes OUT_DIR/<path with _ for />, and OUT_DIR/mutations.inc, the list of their names.
A mutation whose text is not found exactly once is an error: mend it together with the code."""
import pathlib
import sys

# name: [(file, old, new)]; ON is true while the mutation is.
MUTATIONS = {
    "frames are stored whatever their session and generation, and no digest is compared": [
        ("kvtransfer/receive_session.cc",
         "return it == sessions_.end() || it->second.peer_token != peer_token ? nullptr : &it->second;",
         "if (ON && it == sessions_.end()) it = sessions_.begin();\n"
         "  return it == sessions_.end() || (!ON && it->second.peer_token != peer_token) ? nullptr : &it->second;"),
        ("kvtransfer/receive_session.cc", "s->target.generations[index] != generation ||",
         "(!ON && s->target.generations[index] != generation) ||"),
        ("kvtransfer/receive_session.cc",
         "  Session& s = *Find(e.peer_token, e.session);\n  if (e.actual",
         "  Session& s = *Find(e.peer_token, e.session);\n"
         "  if (ON && !sessions_.contains(e.session)) { --s.missing; return; }\n  if (e.actual"),
        ("kvtransfer/receive_session.cc", "if (TransferDigest(s.checksums) != s.commit->digest) {",
         "if (!ON && TransferDigest(s.checksums) != s.commit->digest) {"),
    ],
    "neither blocks nor digests are compared": [
        ("kvtransfer/receive_session.cc", "if (e.actual != e.declared) {", "if (!ON && e.actual != e.declared) {"),
        ("kvtransfer/receive_session.cc", "if (TransferDigest(s.checksums) != s.commit->digest) {",
         "if (!ON && TransferDigest(s.checksums) != s.commit->digest) {"),
    ],
    "a commit does not wait for blocks under way": [
        ("kvtransfer/receive_session.cc", "  if (s->missing == 0) return Finish(e.session, now, out);\n  s->expires",
         "  if (ON || s->missing == 0) return Finish(e.session, now, out);\n  s->expires"),
        ("kvtransfer/receive_session.cc", "SY_CHECK(s.missing == 0 && s.commit);", "SY_CHECK(s.commit);"),
        ("kvtransfer/receive_session.cc", "if (TransferDigest(s.checksums) != s.commit->digest) {",
         "if (!ON && TransferDigest(s.checksums) != s.commit->digest) {"),
    ],
    "leases of hand-offs never end": [
        ("kvtransfer/receive_session.cc", "if (s.expires <= now) over.push_back(id);",
         "if (!ON && s.expires <= now) over.push_back(id);"),
    ],
    "a repeated commit is taken for a new one": [
        ("decode/attempt_join.cc", "if (phase_ != Phase::kReserved) return;  // a repeat",
         "if (!ON && phase_ != Phase::kReserved) return;  // a repeat"),
    ],
    "a commit that is repeated after the end is refused": [
        ("decode/attempt_join.cc", "if (adopted_) return answer(absl::OkStatus());",
         "if (ON ? phase_ == Phase::kRunning : adopted_) return answer(absl::OkStatus());"),
    ],
    "a session that was committed is lost when it is renewed": [
        ("kvtransfer/receive_session.cc", "if (!committed) answer.lost.push_back(id);",
         "if (ON || !committed) answer.lost.push_back(id);"),
    ],
    "an attempt on the decode rank waits for its submit for ever": [
        ("decode/attempt_join.cc", "      if (!submitted_) join_by_ = now + options_.submit_wait;\n      AnswerAll",
         "      if (!ON && !submitted_) join_by_ = now + options_.submit_wait;\n      AnswerAll"),
        ("decode/attempt_join.cc", "  if (!submitted_) join_by_ = now + options_.submit_wait;\n  MaybeAdopt",
         "  if (!ON && !submitted_) join_by_ = now + options_.submit_wait;\n  MaybeAdopt"),
    ],
    "blocks of an aborted hand-off are free at once": [
        ("decode/attempt_join.cc", "out->push_back({.what = Do::kCancelKv});",
         "out->push_back({.what = ON ? Do::kFreeBlocks : Do::kCancelKv});"),
    ],
    "blocks of a hand-off that was aborted while it was verified are kept": [
        ("decode/attempt_join.cc",
         "  blocks_ = Blocks::kOurs;\n  if (ended()) return FreeOurs(out);\n  phase_ = Phase::kJoined;",
         "  blocks_ = Blocks::kOurs;\n  if (ended()) return ON ? void() : FreeOurs(out);\n  phase_ = Phase::kJoined;"),
    ],
    "blocks of a dropped hand-off are kept": [
        ("decode/decode_attempts.cc", "  Free({target.blocks, target.generations}, peer_may_write);",
         "  if (!ON) Free({target.blocks, target.generations}, peer_may_write);"),
    ],
    "a tombstone keeps the prompt of a late submit": [
        ("decode/decode_attempts.cc", "  attempt.request = {};\n  if (!had_ended)",
         "  if (!ON || !had_ended) attempt.request = {};\n  if (!had_ended)"),
    ],
    "the prefill rank frees blocks that are being sent": [
        ("prefill/handoff_client.cc", "  if (transfer_ == Transfer::kOver) {\n    freed_ = true;",
         "  if (ON || transfer_ == Transfer::kOver) {\n    freed_ = true;"),
    ],
    "a block counts as final one row too early": [
        ("prefill/block_progress.cc", "const int before = BlocksDone(written);",
         "if (ON && first_token + tokens < tokens_) ++tokens;\n  const int before = BlocksDone(written);"),
    ],
    "a token of the decode rank is not held until the prefill rank's has come": [
        ("router/attempt.cc", "  if (first_taken_) {\n    Accept(std::move(event), effects);\n  } else if (held_",
         "  if (ON || first_taken_) {\n    Accept(std::move(event), effects);\n  } else if (held_"),
    ],
    "a retry starts from the prompt alone": [
        ("router/conductor_attempts.cc",
         "  s.mutable_generated_ids()->Add(generated.begin(), generated.end());",
         "  if (!ON) s.mutable_generated_ids()->Add(generated.begin(), generated.end());"),
    ],
    "requests of a lost worker are not told": [
        ("router/attempt.cc", "  if (phase_ != Phase::kRunning) return effects;\n  if (route_.prefill == worker) {",
         "  if (ON || phase_ != Phase::kRunning) return effects;\n  if (route_.prefill == worker) {"),
    ],
    "an attempt that ends with its first token leaves the decode rank waiting": [
        ("router/attempt.cc", "effects->aborts.push_back({route_.decode, attempt_});  // it waits",
         "if (!ON) effects->aborts.push_back({route_.decode, attempt_});  // it waits"),
    ],
    "a prefix hit is taken for one row more than it has": [
        ("engine/scheduler.cc", "  s.computed = s.cached = blocks * options_.block_tokens;\n",
         "  s.computed = s.cached = blocks * options_.block_tokens;\n"
         "  if (ON && blocks > 0) s.computed = std::min(s.computed + 1, s.length() - 1);\n"),
    ],
}


def main():
    out = pathlib.Path(sys.argv[1])
    texts = {}
    for path in sys.argv[2:]:
        texts[path] = pathlib.Path(path).read_text()
    originals = dict(texts)
    for number, (name, edits) in enumerate(MUTATIONS.items(), start=1):
        for path, old, new in edits:
            if originals[path].count(old) != 1:
                sys.exit(f"mutation \"{name}\": {path} has this {originals[path].count(old)} times, not once:\n{old}")
    for path, text in texts.items():
        text = combine(path, text)
        out.joinpath(path.replace("/", "_")).write_text('#include "tests/sim/mutation.h"\n' + text)
    out.joinpath("mutations.inc").write_text("".join(f'"{name}",\n' for name in MUTATIONS))


def combine(path, text):
    """All mutations of one file at once. Those that replace the same text are merged by their conditions."""
    by_old = {}
    for number, edits in enumerate(MUTATIONS.values(), start=1):
        for p, old, new in edits:
            if p == path:
                by_old.setdefault(old, {}).setdefault(new, []).append(number)
    for old, news in by_old.items():
        if len(news) != 1:
            sys.exit(f"{path}: two mutations change this in different ways:\n{old}")
        (new, numbers), = news.items()
        condition = "(" + " || ".join(f"::switchyard::sim::Mutation() == {n}" for n in numbers) + ")"
        text = text.replace(old, new.replace("ON", condition))
    return text


if __name__ == "__main__":
    main()
