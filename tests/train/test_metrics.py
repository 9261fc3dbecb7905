import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from zaya_jax.errors import UserError
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


def test_groups_get_a_tag_each(tmp_path):
    writer = metrics.Writer(tmp_path, 0)
    writer(1, {"loss": 1.0, "grad_norms": {"matrix": np.float32(2), "vector": np.float32(0.5)}})
    writer.close()
    assert metrics.read(tmp_path)[0]["grad_norms"] == {"matrix": 2.0, "vector": 0.5}
    tags = dict(metrics._scalars("grad_norms", {"matrix": 2.0, "vector": None}))
    assert tags == {"grad_norms/matrix": 2.0}


def test_wandb_is_asked_for_in_vain_where_it_is_not_installed(changed, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match="train.wandb = 'zaya': the wandb package is not installed"):
        metrics.Writer(tmp_path, 0, changed("train", wandb="zaya"))
    assert not (tmp_path / "metrics.jsonl").exists()


def test_wandb_gets_the_same_numbers_and_one_run_for_all_starts(changed, tmp_path, monkeypatch):
    calls = []

    class Run:
        def log(self, numbers, step):
            calls.append((step, numbers))

        def finish(self):
            calls.append("finished")

    def init(**settings):
        calls.append((settings["project"], settings["id"]))
        return Run()

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init))
    for step in (1, 2):
        writer = metrics.Writer(tmp_path, step - 1, changed("train", wandb="zaya"))
        writer(step, {"loss": 2.0, "load_entropy": [0.5, 1.0]})
        writer.close()
    numbers = {"loss": 2.0, "load_entropy/layer_0": 0.5, "load_entropy/layer_1": 1.0}
    assert calls[1:3] == [(1, numbers), "finished"] and calls[4:] == [(2, numbers), "finished"]
    assert calls[0] == calls[3] and calls[0][0] == "zaya"


def test_a_full_disk_is_named(tmp_path):
    writer = metrics.Writer(tmp_path, 0)
    writer._file.close()
    writer._file = open("/dev/full", "a", buffering=1)
    with pytest.raises(UserError, match="cannot write there: No space left"):
        writer(1, {"loss": 1.0})
