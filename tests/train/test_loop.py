import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from zaya_jax.config import to_dict
from zaya_jax.errors import UserError
from zaya_jax.train import loop, metrics
from zaya_jax.train.checkpoint import Checkpoints
from zaya_jax.train.loop import Diverged
from zaya_jax.train.progress import Progress, clock


class Log(Progress):
    """Keeps what is told, and does something when a line of interest comes by."""

    def __init__(self, steps, at: str = "\0", do=None):
        self.text = io.StringIO()
        self.at, self.do = at, do
        super().__init__(steps, self.text)

    def say(self, text):
        super().say(text)
        if self.at in text:
            self.do()


def final_state(folder, experiment):
    checkpoints = Checkpoints(folder, experiment)
    try:
        return checkpoints.restore()
    finally:
        checkpoints.close()


@pytest.fixture(scope="module")
def whole(experiment, tmp_path_factory):
    """An uninterrupted run: its folder, result, and what it said."""
    folder = tmp_path_factory.mktemp("whole")
    log = Log(experiment.train.steps)
    return folder, loop.train(experiment, folder, log), log.text.getvalue()


def timeless(folder):
    """The metrics but for how fast they came."""
    return [
        {k: v for k, v in record.items() if k != "tokens_per_second"}
        for record in metrics.read(folder)
    ]


def assert_same_end(folder, whole_folder, experiment):
    jax.tree.map(
        np.testing.assert_array_equal,
        final_state(folder, experiment),
        final_state(whole_folder, experiment),
    )
    assert timeless(folder) == timeless(whole_folder)


def test_a_run_leaves_everything_in_its_folder(whole, experiment):
    folder, result, told = whole
    assert result.step == 6 and result.interrupted is None
    assert set(result.bits_per_byte) == {0, 3, 6}
    assert result.bits_per_byte[6] < result.bits_per_byte[0]
    assert json.loads((folder / "config.json").read_text()) == json.loads(
        json.dumps(to_dict(experiment))
    )
    assert {p.name for p in (folder / "checkpoints").iterdir()} == {"2", "4", "6"}
    for name in ("data.json", "environment.json", "tensorboard", "tokenizer/tokenizer.json"):
        assert (folder / name).exists()
    records = metrics.read(folder)
    assert [r["step"] for r in records if "loss" in r] == [1, 2, 3, 4, 5, 6]
    assert [r["step"] for r in records if "heldout_bits_per_byte" in r] == [0, 3, 6]
    for word in ("parameters", "embedding", "compiled in", "bits per byte", "held out"):
        assert word in told


def test_a_finished_run_is_not_trained_again(whole, experiment):
    folder, *_ = whole
    before = (folder / "metrics.jsonl").read_text()
    result = loop.train(experiment, folder, Log(6))
    assert result.step == 6 and result.bits_per_byte == {}
    assert (folder / "metrics.jsonl").read_text() == before


def test_a_run_stopped_by_a_signal_saves_and_ends_as_if_it_had_not_been(
    whole, experiment, tmp_path
):
    log = Log(6, "step 3: held out", lambda: signal.raise_signal(signal.SIGTERM))
    result = loop.train(experiment, tmp_path, log)
    assert result.interrupted == signal.SIGTERM and result.step == 3
    assert "stopped by SIGTERM after step 3" in log.text.getvalue()
    assert (tmp_path / "checkpoints" / "3").is_dir()
    log = Log(6)
    assert loop.train(experiment, tmp_path, log).step == 6
    assert "at step 3" in log.text.getvalue()
    assert_same_end(tmp_path, whole[0], experiment)


def test_a_run_that_died_ends_as_if_it_had_not(whole, experiment, tmp_path):
    class Died(BaseException):
        pass

    def die():
        raise Died

    with pytest.raises(Died):  # after the lines of steps 1 to 3, with a checkpoint of step 2
        loop.train(experiment, tmp_path, Log(6, "step 3: held out", die))
    assert timeless(tmp_path)[-1]["step"] == 3
    assert loop.train(experiment, tmp_path, Log(6)).step == 6
    assert_same_end(tmp_path, whole[0], experiment)


@pytest.mark.slow
def test_a_killed_process_ends_as_if_it_had_not_been(whole, experiment, tmp_path):
    program = (
        "import json, os, signal, sys\n"
        "from zaya_jax.config import from_dict\n"
        "from zaya_jax.train import loop, progress\n"
        "class Kill(progress.Progress):\n"
        "    def say(self, text):\n"
        "        if 'step 3: held out' in text: os.kill(os.getpid(), signal.SIGKILL)\n"
        "loop.train(from_dict(json.load(sys.stdin)), sys.argv[1], Kill(6))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "run")],
        input=json.dumps(to_dict(experiment)),
        text=True,
        cwd=Path(__file__).parents[2],
        env={**os.environ, "PYTHONPATH": "."},
    )
    assert done.returncode == -signal.SIGKILL
    assert loop.train(experiment, tmp_path / "run", Log(6)).step == 6
    assert_same_end(tmp_path / "run", whole[0], experiment)


def test_a_loss_that_is_no_number_stops_the_run_and_keeps_the_last_checkpoint(
    whole, experiment, changed, tmp_path
):
    hot = changed("optim", learning_rate=1e30, warmup_steps=0)
    with pytest.raises(Diverged, match=r"step \d: the loss is (nan|inf).*optim.learning_rate"):
        loop.train(hot, tmp_path, Log(6))
    assert not list((tmp_path / "checkpoints").glob("[3-9]*"))


def test_text_that_changed_since_the_run_began_is_refused(whole, experiment, corpus, tmp_path):
    import shutil

    shutil.copytree(whole[0], tmp_path / "run")
    extra = corpus / "m99.py"
    extra.write_text("import this\n" * 50)
    try:
        with pytest.raises(UserError, match="the data changed since"):
            loop.train(experiment, tmp_path / "run", Log(6))
    finally:
        extra.unlink()


def test_missing_text_and_wrong_special_ids_are_named(changed, tmp_path):
    with pytest.raises(UserError, match="data.source = '.*nowhere'"):
        loop.train(changed("data", source=str(tmp_path / "nowhere")), tmp_path / "a", Log(6))
    with pytest.raises(UserError, match="model.eos_id = 7, the tokenizer's is 1"):
        loop.train(changed("model", eos_id=7), tmp_path / "b", Log(6))


def test_a_run_starts_from_another_runs_weights(whole, changed, tmp_path):
    again = changed("train", init_from=str(whole[0]), steps=3)
    result = loop.train(again, tmp_path / "run", Log(3))
    assert result.bits_per_byte[0] == pytest.approx(whole[1].bits_per_byte[6], rel=1e-6)
    wider = changed("model", base=again, expert_width=16)
    with pytest.raises(UserError, match=r"(?s)not the model of the config.*experts.down"):
        loop.train(wider, tmp_path / "wider", Log(3))


@pytest.mark.parametrize(
    "seconds, text", [(8.6, "0:09"), (754, "12:34"), (5025, "1:23:45"), (0, "0:00")]
)
def test_clock(seconds, text):
    assert clock(seconds) == text
