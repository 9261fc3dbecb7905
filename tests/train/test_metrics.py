import json

import numpy as np
import pytest

from zaya_jax.train import metrics


def test_records_come_back_in_order(tmp_path):
    writer = metrics.Writer(tmp_path, 0)
    writer(1, {"loss": np.float32(2.5), "load_entropy": np.array([0.5, 1], np.float32)})
    writer(2, {"heldout_load": np.ones((2, 3)), "biases": {"a": np.zeros(2)}})
    writer.close()
    found = metrics.read(tmp_path)
    assert 0 <= found[0].pop("seconds") <= found[1].pop("seconds") < 60
    assert found == [
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


def test_seconds_go_on_where_the_last_kept_record_left_them(tmp_path):
    (tmp_path / "metrics.jsonl").write_text(
        '{"step": 1, "seconds": 500.0, "loss": 2}\n{"step": 2, "seconds": 900.0, "loss": 1}\n'
    )
    writer = metrics.Writer(tmp_path, 1)
    writer(2, {"loss": 1})
    writer.close()
    assert 500 <= metrics.read(tmp_path)[-1]["seconds"] <= writer.seconds < 600


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_no_number_is_null(tmp_path, value):
    writer = metrics.Writer(tmp_path, 0)
    writer(1, {"loss": value})
    writer.close()
    line = (tmp_path / "metrics.jsonl").read_text()
    assert json.loads(line, parse_constant=pytest.fail)["loss"] is None
