"""The counting behind the benchmark's shares, and that it times nothing but equals."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers.models.zaya.modeling_zaya")

from tests.oracles import tiny_model
from zaya_jax.bench import machine, speed


@pytest.fixture(scope="module")
def model():
    return dataclasses.replace(
        tiny_model(layers=2, hidden=32, heads=(2, 1), head_dim=8, experts=4, width=16),
        numerics="training",
    )


def test_flops_are_those_of_the_chosen_experts_and_the_causal_half(model):
    B, S, D, H, K, C, E, F, R, V = 2, 10, 32, 2, 1, 8, 4, 16, 24, 97
    projections = D * (H * C + 2 * K * C) + H * C * D
    convolutions = 2 * (H + K) * C + 2 * (H + K) * C * C
    router = D * R + 2 * R * R + R * (E + 1)
    per_token = 2 * (projections + convolutions + router + 3 * D * F)
    scores = 2 * 2 * (S * S / 2) * H * C
    expected = 2 * (B * S * per_token + B * scores) + 2 * V * D * B
    assert speed.forward_flops(model, B, S, head_tokens=B) == pytest.approx(expected)


def test_a_decoding_step_reads_only_the_experts_that_it_used(model):
    D, F, E, L = 32, 16, 4, 2
    all_used, none_used = speed.weight_bytes(model, E), speed.weight_bytes(model, 0)
    assert all_used - none_used == 4 * L * E * 3 * D * F
    assert speed.cache_bytes(model, 3, 7) == 4 * L * 3 * 7 * 2 * 1 * 8


def test_sides_take_turns_and_neither_is_always_first():
    calls: list[str] = []
    sides = {name: lambda name=name: calls.append(name) for name in ("a", "b")}
    taken = machine.interleave(sides, 3)
    assert calls == ["a", "b", *"ab", *"ba", *"ab"]  # a call of each first, unmeasured
    assert {name: len(seconds) for name, seconds in taken.items()} == {"a": 3, "b": 3}


@pytest.mark.slow
def test_each_measurement_runs_and_other_weights_are_refused(model):
    bench = speed.Bench(model, pairs=1)
    assert bench.gap < 1e-5
    found = [bench.prefill(1, 16), bench.train(1, 16), bench.decode(2, prompt=4, calls=1)]
    for measurement in found:
        assert measurement.ours > 0 and measurement.theirs > 0
        assert measurement.spread[0] <= measurement.ratio <= measurement.spread[1]
    bench.params["embedding"] = jnp.roll(bench.params["embedding"], 1, axis=0)
    with pytest.raises(RuntimeError, match="disagree"):
        bench._agree()
