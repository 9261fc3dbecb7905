"""The openai client, as it is, against the server."""

from __future__ import annotations

import json

import pytest

openai = pytest.importorskip("openai")

HI = [{"role": "user", "content": "hi"}]
ADD = {
    "type": "function",
    "function": {
        "name": "add",
        "parameters": {
            "type": "object",
            "properties": {
                "a": {"type": "integer", "minimum": 0, "maximum": 99},
                "unit": {"enum": ["m", "km"]},
            },
            "required": ["a", "unit"],
        },
    },
}
THOUGHT = 'start: <think> "why" </think> "\\n" "because"'
"""A grammar by which a model that was never trained thinks, too."""


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0) as client:
        yield client


def test_the_server_knows_all_that_the_client_may_send():
    from openai.types import chat, completion_create_params

    from zaya_jax.serve import schema

    chats, texts = chat.completion_create_params, completion_create_params
    for asked, known in (
        (chats.CompletionCreateParamsStreaming, schema.ChatRequest),
        (texts.CompletionCreateParamsStreaming, schema.CompletionRequest),
    ):
        assert set(asked.__annotations__) <= set(known.model_fields)


def test_what_changes_nothing_is_ignored_and_what_is_not_here_is_refused(client):
    answer = client.chat.completions.create(
        model="tiny", messages=HI, max_tokens=2, reasoning_effort="max",
        prompt_cache_key="x", prompt_cache_retention="24h",
        prompt_cache_options={"mode": "explicit", "ttl": "30m"},
    )  # fmt: skip
    assert answer.usage.completion_tokens == 2
    with pytest.raises(openai.BadRequestError, match="moderation: is not supported"):
        client.chat.completions.create(
            model="tiny", messages=HI, moderation={"model": "omni-moderation-latest"}
        )


def test_models_are_listed(client):
    (model,) = client.models.list().data
    assert (model.id, model.object) == ("tiny", "model")
    assert client.models.retrieve("tiny") == model
    with pytest.raises(openai.NotFoundError, match="there is 'tiny'"):
        client.models.retrieve("large")


def test_a_chat_streams_what_it_answers_at_once(client):
    ask = dict(model="tiny", messages=HI, max_completion_tokens=24, seed=7, temperature=0.8)
    whole = client.chat.completions.create(**ask)
    (choice,) = whole.choices
    assert choice.finish_reason in ("stop", "length")
    assert 0 < whole.usage.completion_tokens <= 24
    chunks = list(
        client.chat.completions.create(**ask, stream=True, stream_options={"include_usage": True})
    )
    said = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert said == choice.message.content
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == choice.finish_reason
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert len({chunk.id for chunk in chunks}) == 1
    other = client.chat.completions.create(**ask | {"seed": 8})
    assert other.choices[0].message.content != said


def test_choices_differ_and_can_be_had_again(client):
    ask = dict(model="tiny", messages=HI, max_tokens=12, n=3, seed=1)
    first, again = (client.chat.completions.create(**ask) for _ in range(2))
    texts = [choice.message.content for choice in first.choices]
    assert [choice.index for choice in first.choices] == [0, 1, 2]
    assert len(set(texts)) > 1
    assert texts == [choice.message.content for choice in again.choices]
    alone = client.chat.completions.create(**ask | {"n": 1, "seed": 3})
    assert alone.choices[0].message.content == texts[2]


def test_logprobs_of_a_chat(client):
    answer = client.chat.completions.create(
        model="tiny", messages=HI, max_tokens=6, temperature=0, logprobs=True, top_logprobs=3
    )
    content = answer.choices[0].logprobs.content
    assert len(content) == answer.usage.completion_tokens
    for token in content:
        assert len(token.top_logprobs) == 3
        assert token.top_logprobs[0].token == token.token  # greedy
        assert token.top_logprobs[0].logprob == token.logprob <= 0
    written = b"".join(bytes(token.bytes) for token in content).decode(errors="replace")
    assert written.startswith(answer.choices[0].message.content)


@pytest.mark.parametrize("stream", [False, True])
def test_reasoning_stands_apart(client, stream):
    ask = dict(model="tiny", messages=HI,
               extra_body={"response_format": {"type": "grammar", "grammar": THOUGHT}})  # fmt: skip
    if stream:
        deltas = [c.choices[0].delta for c in client.chat.completions.create(**ask, stream=True)]
        reasoning = "".join(getattr(delta, "reasoning_content", None) or "" for delta in deltas)
        content = "".join(delta.content or "" for delta in deltas)
    else:
        answer = client.chat.completions.create(**ask)
        message = answer.choices[0].message
        reasoning, content = message.reasoning_content, message.content
        details = answer.usage.completion_tokens_details
        assert 0 < details.reasoning_tokens < answer.usage.completion_tokens
    assert (reasoning, content) == ("why", "because")


@pytest.mark.parametrize("stream", [False, True])
def test_a_demanded_call_fits_its_schema_and_can_be_answered(client, stream):
    ask = dict(model="tiny", messages=HI, tools=[ADD], tool_choice="required", seed=3,
               parallel_tool_calls=False, reasoning_effort="none")  # fmt: skip
    if stream:
        calls = {}
        for chunk in client.chat.completions.create(**ask, stream=True):
            for call in chunk.choices[0].delta.tool_calls or []:
                known = calls.setdefault(call.index, {"id": call.id, "type": "function",
                                                      "function": {"name": call.function.name,
                                                                   "arguments": ""}})  # fmt: skip
                known["function"]["arguments"] += call.function.arguments or ""
        assert chunk.choices[0].finish_reason == "tool_calls"
        (call,) = calls.values()
    else:
        answer = client.chat.completions.create(**ask)
        assert answer.choices[0].finish_reason == "tool_calls"
        call = answer.choices[0].message.tool_calls[0].model_dump()
    assert call["function"]["name"] == "add"
    arguments = json.loads(call["function"]["arguments"])
    assert 0 <= arguments["a"] <= 99 and arguments["unit"] in ("m", "km")
    turns = [
        *HI,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": call["id"], "content": "12"},
    ]
    answer = client.chat.completions.create(model="tiny", messages=turns, tools=[ADD], max_tokens=4)
    assert answer.usage.completion_tokens == 4


def test_an_answer_by_a_schema(client):
    schema = {
        "type": "object",
        "properties": {
            "colour": {"enum": ["red", "blue"]},
            "counts": {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 9},
                       "minItems": 2, "maxItems": 2},
        },
        "required": ["colour", "counts"],
        "additionalProperties": False,
    }  # fmt: skip
    for seed in range(3):
        answer = client.chat.completions.create(
            model="tiny",
            messages=HI,
            seed=seed,
            reasoning_effort="none",
            response_format={
                "type": "json_schema",
                "json_schema": {"name": "c", "schema": schema},
            },
        )
        found = json.loads(answer.choices[0].message.content)
        assert found["colour"] in ("red", "blue") and len(found["counts"]) == 2
    anything = client.completions.create(
        model="tiny",
        prompt="x",
        max_tokens=300,
        seed=5,
        extra_body={"response_format": {"type": "regex", "pattern": "[0-9]{3}-[a-f]"}},
    )
    assert anything.choices[0].text[3] == "-"


def test_completions_of_texts_and_of_token_lists(client):
    ask = dict(model="tiny", max_tokens=5, temperature=0)
    both = client.completions.create(prompt=["def f", "x = "], **ask)
    assert [choice.index for choice in both.choices] == [0, 1]
    alone = [client.completions.create(prompt=p, **ask).choices[0].text for p in ("def f", "x = ")]
    assert [choice.text for choice in both.choices] == alone
    assert alone[0] != alone[1]
    told = client.completions.create(
        prompt="def f", extra_body={"return_token_ids": True}, **ask
    ).choices[0]
    ids = told.prompt_token_ids
    lists = client.completions.create(prompt=[ids, ids[:1]], **ask)
    assert lists.choices[0].text == alone[0]
    assert client.completions.create(prompt=ids, **ask).choices[0].text == alone[0]
    assert both.usage.completion_tokens == 10


def test_echo_scores_the_prompt_as_the_choices_were_scored(client):
    """What the model chose is scored the same when it comes back as a prompt."""
    ask = dict(model="tiny", temperature=0, logprobs=2)
    chosen = client.completions.create(
        prompt="def f(x)", max_tokens=8, extra_body={"return_token_ids": True}, **ask
    ).choices[0]
    ids = chosen.prompt_token_ids + chosen.token_ids
    echoed = client.completions.create(prompt=ids, max_tokens=0, echo=True, **ask)
    choice = echoed.choices[0]
    assert choice.text.startswith("def f(x)") and choice.text.endswith(chosen.text)
    assert echoed.usage.completion_tokens == 0
    scores = choice.logprobs.token_logprobs
    assert len(scores) == len(ids) and scores[0] is None
    assert scores[-8:] == pytest.approx(chosen.logprobs.token_logprobs, abs=1e-4)
    for score, top in zip(scores[-8:], choice.logprobs.top_logprobs[-8:], strict=True):
        assert score == max(top.values())  # greedy
    offsets = choice.logprobs.text_offset
    assert offsets == sorted(offsets) and offsets[0] == 0 and offsets[-1] < len(choice.text)


@pytest.mark.parametrize("echo", [False, True])
def test_a_stream_of_completions_says_what_the_whole_says(client, echo):
    prompts = ["a", "def f(x):\n    return x\n" * 30]  # the second is read in several chunks
    ask = dict(model="tiny", prompt=prompts, n=2, max_tokens=12, seed=4, logprobs=1, echo=echo)
    whole = client.completions.create(**ask)
    texts, lists, pieces = {}, {}, 0
    for chunk in client.completions.create(**ask, stream=True):
        for choice in chunk.choices:
            pieces += bool(choice.text)
            texts[choice.index] = texts.get(choice.index, "") + choice.text
            told = lists.setdefault(choice.index, ([], [], [], []))
            for known, new in zip(told, listed(choice), strict=True):
                known.extend(new)
    assert texts == {choice.index: choice.text for choice in whole.choices}
    assert lists == {choice.index: listed(choice) for choice in whole.choices}
    assert all(text.startswith(prompts[i // 2]) for i, text in texts.items()) or not echo
    assert pieces > 4 or echo  # scores of a prompt are told when all of them are there


def listed(choice):
    told = choice.logprobs
    return told.tokens, told.token_logprobs, told.top_logprobs, told.text_offset


def test_stop_strings_end_before_themselves(client):
    ask = dict(model="tiny", prompt="def f", max_tokens=40, temperature=0)
    text = client.completions.create(**ask).choices[0].text
    stop = text[3:5]
    (choice,) = client.completions.create(**ask, stop=stop).choices
    assert choice.finish_reason == "stop"
    assert choice.text == text[: text.index(stop)]


def test_rsa_in_a_field(client):
    rsa = {"population": 3, "candidates": 2, "rounds": 1, "tail": 8, "budget": 12, "trace": True}
    ask = dict(model="tiny", messages=HI, seed=5)
    whole = client.chat.completions.create(**ask, extra_body={"rsa": rsa})
    told = whole.rsa
    assert [len(stage) for stage in told["stages"]] == [3, 3]
    assert all(len(r["shown"]) == 2 for r in told["stages"][1])
    assert told["decoded"] == whole.usage.completion_tokens
    assert told["decoded"] == sum(r["tokens"] for stage in told["stages"] for r in stage)
    events = []
    content = ""
    for chunk in client.chat.completions.create(**ask, extra_body={"rsa": rsa}, stream=True):
        if getattr(chunk, "rsa", None):
            events.append(chunk.rsa)
        for choice in chunk.choices:
            content += choice.delta.content or ""
    kinds = [event["event"] for event in events]
    assert kinds[0] == "start" and kinds[-1] == "result"
    assert kinds.count("stage") == 2 and kinds.count("rollout") == 6 and kinds.count("votes") == 2
    assert events[-1]["stages"] == told["stages"]  # the seed decides
    assert content == whole.choices[0].message.content
    rollouts = [event for event in events if event["event"] == "rollout"]
    assert [r["tokens"] for r in sorted(rollouts[:3], key=lambda r: r["rollout"])] == [
        r["tokens"] for r in told["stages"][0]
    ]
    with pytest.raises(openai.BadRequestError, match="do not fit the model's context"):
        client.chat.completions.create(model="tiny", messages=HI, extra_body={"rsa": {}})
