import json

import numpy as np
import pytest

from zaya_jax.train import metrics


def test_records_come_back_in_order(tmp_path):
    writer = metrics.Writer(tmp_path, 0)
    writer(1, {"loss": np.float32(2.5), "load_entropy": np.array([0.5, 1], np.float32)})
    writer(2, {"heldout_load": np.ones((2, 3)), "biases": {"a": np.zeros(2)}})
    writer.close()
    assert metrics.read(tmp_path) == [
        {"step": 1, "loss": 2.5, "load_entropy": [0.5, 1.0]},
        {"step": 2, "heldout_load": [[1.0] * 3] * 2, "biases": {"a": [0.0, 0.0]}},
    ]
    assert list((tmp_path / "tensorboard").iterdir())


def test_a_resumed_run_writes_no_step_twice(tmp_path):
    writer = metrics.Writer(tmp_path, 0)
    for step in range(1, 6):
        writer(step, {"loss": step})
    writer.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "lo')  # killed while writing
    writer = metrics.Writer(tmp_path, 3)
    writer(4, {"loss": 40})
    writer.close()
    assert [(r["step"], r["loss"]) for r in metrics.read(tmp_path)] == [
        (1, 1), (2, 2), (3, 3), (4, 40)
    ]  # fmt: skip


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_no_number_is_null(tmp_path, value):
    writer = metrics.Writer(tmp_path, 0)
    writer(1, {"loss": value})
    writer.close()
    line = (tmp_path / "metrics.jsonl").read_text()
    assert json.loads(line, parse_constant=pytest.fail)["loss"] is None
