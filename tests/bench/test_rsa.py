"""What Markovian RSA carries on, measured on a network of random weights."""

import dataclasses

import pytest

from tests.oracles import tiny_model
from zaya_jax.bench import rsa


@pytest.mark.slow
def test_prompts_contexts_and_cache_do_not_grow_with_the_rounds(monkeypatch, tmp_path):
    monkeypatch.setattr(rsa, "ROUNDS", (0, 2, 4))
    small = dataclasses.replace(rsa.SETTINGS, population=2, tail=8, budget=10)
    monkeypatch.setattr(rsa, "SETTINGS", small)
    model = dataclasses.replace(tiny_model(layers=1), vocab_size=320, context_length=1024)
    none, two, four = rows = rsa.measure(model, seed=0)
    assert all(row.prompt <= row.prompt_bound for row in rows)
    assert all(row.context <= row.context_bound for row in rows)
    assert none.prompt == none.prompt_bound and none.held < two.held == four.held
    assert two.prompt_bound == four.prompt_bound and two.decoded < four.decoded
    assert four.chain - two.chain == 2 * small.budget
    assert len(rsa.show(rows).splitlines()) == 2 + len(rows)
    rsa.plot(rows, tmp_path / "rsa.svg")
    assert "<svg" in (tmp_path / "rsa.svg").read_text()
