"""Cached decoding against re-running the whole network, and what a request may ask for.

Compiling is what takes time here: tests share batch size, prompt bucket and filters where they can.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zaya_jax.data.tokenizer import train_bpe
from zaya_jax.errors import UserError
from zaya_jax.infer import Generator, Request, Sampling, generate, programs
from zaya_jax.model import functional

PROMPTS = [[7, 8, 9], [5] * 17, [3], list(range(20, 51))]


def rerun(loaded, prompts, steps) -> list[list[int]]:
    """Greedy tokens without a cache: the rows, padded on the left, run anew for every token."""
    width = max(map(len, prompts)) + steps

    @jax.jit
    def logits(tokens, segment_ids):
        decoder = functional.merge(loaded.model, loaded.params, loaded.biases)
        return decoder.logits(decoder(tokens, segment_ids).hidden[:, -1])

    rows = [list(prompt) for prompt in prompts]
    for _ in range(steps):
        tokens = np.array([[0] * (width - len(row)) + row for row in rows], np.int32)
        live = np.array([[0] * (width - len(row)) + [1] * len(row) for row in rows], np.int32)
        for row, best in zip(rows, np.asarray(logits(tokens, live)).argmax(-1), strict=True):
            row.append(int(best))
    return [row[len(prompt) :] for row, prompt in zip(rows, prompts, strict=True)]


@pytest.mark.parametrize("kind", ["cca", pytest.param("gqa", marks=pytest.mark.slow)])
def test_cache_gives_the_tokens_of_the_whole_network(network, kind):
    with jax.enable_x64(True):
        attention = dataclasses.replace(network().model.attention, kind=kind)
        loaded = network("float64", eos_id=0, attention=attention)
        expected = rerun(loaded, PROMPTS, 24)
        assert len({token for row in expected for token in row}) > 12  # no trivial repetition
        expected = [row[: row.index(0) + 1] if 0 in row else row for row in expected]
        completions = Generator(loaded, batch=4).generate([Request(p, 24) for p in PROMPTS])
        assert [completion.tokens for completion in completions] == expected


@pytest.fixture(scope="module")
def generator(network, tokenizer) -> Generator:
    return Generator(network(tokenizer=tokenizer), batch=2)


def test_float32_is_greedy_under_the_whole_network(generator):
    """Other shapes round otherwise, so a chosen token may lose a tie, but by no more than that."""
    loaded, prompts, width = generator.loaded, [[7, 8, 9], [5] * 15], 45
    requests = [Request(prompt, 30) for prompt in prompts]
    alone = Generator(loaded).generate(requests[:1])  # one row takes other paths through the ops
    completions = [*generator.generate(requests), *alone]

    @jax.jit
    def forward(tokens):
        decoder = functional.merge(loaded.model, loaded.params, loaded.biases)
        return decoder.logits(decoder(tokens).hidden)

    for prompt, completion in zip([*prompts, prompts[0]], completions, strict=True):
        tokens = [*prompt, *completion.tokens]
        padded = np.array([tokens + [0] * (width - len(tokens))], np.int32)
        logits = np.asarray(forward(padded))[0, len(prompt) - 1 : len(tokens) - 1]
        chosen = logits[np.arange(len(logits)), completion.tokens]
        assert (logits.max(-1) - chosen).max() <= 1e-4 * np.abs(logits).max()
        total = np.log(np.exp(logits).sum(-1))
        np.testing.assert_allclose(completion.logprobs, chosen - total, atol=1e-3)


def test_steps_between_two_looks_of_the_host_change_nothing(generator, monkeypatch):
    requests = [Request("def f", 30, Sampling(1.0, top_p=0.9, seed=4)), Request("x", 9)]
    streamed: dict[int, str] = {0: "", 1: ""}

    def hear(index: int, text: str) -> None:
        streamed[index] += text

    together = generator.generate(requests, hear)
    assert [streamed[0], streamed[1]] == [c.text for c in together]
    assert together == generator.generate(requests)
    monkeypatch.setattr(programs, "MOST_STEPS", 3)
    assert together == generator.generate(requests)


def test_a_request_draws_the_same_alone_and_in_company(generator):
    wanted = Request([7, 8, 9], 20, Sampling(1.0, top_p=0.9, seed=11))
    other = Request([5] * 15, 12, Sampling(1.0, top_p=0.5, seed=2))
    alone = generator.generate([wanted])[0]
    assert generator.generate([other, wanted])[1] == alone
    assert generator.generate([wanted, other, wanted])[2] == alone
    another = dataclasses.replace(wanted, sampling=Sampling(1.0, top_p=0.9, seed=12))
    assert generator.generate([another])[0].tokens != alone.tokens


def test_text_ends_before_a_stop_string(generator):
    free = generator.generate([Request("def f", 40)])[0]
    assert len(free.text) > 12
    stop = free.text[6:9]
    cut = generator.generate([Request("def f", 40, stop=("never there", stop))])[0]
    assert cut.finish == "stop" and cut.text == free.text[: free.text.index(stop)]
    assert cut.tokens == free.tokens[: len(cut.tokens)] and len(cut.tokens) < 40


def test_end_of_sequence_ends_a_row_and_is_its_last_token(generator):
    free = generator.generate([Request([7, 8], 20)])[0]
    last = free.tokens[6]
    model = dataclasses.replace(generator.loaded.model, eos_id=last)
    loaded = dataclasses.replace(generator.loaded, model=model)
    ended, other = Generator(loaded, batch=2).generate([Request([7, 8], 20), Request([9], 20)])
    assert ended.finish == "eos" and ended.tokens == free.tokens[: free.tokens.index(last) + 1]
    assert len(other.tokens) == 20 or other.finish == "eos"


def test_an_empty_prompt_begins_with_the_start_token(generator):
    bos = generator.loaded.tokenizer.bos_id
    empty, ids, named = generator.generate([Request("", 5), Request([], 5), Request([bos], 5)])
    assert empty == ids == named and empty.prompt_tokens == 1


def test_text_opens_with_bos_where_the_tokenizer_says_so(generator):
    loaded = dataclasses.replace(generator.loaded, opens_with_bos=True)
    ids = [loaded.tokenizer.bos_id, *loaded.tokenizer.encode("def")]
    text, tokens = Generator(loaded, batch=2).generate([Request("def", 4), Request(ids, 4)])
    assert text == tokens


def test_max_tokens_past_the_context_is_clipped_with_a_note(generator):
    small = Generator(generator.loaded, batch=2, capacity=16)
    fits, clipped = small.generate([Request([5] * 12, 4), Request([5] * 12, 100)])
    assert fits.notes == () and clipped.tokens == fits.tokens and clipped.finish == "length"
    assert "max_tokens = 100 lowered to 4" in clipped.notes[0]


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (Request([5] * 64), "64 tokens: model.context_length = 64"),
        (Request("x " * 200), "tokens: model.context_length = 64"),
        (Request([5, 300]), r"ids \[300\], outside model.vocab_size = 300"),
        (Request([-1]), r"ids \[-1\]"),
        (Request([5], max_tokens=0), "max_tokens = 0: expected at least 1"),
        (Request([5], stop=("",)), "empty string"),
    ],
)
def test_a_request_that_cannot_be_met_is_refused_before_anything_runs(
    generator, request_, message, monkeypatch
):
    monkeypatch.setattr(Generator, "_run", lambda *_, **__: pytest.fail("it ran"))
    with pytest.raises(UserError, match=message):
        generator.generate([Request([5]), request_])


def test_a_tokenizer_larger_than_the_model_is_named(network):
    large = train_bpe([f"word{i} " * 3 for i in range(300)], 500)
    generator = Generator(network(tokenizer=large))
    with pytest.raises(UserError, match="its tokenizer is larger than the model"):
        generator.generate([Request("word1 word2 word200")])


def test_text_without_a_tokenizer_is_refused(network):
    with pytest.raises(UserError, match="no tokenizer"):
        Generator(network()).generate([Request("text")])
    with pytest.raises(UserError, match="no tokenizer"):
        Generator(network()).generate([Request([5], stop=("x",))])


def test_damaged_weights_are_named(network):
    loaded = network()
    params = loaded.params | {"final_norm": jnp.full_like(loaded.params["final_norm"], jnp.nan)}
    with pytest.raises(UserError, match="no logit is finite"):
        Generator(dataclasses.replace(loaded, params=params)).generate([Request([5], 3)])


def test_weights_are_held_once_and_as_they_are_used(network):
    loaded = network("float32", activation_dtype="bfloat16")
    held = Generator(loaded).loaded.params
    assert held["embedding"].dtype == jnp.bfloat16  # every step would cast it
    assert held["final_norm"] is loaded.params["final_norm"]  # computed in float32: no copy
    same = network()
    assert all(v is same.params[name] for name, v in Generator(same).loaded.params.items())


def test_prompts_are_padded_by_little_to_few_lengths():
    lengths = range(1, 5000)
    padded = [generate.bucket(length) for length in lengths]
    assert all(0 <= p - n < max(16, n / 8) for n, p in zip(lengths, padded, strict=True))
    assert len(set(padded)) < 60 and padded == sorted(padded)


@pytest.mark.parametrize("bad", [{"batch": 0}, {"capacity": 0}, {"capacity": 65}])
def test_a_generator_says_what_it_accepts(network, bad):
    name, value = next(iter(bad.items()))
    with pytest.raises(UserError, match=f"{name} = {value}: expected"):
        Generator(network(), **bad)
