"""The serving bench, on a network of random weights: it ends, and counts what is compiled."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers.models.zaya.modeling_zaya")

from tests.oracles import tiny_model
from zaya_jax.bench import serving


@pytest.mark.slow
def test_lines_are_measured_and_what_compiles_among_them_is_counted(monkeypatch, tmp_path):
    for name, value in (("PROMPT", 16), ("COMPLETION", 24), ("PREFIX", 64), ("SINGLE", 2)):
        monkeypatch.setattr(serving, name, value)
    monkeypatch.setattr(serving, "CHUNKS", (64, 128))
    serve, served = serving.serve, []

    def compiles_once(engine, requests, clients):
        if not served:  # in the measured lines; the engine itself has compiled all that it needs
            jax.jit(lambda x: x + len(requests))(np.float32(1))
        served.append(clients)
        return serve(engine, requests, clients)

    monkeypatch.setattr(serving, "serve", compiles_once)
    model = dataclasses.replace(
        tiny_model(layers=2, hidden=32, heads=(2, 1), head_dim=8, experts=4, width=16),
        numerics="training",
    )
    lines, prefix, compiled = serving.measure(model, 0, [1, 2], pairs=1)
    assert served == [1, 1, 2, 2, 32] and compiled == 1
    assert [line.concurrency for line in lines] == [1, 2]
    assert all(min(line.static, line.single, line.total, line.first) > 0 for line in lines)
    assert prefix.tokens == 64 and min(prefix.cold, prefix.cached) > 0
    table = serving.show(lines, prefix, compiled).splitlines()
    assert len(table) == 7 and table[-1].endswith("after the warm-up: 1")
    serving.plot(lines, tmp_path / "serving.svg")
    assert "<svg" in (tmp_path / "serving.svg").read_text()
