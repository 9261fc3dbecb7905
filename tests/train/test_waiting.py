"""The demo's experiment, whose step is what most people wait for."""

import dataclasses
from pathlib import Path
from runpy import run_path

import pytest

from zaya_jax.config import freeze
from zaya_jax.train import loop, metrics


@pytest.mark.slow
def test_zaya1_tiny_waits_for_no_data_and_compiles_nothing_after_the_first_steps(
    listener, tmp_path
):
    file = Path(__file__).parents[2] / "experiments" / "zaya1_tiny.py"
    tiny = freeze(run_path(str(file))["get_config"]())
    tiny = dataclasses.replace(
        tiny,
        data=dataclasses.replace(tiny.data, heldout_max_bytes=2000),
        train=dataclasses.replace(tiny.train, steps=16, log_every=1, eval_every=16),
        optim=dataclasses.replace(tiny.optim, warmup_steps=4),
    )
    loop.train(tiny, tmp_path, listener())
    lines = [record for record in metrics.read(tmp_path) if "loss" in record]
    assert lines[-1]["data_wait"] < 0.02
    assert len({record["compilations"] for record in lines[2:]}) == 1
