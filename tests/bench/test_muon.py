"""The bench of Muon: it compares like with like, and its counts are right."""

import pytest

from zaya_jax.bench import muon as bench
from zaya_jax.config import Model, Muon, Router

MODEL = Model(hidden_size=64, expert_width=48, router=Router(experts=4))


def test_shapes_are_those_of_the_model():
    assert bench.shapes(Model()) == {"gate_up": (16, 2048, 4096), "down": (16, 2048, 2048)}


@pytest.mark.parametrize("config", [Muon(), Muon(nesterov=False), Muon(momentum=0.0)])
def test_the_sides_agree_on_the_first_step(config):
    assert bench.gap(config, seed=0) < 1e-4


def test_operations_of_a_square_matrix():
    # Of 2 m^3 each: X X^T and A A by half, Q X whole.
    assert bench.flops((3, 8, 8), iterations=5) == 3 * 5 * (0.5 + 0.5 + 1) * 2 * 8**3
    assert bench.flops((8, 16), 1) == bench.flops((16, 8), 1)


def test_ours_holds_no_state_without_momentum_and_optax_does(monkeypatch):
    monkeypatch.setattr(bench.machine, "matmul_peak", lambda: 1e12)  # which takes its time
    rows, peak = bench.measure(MODEL, timed=2, pairs=1)
    assert [r.name for r in rows] == ["gate_up", "down"] and peak > 0
    for r in rows:
        size = 4 * r.shape[0] * r.shape[1] * r.shape[2]
        assert r.ours_bare == 0 and r.theirs_bare >= size and r.ours_state == size
        assert r.timed == 2 and r.ours > 0 and r.theirs > 0 and r.floor > 0
    assert "16x" not in bench.show(rows, peak) and "4x64x96" in bench.show(rows, peak)
