"""grpcio against `switchyard serve`: no generated stubs, everything is learned by server reflection.

usage: grpc_test.py BINARY MODEL MIB     MIB: what hostile messages may add to the router's memory
"""
import os
import pathlib
import sys
import time

import grpc
from google.protobuf import descriptor_pool, message_factory
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "e2e"))
import cluster as e2e  # noqa: E402

SERVICE = "switchyard.v1.Router"
KEY = "a-secret"


class Client:
    """Calls methods by name; requests are dictionaries of fields."""

    def __init__(self, address, key, channel=None):
        self.channel = channel or grpc.insecure_channel(
            address, options=[("grpc.use_local_subchannel_pool", 1)])  # a connection of its own
        self.metadata = [("authorization", f"Bearer {key}")] if key else []
        database = ProtoReflectionDescriptorDatabase(self.channel)
        self.services = database.get_services()
        self.pool = descriptor_pool.DescriptorPool(database)
        self.service = self.pool.FindServiceByName(SERVICE)

    def call(self, name, timeout=60, **fields):
        method = self.service.FindMethodByName(name)
        request_class = message_factory.GetMessageClass(method.input_type)
        response_class = message_factory.GetMessageClass(method.output_type)
        make = self.channel.unary_stream if method.server_streaming else self.channel.unary_unary
        return make(f"/{SERVICE}/{name}", request_serializer=request_class.SerializeToString,
                    response_deserializer=response_class.FromString)(
                        request_class(**fields), timeout=timeout, metadata=self.metadata)

    def generate(self, **fields):
        return list(self.call("Generate", **fields))


def code_of(call):
    try:
        call()
    except grpc.RpcError as error:
        return error.code(), error.details()
    return grpc.StatusCode.OK, ""


def test_reflection_and_health(client):
    assert {SERVICE, "grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"} <= set(client.services)
    # gRPC's own health service tells no message types: an empty request, and field 1 of the answer is SERVING.
    check = client.channel.unary_unary("/grpc.health.v1.Health/Check")
    assert check(b"") == b"\x08\x01"  # and it needs no key


def test_information(client):
    info = client.call("GetModelInfo")
    assert info.id == "fables-7m" and info.has_tokenizer and info.vocab_size == 4096
    load = client.call("GetLoad")
    assert {w.role for w in load.workers} == {"prefill", "decode"} and all(w.alive for w in load.workers)


def test_generate(client):
    fields = dict(text="Once upon a time", max_tokens=16, sampling={"temperature": 0}, logprobs=2, prompt_logprobs=0)
    responses = client.generate(**fields)
    first, last = responses[0], responses[-1]
    tokens = [t for r in responses for t in r.token_ids]
    assert len(tokens) == 16 and last.finish_reason == 2 and last.usage.completion_tokens == 16
    assert len(first.prompt_logprobs) == len(first.prompt_token_ids) - 1 == last.usage.prompt_tokens - 1
    assert all(len(p.top) == 2 for r in responses for p in r.logprobs)
    by_ids = client.generate(tokens={"ids": first.prompt_token_ids}, max_tokens=16, sampling={"temperature": 0})
    assert [t for r in by_ids for t in r.token_ids] == tokens
    assert "".join(r.text for r in by_ids) == "".join(r.text for r in responses)


def test_samples(client):
    sampling = {"seed": 9, "min_p": 0.01, "presence_penalty": 0.5, "frequency_penalty": 0.5, "repetition_penalty": 1.1,
                "logit_bias": {7: -100.0}}
    fields = dict(text="The owl", max_tokens=8, sampling=sampling)
    answers = {}
    for r in client.generate(request_id="many", n=3, **fields):
        assert r.request_id == f"many-{r.index}"
        answers.setdefault(r.index, []).extend(r.token_ids)
    assert sorted(answers) == [0, 1, 2] and len({tuple(a) for a in answers.values()}) > 1
    alone = [t for r in client.generate(**fields) for t in r.token_ids]
    assert alone == answers[0]


def test_stops(client):
    fields = dict(text="Once upon a time", sampling={"temperature": 0})
    plain = client.generate(max_tokens=16, **fields)
    text = "".join(r.text for r in plain)
    token = [t for r in plain for t in r.token_ids][3]
    stopped = client.generate(max_tokens=16, stop_token_ids=[token], **fields)[-1]
    assert stopped.finish_reason == 1 and stopped.stop_token == token
    word = text.split()[2]
    for include in (False, True):
        responses = client.generate(max_tokens=16, stop=[word], include_stop_str_in_output=include, **fields)
        got = "".join(r.text for r in responses)
        assert responses[-1].stop_match == word and got == text[:text.index(word)] + (word if include else ""), got
    tail = client.generate(max_tokens=1, truncate_prompt_tokens=2, **fields)[-1]
    assert tail.usage.prompt_tokens == 2


def test_errors(client, address):
    for fields, field, words in [
        (dict(), "prompt", "prompt"),
        (dict(text="a", max_tokens=0), "max_tokens", "max_tokens"),
        (dict(text="a", n=1000), "n", "n is 1000"),
        (dict(text="a", sampling={"top_p": 2}), "top_p", "top_p"),
        (dict(text="a", sampling={"logit_bias": {5: 1000}}), "logit_bias[5]", "logit_bias"),
        (dict(text="a", min_tokens=17), "min_tokens", "min_tokens"),
        (dict(text="a", truncate_prompt_tokens=-2), "truncate_prompt_tokens", "-2"),
        (dict(tokens={"ids": [5] * 5000}), "prompt", "max_model_len"),
    ]:
        try:
            client.generate(**fields)
        except grpc.RpcError as error:
            assert error.code() == grpc.StatusCode.INVALID_ARGUMENT and words in error.details(), (fields, error)
            assert dict(error.trailing_metadata())["field"] == field, (fields, error)
        else:
            raise AssertionError(f"{fields}: no error")
    late = dict(text="a", max_tokens=1500, ignore_eos=True)
    assert code_of(lambda: client.generate(timeout=0.02, **late))[0] == grpc.StatusCode.DEADLINE_EXCEEDED
    for key in ("", "wrong"):
        stranger = Client(address, key)
        assert code_of(lambda c=stranger: c.generate(text="a"))[0] == grpc.StatusCode.UNAUTHENTICATED
        assert code_of(lambda c=stranger: c.call("Drain"))[0] == grpc.StatusCode.UNAUTHENTICATED


def test_hostile(client, cluster, grown_limit):
    """Whatever a message holds, the answer names field, value and limit, and the router stays as large as it was."""
    router = cluster.pids("router")[0]

    def resident():
        with open(f"/proc/{router}/statm") as statm:
            return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    nan, inf = float("nan"), float("inf")
    million = range(1_000_000)
    client.generate(text="a", max_tokens=1)
    before = resident()
    for fields, words in [
        (dict(text="the fox saw " * 500_000), ["text", "6000000", "max_model_len 2048"]),
        (dict(text="the fox saw " * 500_000, n=128), ["text", "6000000", "max_model_len 2048"]),
        (dict(text="a" * 3_000_000, truncate_prompt_tokens=-2), ["truncate_prompt_tokens", "-2"]),
        (dict(tokens={"ids": million}), ["prompt", "1000000", "max_model_len 2048"]),
        (dict(tokens={"ids": [-1]}), ["prompt[0]", "-1", "4096"]),
        (dict(tokens={"ids": [2**31 - 1]}), ["prompt[0]", "2147483647", "4096"]),
        (dict(text="a", stop=["a"] * 1_000_000, n=128), ["stop", "1000000", "16"]),
        (dict(text="a", stop=["a" * 1_000_000]), ["stop[0]", "1000000", "1024"]),
        (dict(text="a", stop=[""]), ["stop[0]", "0 bytes", "1024"]),
        (dict(text="a", stop_token_ids=million, n=128), ["stop_token_ids", "1000000", "256"]),
        (dict(text="a", stop_token_ids=[-5]), ["stop_token_ids[0]", "-5", "4096"]),
        (dict(text="a", sampling={"logit_bias": {i: 1.0 for i in range(300_000)}}, n=128), ["logit_bias", "300000", "1024"]),
        (dict(text="a", sampling={"logit_bias": {-1: 1.0}}), ["logit_bias[-1]", "4096"]),
        (dict(text="a", sampling={"logit_bias": {1: nan}}), ["logit_bias[1]", "nan", "100"]),
        (dict(text="a", sampling={"temperature": nan}), ["temperature", "nan", "100"]),
        (dict(text="a", sampling={"temperature": -inf}), ["temperature", "-inf", "100"]),
        (dict(text="a", sampling={"top_p": nan}), ["top_p", "nan", "1"]),
        (dict(text="a", sampling={"min_p": inf}), ["min_p", "inf", "1"]),
        (dict(text="a", sampling={"top_k": -2**31}), ["top_k", "-2147483648", "-1"]),
        (dict(text="a", sampling={"repetition_penalty": nan}), ["repetition_penalty", "nan", "100"]),
        (dict(text="a", sampling={"presence_penalty": 1e30}), ["presence_penalty", "1e+30", "2"]),
        (dict(text="a", max_tokens=-2**31), ["max_tokens", "-2147483648", "1"]),
        (dict(text="a", min_tokens=-1), ["min_tokens", "-1", "16"]),
        (dict(text="a", n=-1), ["n is -1", "128"]),
        (dict(text="a", logprobs=2**31 - 1), ["logprobs", "2147483647", "20"]),
        (dict(text="a", prompt_logprobs=-1), ["prompt_logprobs", "-1", "0"]),
        (dict(text="a", request_id="r" * 1_000_000), ["request_id", "1000000", "128"]),
        (dict(text="a", cache_salt="s" * 1_000_000), ["cache_salt", "1000000", "256"]),
    ]:
        code, details = code_of(lambda f=fields: client.generate(**f))
        assert code == grpc.StatusCode.INVALID_ARGUMENT, (list(fields), code, details[:300])
        assert all(word in details for word in words) and len(details) < 500, (list(fields), words, details[:500])
    # gRPC's own limits: of a message, and of metadata.
    code, details = code_of(lambda: client.generate(text="a" * (17 << 20)))
    assert code == grpc.StatusCode.RESOURCE_EXHAUSTED and "16777216" in details, (code, details)
    for flood in ([("x-flood", "y" * 1_000_000)], [(f"x-{i}", "y" * 100) for i in range(10_000)]):
        flooding = Client(cluster.grpc_address, KEY)
        flooding.metadata += flood
        code, details = code_of(lambda c=flooding: c.generate(text="a", max_tokens=1))
        # Refused while the client still writes: it sees the answer, or that its connection is gone.
        assert code in (grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAVAILABLE), (code, details)
        flooding.channel.close()
    # A message that is none: a length beyond its end.
    torn = client.channel.unary_stream(f"/{SERVICE}/Generate")
    code, _ = code_of(lambda: list(torn(b"\x12\xff\xff\xff\x7f", timeout=20, metadata=client.metadata)))
    assert code == grpc.StatusCode.INTERNAL, code  # what gRPC says of bytes that it cannot parse
    assert client.generate(text="a", max_tokens=1)[-1].finish_reason == 2
    grown = resident() - before >> 20
    assert grown < grown_limit, f"{grown} MiB more, the limit is {grown_limit}"


def test_cancel_and_abort(client):
    for _ in range(20):  # a machine may end the request before this client has aborted it
        running = client.call("Generate", text="a", max_tokens=1500, ignore_eos=True, request_id="long")
        next(running)
        again = code_of(lambda: client.generate(text="a", request_id="long"))[0]
        found = client.call("Abort", request_id="long").found
        if list(running)[-1].finish_reason == 3:  # ABORT
            assert again == grpc.StatusCode.ALREADY_EXISTS and found, (again, found)
            break
    else:
        raise AssertionError("nothing was aborted")
    assert not client.call("Abort", request_id="long").found
    dropped = client.call("Generate", text="a", max_tokens=1500, ignore_eos=True, request_id="again")
    next(dropped)
    dropped.cancel()
    for _ in range(1200):
        load = client.call("GetLoad")
        if load.requests_running + load.requests_waiting == 0:
            return
        time.sleep(0.05)
    raise AssertionError(f"a cancelled request runs on: {load}")


def main():
    binary, model, grown_limit = sys.argv[1:4]
    os.environ["SWITCHYARD_API_KEY"] = KEY  # what `serve` gives its router
    with e2e.Cluster(binary, model, "--disaggregate", "always") as cluster:
        client = Client(cluster.grpc_address, KEY)
        test_reflection_and_health(client)
        test_information(client)
        test_generate(client)
        test_samples(client)
        test_stops(client)
        test_errors(client, cluster.grpc_address)
        test_hostile(client, cluster, int(grown_limit))
        test_cancel_and_abort(client)
    print("grpcio", grpc.__version__, "passed")


if __name__ == "__main__":
    main()
