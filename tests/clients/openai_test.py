"""The openai package against `switchyard serve`: what applications do with it.

usage: openai_test.py BINARY MODEL
"""
import asyncio
import os
import pathlib
import sys
import tempfile

import openai

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "e2e"))
import cluster as e2e  # noqa: E402

PROMPT = "Once upon a time, a fox"
CHAT = [{"role": "user", "content": "Once upon a time"}]
KEY = "a-secret"


def raises(kind, call, **facts):
    """The error that `call` raises: of that class, with these attributes."""
    try:
        call()
    except kind as error:
        for name, value in facts.items():
            assert getattr(error, name) == value, (name, getattr(error, name), value)
        return error
    raise AssertionError(f"no {kind.__name__}")


def test_models(client):
    models = client.models.list().data
    assert [m.id for m in models] == ["fables-7m"], models
    assert client.models.retrieve("fables-7m").id == "fables-7m"


def test_completion(client):
    answer = client.completions.create(model="fables-7m", prompt=PROMPT, max_tokens=12, temperature=0)
    choice = answer.choices[0]
    assert choice.finish_reason == "length" and choice.text, answer
    assert answer.usage.completion_tokens == 12
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 12
    assert answer._request_id == answer.id, (answer._request_id, answer.id)
    again = client.completions.create(model="fables-7m", prompt=PROMPT, max_tokens=12, temperature=0)
    assert again.choices[0].text == choice.text


def test_stream_is_the_whole_answer(client):
    fields = dict(model="fables-7m", prompt=PROMPT, max_tokens=24, seed=5, logprobs=2)
    whole = client.completions.create(**fields)
    chunks = list(client.completions.create(**fields, stream=True, stream_options={"include_usage": True}))
    assert "".join(c.choices[0].text for c in chunks if c.choices) == whole.choices[0].text
    tokens = [t for c in chunks if c.choices and c.choices[0].logprobs for t in c.choices[0].logprobs.token_logprobs]
    assert tokens == whole.choices[0].logprobs.token_logprobs
    assert chunks[-1].usage == whole.usage and not chunks[-1].choices
    with_usage = list(client.completions.create(
        **fields, stream=True, stream_options={"include_usage": True, "continuous_usage_stats": True}))
    counts = [c.usage.completion_tokens for c in with_usage]
    assert counts == sorted(counts) and counts[-1] == 24, counts


def test_samples(client):
    fields = dict(model="fables-7m", prompt=[PROMPT, "The old owl"], n=3, max_tokens=10, seed=11)
    answer = client.completions.create(**fields)
    assert [c.index for c in answer.choices] == list(range(6))
    texts = [c.text for c in answer.choices]
    assert len(set(texts[:3])) > 1, texts
    assert answer.usage.completion_tokens == sum(10 for _ in texts)
    alone = client.completions.create(**dict(fields, prompt=PROMPT, n=1))
    assert alone.choices[0].text == texts[0]  # sample 0 is the same whatever n
    assert answer.usage.prompt_tokens < 2 * 3 * alone.usage.prompt_tokens
    assert [c.text for c in client.completions.create(**fields).choices] == texts
    parts = {}
    for chunk in client.completions.create(**fields, stream=True):
        for choice in chunk.choices:
            parts[choice.index] = parts.get(choice.index, "") + choice.text
    assert [parts[i] for i in range(6)] == texts


def test_chat(client):
    fields = dict(model="fables-7m", messages=CHAT, max_completion_tokens=10, temperature=0)
    answer = client.chat.completions.create(**fields, logprobs=True, top_logprobs=2)
    choice = answer.choices[0]
    assert choice.message.role == "assistant" and choice.message.content
    assert len(choice.logprobs.content) == answer.usage.completion_tokens
    assert all(len(t.top_logprobs) == 2 and t.top_logprobs[0].logprob == t.logprob for t in choice.logprobs.content)
    text = ""
    for chunk in client.chat.completions.create(**fields, stream=True):
        text += chunk.choices[0].delta.content or ""
    assert text == choice.message.content
    several = client.chat.completions.create(**dict(fields, temperature=1, n=2, seed=3))
    assert [c.index for c in several.choices] == [0, 1]
    parts = client.chat.completions.create(**dict(
        fields, messages=[{"role": "user", "content": [{"type": "text", "text": "Once upon a time"}]}]))
    assert parts.choices[0].message.content == choice.message.content


def test_sampling_fields(client):
    def text(**fields):
        return client.completions.create(
            model="fables-7m", prompt=PROMPT, max_tokens=16, **dict(dict(temperature=0), **fields)).choices[0].text

    plain = text()
    assert text(frequency_penalty=2.0, presence_penalty=2.0) != plain
    assert text(extra_body={"repetition_penalty": 3.0}) != plain
    assert text(extra_body={"min_p": 1.0}, temperature=1.5) == plain  # only the best token is left
    assert text(extra_body={"top_k": 1}, temperature=1.5) == plain


def test_logit_bias_and_stops(client, cluster):
    _, answer = cluster.request("POST", "/tokenize", {"prompt": " fox", "add_special_tokens": False},
                                headers={"Authorization": f"Bearer {KEY}"})
    fox = answer["tokens"][0]

    def complete(**fields):
        return client.completions.create(
            model="fables-7m", prompt=PROMPT, **dict(dict(max_tokens=6, temperature=0), **fields)).choices[0]

    assert answer["count"] == 1, answer
    biased = complete(logit_bias={str(fox): 100})
    assert biased.text == " fox" * 6, biased
    stopped = complete(logit_bias={str(fox): 100}, extra_body={"stop_token_ids": [fox]})
    assert stopped.finish_reason == "stop" and stopped.stop_reason == fox and stopped.text == "", stopped
    later = complete(logit_bias={str(fox): 60}, extra_body={"stop_token_ids": [fox], "min_tokens": 3})
    assert later.finish_reason == "stop" and later.text != "", later
    plain = complete(max_tokens=16)
    word = plain.text.split()[2]
    cut = complete(max_tokens=16, stop=[word])
    assert cut.finish_reason == "stop" and cut.stop_reason == word and word not in cut.text, cut
    kept = complete(max_tokens=16, stop=word, extra_body={"include_stop_str_in_output": True})
    assert kept.text == cut.text + word, (kept, cut)


def test_echo_and_prompt_logprobs(client):
    answer = client.completions.create(model="fables-7m", prompt=PROMPT, max_tokens=4, echo=True, logprobs=1)
    choice = answer.choices[0]
    assert choice.text.startswith(PROMPT)
    assert choice.logprobs.token_logprobs[0] is None
    assert len(choice.logprobs.tokens) == answer.usage.total_tokens
    scored = client.completions.create(model="fables-7m", prompt=PROMPT, max_tokens=1, extra_body={"prompt_logprobs": 2})
    assert len(scored.choices[0].prompt_logprobs) == scored.usage.prompt_tokens


def test_errors_have_the_clients_classes(client, cluster):
    def create(**fields):
        return client.completions.create(**dict(dict(model="fables-7m", prompt=PROMPT), **fields))

    raises(openai.BadRequestError, lambda: create(temperature=-1), status_code=400, param="temperature")
    raises(openai.BadRequestError, lambda: create(n=0), param="n")
    raises(openai.BadRequestError, lambda: create(logit_bias={"99999": 1}), param="logit_bias")
    raises(openai.BadRequestError, lambda: create(extra_body={"best_of": 2}), param="best_of")
    raises(openai.BadRequestError, lambda: create(prompt=[7] * 5000), param="prompt")
    raises(openai.NotFoundError, lambda: create(model="gpt-nobody"), status_code=404, code="model_not_found")
    error = raises(openai.BadRequestError, lambda: client.chat.completions.create(model="fables-7m", messages=[]))
    assert error.param == "messages" and error.request_id, error
    stranger = openai.OpenAI(base_url=cluster.http_url + "/v1", api_key="wrong", max_retries=0)
    raises(openai.AuthenticationError, lambda: stranger.models.list(), status_code=401, code="invalid_api_key")
    nowhere = openai.OpenAI(base_url=cluster.http_url + "/v2", api_key=KEY, max_retries=0)
    raises(openai.NotFoundError, lambda: nowhere.models.list())
    refused = openai.OpenAI(base_url="http://127.0.0.1:1/v1", api_key=KEY, max_retries=0)
    raises(openai.APIConnectionError, lambda: refused.models.list())
    raises(openai.InternalServerError,
           lambda: create(max_tokens=1500, extra_body={"timeout": 0.01, "ignore_eos": True}), status_code=504)


async def use_async(cluster):
    client = openai.AsyncOpenAI(base_url=cluster.http_url + "/v1", api_key=KEY, max_retries=0)
    fields = dict(model="fables-7m", prompt=PROMPT, max_tokens=16)
    alone = [(await client.completions.create(**fields, seed=i)).choices[0].text for i in range(3)]
    together = await asyncio.gather(*(client.completions.create(**fields, seed=i % 3) for i in range(24)))
    assert [a.choices[0].text for a in together] == [alone[i % 3] for i in range(24)]
    text = ""
    async for chunk in await client.completions.create(**fields, seed=1, stream=True):
        text += chunk.choices[0].text
    assert text == alone[1]
    # A stream that is left is aborted: nothing runs on.
    stream = await client.completions.create(**dict(fields, max_tokens=1500), stream=True, extra_body={"ignore_eos": True})
    async for _ in stream:
        break
    await stream.close()
    for _ in range(1200):
        metrics = cluster.metrics()
        if not any(v for k, v in metrics.items() if k.startswith("switchyard_num_requests_running")):
            break
        await asyncio.sleep(0.05)
    else:
        raise AssertionError("the aborted stream's request runs on")
    await client.close()


def main():
    binary, model = sys.argv[1:3]
    os.environ.pop("SWITCHYARD_API_KEY", None)
    with tempfile.NamedTemporaryFile("w", suffix=".keys") as keys:
        print("another-key", KEY, sep="\n", file=keys, flush=True)
        with e2e.Cluster(binary, model, "--disaggregate", "always", "--api-key-file", keys.name) as cluster:
            client = openai.OpenAI(base_url=cluster.http_url + "/v1", api_key=KEY, max_retries=0)
            test_models(client)
            test_completion(client)
            test_stream_is_the_whole_answer(client)
            test_samples(client)
            test_chat(client)
            test_sampling_fields(client)
            test_logit_bias_and_stops(client, cluster)
            test_echo_and_prompt_logprobs(client)
            test_errors_have_the_clients_classes(client, cluster)
            asyncio.run(use_async(cluster))
    print("openai", openai.__version__, "passed")


if __name__ == "__main__":
    main()
