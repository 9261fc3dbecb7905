"""The engine against decoding one by one, against the whole network, and against itself alone.

Compiling is what takes time here: one engine serves all that is not slow.
"""

import dataclasses
import random
from collections import deque

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zaya_jax.errors import UserError
from zaya_jax.infer import Generator, Sampling
from zaya_jax.infer import Request as PlainRequest
from zaya_jax.infer.engine import Constraint, Engine, Options, Repetition, Request
from zaya_jax.infer.engine import options as engine_options
from zaya_jax.model import functional
from zaya_jax.train.throughput import compilations

CAPACITY = 48
SMALL = Options(
    rows=4,
    row_sizes=(4,),
    page=4,
    capacity=CAPACITY,
    chunks=(16,),
    prefill_tokens=16,
    steps=3,
    top_logprobs=5,
)


def prompts(count: int, seed: int) -> list[list[int]]:
    """Of mixed lengths, many with a beginning in common."""
    draw = random.Random(seed)
    stems = [[draw.randrange(3, 290) for _ in range(30)] for _ in range(3)]
    found = []
    for _ in range(count):
        stem = draw.choice(stems)[: draw.choice([0, 0, 9, 16, 21, 30])]
        found.append(stem + [draw.randrange(3, 290) for _ in range(draw.randint(1, 10))])
    return found


def drive(engine: Engine, requests, seed: int, cancelled=frozenset()):
    """Adds requests at random times, cancels some; the result of each, and how often any waited."""
    draw, todo = random.Random(seed), list(enumerate(requests))
    ids, results, texts = {}, {}, {}
    while todo or not engine.idle:
        while todo and draw.random() < 0.4:
            index, request = todo.pop(0)
            ids[engine.add(request)] = index
        for id, index in ids.items():
            if index in cancelled and index not in results and draw.random() < 0.15:
                engine.cancel(id)
        for event in engine.step():
            index = ids[event.id]
            assert index not in results, "news after the end"
            texts[index] = texts.get(index, "") + event.text
            if event.result is not None:
                results[index] = event.result
        engine.check()
    assert all(results[index].text == text for index, text in texts.items())
    return [results[index] for index in range(len(requests))]


@pytest.mark.slow
def test_tokens_of_two_hundred_requests_are_those_of_decoding_one_by_one(network):
    count, draw = 200, random.Random(2)
    with jax.enable_x64(True):  # where nothing ties
        loaded = network("float64", eos_id=0)
        requests = [Request(p, draw.randint(1, CAPACITY - len(p))) for p in prompts(count, seed=2)]
        plain = [PlainRequest(request.prompt, request.max_tokens) for request in requests]
        expected = Generator(loaded, capacity=CAPACITY).generate(plain)
        assert len({token for one in expected for token in one.tokens}) > 20  # no trivial circle
        # Three sequences do not fit at their longest; rows are for four.
        engine = Engine(loaded, dataclasses.replace(SMALL, pages=1 + 26))
        engine.warm_up()
        cancelled = set(draw.sample(range(count), count // 8))
        with compilations() as counted:
            results = drive(engine, requests, 2, cancelled)
        assert counted.count == 0
        for index, (result, one) in enumerate(zip(results, expected, strict=True)):
            if result.finish == "cancelled":
                assert index in cancelled
                assert result.tokens == one.tokens[: len(result.tokens)]
            else:
                assert (result.tokens, result.finish) == (one.tokens, one.finish)
        load = engine.load
        assert any(result.finish == "cancelled" for result in results)
        assert load.preemptions > 0 and load.cached_tokens > 0
        assert load.pages_free + load.pages_idle == load.pages == 26


@pytest.fixture(scope="module")
def engine(network, tokenizer) -> Engine:
    engine = Engine(
        network(tokenizer=tokenizer), dataclasses.replace(SMALL, pages=1 + 30, batch_invariant=True)
    )
    engine.warm_up()
    return engine


def forget(engine: Engine) -> None:
    """Nothing is shared with what came before."""
    engine.swap(engine.loaded.params)


@pytest.fixture(scope="module")
def forward(engine):
    """The whole network over a sequence: logits [n, V] and routes [n, L, k] of its n tokens."""
    loaded = engine.loaded

    @jax.jit
    def run(tokens):
        decoder = functional.merge(loaded.model, loaded.params, loaded.biases)
        out = decoder(tokens)
        return decoder.logits(out.hidden)[0], out.stats.index[:, 0].swapaxes(0, 1)

    def padded(tokens):
        row = np.array([[*tokens, *[0] * (CAPACITY - len(tokens))]], np.int32)
        return [np.asarray(x)[: len(tokens)] for x in run(row)]

    return padded


def test_every_token_is_the_likeliest_of_the_whole_network(engine, forward):
    draw = random.Random(1)
    requests = [Request(p, draw.randint(1, CAPACITY - len(p))) for p in prompts(32, seed=1)]
    forget(engine)
    before, cancelled = engine.load, set(draw.sample(range(32), 4))
    with compilations() as counted:
        results = drive(engine, requests, 1, cancelled)
    assert counted.count == 0
    seen = set()
    for request, result in zip(requests, results, strict=True):
        if not result.tokens:
            continue
        logits, _ = forward([*request.prompt, *result.tokens])
        logits = logits[len(request.prompt) - 1 : -1]
        chosen = logits[np.arange(len(logits)), result.tokens]
        assert (logits.max(-1) - chosen).max() <= 1e-4 * np.abs(logits).max()
        assert result.finish != "length" or len(result.tokens) == request.max_tokens
        seen |= set(result.tokens)
    assert len(seen) > 20  # no trivial circle
    load = engine.load
    assert {index for index, r in enumerate(results) if r.finish == "cancelled"} <= cancelled
    assert any(result.finish == "cancelled" for result in results)
    assert load.preemptions > before.preemptions and load.cached_tokens > before.cached_tokens
    assert load.pages_free + load.pages_idle == load.pages


def test_no_bit_depends_on_what_else_is_in_the_batch(engine):
    draw = random.Random(3)
    samplings = [Sampling(), Sampling(1.0, seed=5), Sampling(0.7, 20, 0.9, 0.02, seed=6)]
    requests = [
        Request(prompt, draw.randint(4, CAPACITY - len(prompt)), draw.choice(samplings))
        for prompt in prompts(14, seed=3)
    ]
    forget(engine)
    before = engine.load
    together = drive(engine, requests, seed=3)
    assert engine.load.preemptions > before.preemptions
    assert engine.load.cached_tokens > before.cached_tokens
    for request, result in zip(requests, together, strict=True):
        forget(engine)
        (alone,) = engine.generate([request])
        assert alone.tokens == result.tokens
        assert alone.logprobs == result.logprobs  # the very bits


def test_the_trainer_sees_the_same_log_probabilities_and_routes(engine, forward):
    forget(engine)
    requests = [
        Request(prompt, 12, Sampling(1.0, seed=i), routes=True, score_prompt=i == 1)
        for i, prompt in enumerate([[9] * 21, [7, 8, 9, 10, 11], [9] * 21 + [4]])
    ]
    results = engine.generate(requests)
    assert results[2].cached_tokens > 0  # routes of shared pages come with the pages
    for request, result in zip(requests, results, strict=True):
        tokens, n = [*request.prompt, *result.tokens], len(request.prompt)
        logits, routes = forward(tokens)
        logprobs = np.asarray(jax.nn.log_softmax(logits))
        chosen = logprobs[np.arange(len(tokens) - 1), tokens[1:]]
        np.testing.assert_allclose(result.logprobs, chosen[n - 1 :], atol=1e-4)
        if result.prompt_logprobs is not None:
            np.testing.assert_allclose(result.prompt_logprobs, chosen[: n - 1], atol=1e-4)
        np.testing.assert_array_equal(result.routes, routes[:-1])
    assert results[1].prompt_logprobs is not None and results[0].prompt_logprobs is None


def test_nothing_is_compiled_after_the_warm_up(engine):
    json = Constraint("json_schema", {"type": "object"})
    requests = [
        Request([5] * 17, 5),
        Request("def f", 5, Sampling(1.0, 5, 0.9, 0.1, seed=1), stop=("x",), top_logprobs=3),
        Request([6] * 33, 5, score_prompt=True, routes=True, constraint=json),
    ]
    with compilations() as counted:
        engine.generate(requests)
    assert counted.count == 0


def test_text_ends_before_a_stop_string_and_steps_change_nothing(engine):
    (free,) = engine.generate([Request("def f", 30)])
    stop = free.text[6:9]
    texts: list[str] = []
    (cut,) = engine.generate(
        [Request("def f", 30, stop=(stop,))], lambda index, event: texts.append(event.text)
    )
    assert cut.finish == "stop" and cut.text == free.text[: free.text.index(stop)]
    assert "".join(texts) == cut.text
    assert cut.tokens == free.tokens[: len(cut.tokens)]
    assert engine.idle


def test_a_plain_request_is_taken_and_the_generator_agrees(engine, network, tokenizer):
    plain = PlainRequest("def f", 12, Sampling(1.0, top_p=0.9, seed=4))
    (result,) = engine.generate([plain])
    (expected,) = Generator(engine.loaded, batch=2).generate([plain])
    assert result.tokens == expected.tokens and result.text == expected.text


def test_end_of_sequence_ends_a_request_unless_it_is_ignored(engine):
    (free,) = engine.generate([Request([7, 8], 20)])
    last = free.tokens[6]
    model = dataclasses.replace(engine.loaded.model, eos_id=last)
    ending = Engine(dataclasses.replace(engine.loaded, model=model), engine.options)
    ended, ignored = ending.generate([Request([7, 8], 20), Request([7, 8], 20, ignore_eos=True)])
    assert ended.finish == "eos" and ended.tokens == free.tokens[: free.tokens.index(last) + 1]
    assert ignored.finish == "length" and ignored.tokens == free.tokens


def test_new_weights_choose_from_the_next_token_on(engine):
    old = engine.loaded.params
    new = {name: value * 1.1 if "experts" in name else value for name, value in old.items()}
    request = Request([9] * 16 + [3], 20)
    (before,) = engine.generate([request])
    engine.swap(new)
    (fresh,) = engine.generate([request])
    assert fresh.cached_tokens == 0 and fresh.logprobs != before.logprobs
    engine.swap(old)
    version = engine.version
    id = engine.add(request)
    news = [event for _ in range(3) for event in engine.step()]
    seen = sum(len(event.tokens) for event in news)
    engine.swap(new)
    while not engine.idle:
        news += engine.step()
    result = news[-1].result
    assert news[-1].id == id and 0 < seen < 20
    assert result.versions == [version] * seen + [version + 1] * (20 - seen)
    assert result.logprobs[:seen] == before.logprobs[:seen]
    assert result.logprobs[seen:] != before.logprobs[seen:]
    (after,) = engine.generate([request])
    assert after.cached_tokens == 0 and after == dataclasses.replace(fresh, versions=after.versions)
    engine.swap(old)


def test_weights_that_are_not_the_models_are_refused(engine):
    params = dict(engine.loaded.params)
    name = next(iter(params))
    version = engine.version
    with pytest.raises(UserError, match="without"):
        engine.swap({key: value for key, value in params.items() if key != name})
    with pytest.raises(UserError, match=r"swap: .* is \(1,\)"):
        engine.swap(params | {name: jnp.zeros(1)})
    assert engine.version == version


def test_a_trainer_may_reuse_the_memory_of_weights_that_were_swapped_in(engine):
    params = {name: jnp.array(value) for name, value in engine.loaded.params.items()}
    engine.swap(params)
    for value in params.values():
        value.delete()
    assert engine.generate([Request([5], 3)])[0].finish == "length"


def test_likeliest_tokens_are_told_beside_the_chosen(engine):
    (result,) = engine.generate([Request([5, 6, 7], 4, top_logprobs=3, score_prompt=True)])
    assert [len(best) for best in result.best] == [3] * 4
    for token, logprob, best in zip(result.tokens, result.logprobs, result.best, strict=True):
        assert best[0][0] == token and abs(best[0][1] - logprob) < 1e-5
        assert best[0][1] >= best[1][1] >= best[2][1]
    assert len(result.prompt_logprobs) == len(result.prompt_best) == 2
    for logprob, best in zip(result.prompt_logprobs, result.prompt_best, strict=True):
        assert logprob <= best[0][1] + 1e-5


def test_a_circle_is_ended(engine):
    """A bound text that can only go round: so there is a circle, whatever the network."""
    rule = Repetition(longest=8, rounds=3, least=6)
    bound = Constraint("regex", "(?:xyz){40}")
    (free,) = engine.generate([Request([5, 6], 30, Sampling(1.0, seed=1), constraint=bound)])
    assert len(free.tokens) > 12 and free.finish == "length"
    (result,) = engine.generate(
        [Request([5, 6], 30, Sampling(1.0, seed=1), constraint=bound, repetition=rule)]
    )
    assert result.finish == "repetition"
    n = len(result.tokens)
    assert n < len(free.tokens) and result.tokens == free.tokens[:n]
    circles = [
        m
        for m in range(6, len(free.tokens) + 1)
        if any(
            m >= (span := max(3 * p, 6))
            and all(free.tokens[m - i] == free.tokens[m - i - p] for i in range(1, span - p + 1))
            for p in range(1, 9)
        )
    ]
    assert n == circles[0]


def test_cancelling_waiting_running_and_ended_requests(engine):
    ids = [engine.add(Request([i + 3] * 9, 30)) for i in range(7)]
    last = {}
    for _ in range(3):
        last |= {event.id: event for event in engine.step() if event.result}
    for id in (ids[0], ids[6], ids[6], 10**9):
        engine.cancel(id)
    for event in engine.step():
        if event.result:
            last[event.id] = event
    assert last[ids[0]].result.finish == last[ids[6]].result.finish == "cancelled"
    assert last[ids[6]].result.tokens == []
    while not engine.idle:
        last |= {event.id: event for event in engine.step() if event.result}
    assert sorted(last) == ids
    engine.check()


def test_weights_that_are_damaged_fail_the_request_and_not_the_engine(engine):
    old = engine.loaded.params
    engine.swap({name: jnp.full_like(value, jnp.nan) for name, value in old.items()})
    (result,) = engine.generate([Request([5, 6, 7], 4)])
    assert result.finish == "failed" and "no logit is finite" in result.error
    engine.swap(old)
    (result,) = engine.generate([Request([5, 6, 7], 4)])
    assert result.finish == "length" and engine.idle


def test_what_is_cancelled_before_its_first_token_leaves_nothing_behind(engine):
    forget(engine)
    request = Request([5, 6, 7], 20)
    (before,) = engine.generate([request])
    old = engine.loaded.params
    engine.swap({name: jnp.full_like(value, jnp.nan) for name, value in old.items()})
    ids = [engine.add(Request([i] * 40, 4)) for i in (3, 4, 5)]
    engine.step()  # a chunk of the first is read; nothing has been chosen
    for id in ids:
        engine.cancel(id)
    assert {event.result.finish for event in engine.step()} == {"cancelled"}
    engine.swap(old)
    (after,) = engine.generate([request])
    assert (after.tokens, after.logprobs) == (before.tokens, before.logprobs)


def test_a_row_that_rests_writes_zeros_to_the_page_of_nobody():
    from zaya_jax.model.attention import paged
    from zaya_jax.model.attention.cache import LayerCache

    zeros = jnp.zeros((3, 1, 4, 2))
    cache = LayerCache(zeros, zeros)._replace(table=jnp.array([[1], [2]]))
    new = jnp.full((2, 1, 1, 2), jnp.nan).at[0].set(1.0)
    live = jnp.array([[True], [False]])
    written = paged.append(cache, new, new, jnp.array([0, 0]), live)
    assert bool(jnp.isfinite(written.k).all()) and float(written.k[1, 0, 0, 0]) == 1


def test_who_is_cancelled_while_the_new_are_counted_is_cancelled(engine):
    """Another thread adds a request and cancels it between two looks of the step."""

    class Racing(deque):
        raced = False

        def __len__(self):
            if not self.raced:
                self.raced = True
                ids.append(engine.add(Request([5, 6], 30)))
                self.append(ids[0])
            return super().__len__()

    ids: list[int] = []
    kept, engine._cancelled = engine._cancelled, Racing()
    try:
        events = engine.step() + engine.step()
        assert [event.result.finish for event in events if event.result] == ["cancelled"]
        assert [event.id for event in events] == ids and engine.idle
    finally:
        engine._cancelled = kept
        for id in ids:
            engine.cancel(id)
        while not engine.idle:
            engine.step()


def test_what_goes_wrong_with_one_request_ends_no_other(engine, monkeypatch):
    def broken(*_):
        raise RuntimeError("no such luck")

    (expected,) = engine.generate([Request([5, 6], 8)])
    bad = [
        engine.add(Request([5, 7], 8)),
        engine.add(Request([5, 8], 8, constraint=Constraint("regex", "[a-z]+"))),
    ]
    good = engine.add(Request([5, 6], 8))
    monkeypatch.setattr(engine._inbox[0].answer, "push", broken)
    monkeypatch.setattr(engine._inbox[1].matcher, "allow", broken)
    last = {}
    while not engine.idle:
        last |= {event.id: event.result for event in engine.step() if event.result}
    for id in bad:
        assert last[id].finish == "failed" and "RuntimeError: no such luck" in last[id].error
    assert last[good].tokens == expected.tokens
    engine.check()


def test_many_lengths_of_chunks_tables_and_rows(network, forward, monkeypatch):
    """The options that are not batch-invariant: sizes of decoding, chunks with tables of their own
    and with longer ones, several tokens a step."""
    monkeypatch.setattr(engine_options, "SMALLEST_TABLE", 16)
    options = Options(rows=5, page=4, capacity=CAPACITY, chunks=(4, 16), steps=3, prefill_tokens=20)
    engine = Engine(network(), options)
    used = set()
    plan = engine._scheduler.plan

    def watched():
        found = plan()
        used.update(("chunk", chunk.size, chunk.table) for chunk in found.chunks)
        if found.rows:
            used.add(("rows", options.rows_for(len(found.rows)), found.steps))
        return found

    monkeypatch.setattr(engine._scheduler, "plan", watched)
    requests = [Request(p, CAPACITY - len(p)) for p in ([9] * 37, [8, 7], [9] * 33 + [4])]
    results = drive(engine, requests, seed=4)
    results += engine.generate([Request([3, 4], 9)])
    for request, result in zip([*requests, Request([3, 4], 9)], results, strict=True):
        logits, _ = forward([*request.prompt, *result.tokens])
        logits = logits[len(request.prompt) - 1 : -1]
        chosen = logits[np.arange(len(logits)), result.tokens]
        assert (logits.max(-1) - chosen).max() <= 1e-4 * np.abs(logits).max()
    assert {size for kind, size, _ in used if kind == "chunk"} == {4, 16}
    assert len({table for kind, _, table in used if kind == "chunk"}) >= 3
    assert {size for kind, size, _ in used if kind == "rows"} == {1, 4}
    assert 3 in {steps for kind, _, steps in used if kind == "rows"}
    assert engine.load.cached_tokens > 0


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (Request([5] * 48), "48 tokens: capacity = 48"),
        (Request([300]), "outside model.vocab_size = 300"),
        (Request([5], 0), "max_tokens = 0"),
        (Request([5], top_logprobs=6), "top_logprobs = 6: expected 0 to 5"),
        (Request([5], stop=("",)), "empty string"),
        (Request([5], constraint=Constraint("regex", "(a")), "constraint: regex"),
    ],
)
def test_a_request_that_cannot_be_met_is_refused_and_nothing_else_is_begun(
    engine, request_, message
):
    with pytest.raises(UserError, match=message):
        engine.generate([Request([5], 3), request_])
    assert engine.idle


def test_rows_whose_choices_do_not_fit_a_tile_are_not_invariant(network):
    router = dataclasses.replace(network().model.router, top_k=2)
    options = Options(rows=33, page=4, chunks=(16,), capacity=CAPACITY, batch_invariant=True)
    with pytest.raises(UserError, match="rows = 33 with batch_invariant: expected at most 32"):
        Engine(network(router=router), options)


def test_a_kind_that_keeps_a_latent_is_refused(network):
    attention = dataclasses.replace(network().model.attention, kind="mla")
    with pytest.raises(UserError, match="the engine serves cca, gqa and mha"):
        Engine(network(attention=attention), SMALL)


@pytest.mark.slow
def test_kinds_without_a_state_are_served(network):
    with jax.enable_x64(True):
        attention = dataclasses.replace(network().model.attention, kind="gqa")
        loaded = network("float64", attention=attention)
        wanted = [PlainRequest([5] * 20, 9), PlainRequest([6, 7], 20)]
        results = Engine(loaded, SMALL).generate(wanted)
        expected = Generator(loaded, batch=2, capacity=CAPACITY).generate(wanted)
    assert [r.tokens for r in results] == [r.tokens for r in expected]
