import dataclasses
import io
import json
import shutil
import signal
from pathlib import Path

import jax
import numpy as np
import pytest

from tests.train.final import final_state
from zaya_jax.config import to_dict
from zaya_jax.errors import UserError
from zaya_jax.train import interrupt, loop, metrics, start
from zaya_jax.train.loop import Diverged
from zaya_jax.train.progress import Progress, clock


@pytest.fixture(scope="module")
def whole(experiment, tmp_path_factory, listener):
    """An uninterrupted run: its folder, result, and what it said."""
    folder = tmp_path_factory.mktemp("whole")
    log = listener()
    return folder, loop.train(experiment, folder, log), log.text.getvalue()


OF_THE_MACHINE = {
    "seconds", "tokens_per_second", "data_wait", "peak_memory_bytes", "compilations",
    "compile_seconds",
}  # fmt: skip


def timeless(folder):
    """The metrics but for how fast they came."""
    return [
        {k: v for k, v in record.items() if k not in OF_THE_MACHINE}
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


def test_nothing_is_compiled_after_the_first_steps(whole):
    lines = [r for r in metrics.read(whole[0]) if "loss" in r]
    assert len({r["compilations"] for r in lines if r["step"] >= 3}) == 1
    assert lines[0]["compilations"] > 0 and lines[0]["compile_seconds"] > 0


def test_a_line_says_how_the_layers_the_groups_and_the_machine_do(whole, experiment):
    lines = [r for r in metrics.read(whole[0]) if "loss" in r]
    for name in (
        "load_entropy", "max_load", "min_load", "dead_experts", "skip_share", "routing_entropy",
        "residual_norm", "max_bias", "min_bias",
    ):  # fmt: skip
        assert len(lines[-1][name]) == experiment.model.num_layers
    groups = {"matrix", "embedding", "convolution", "vector"}
    assert set(lines[-1]["grad_norms"]) == set(lines[-1]["update_norms"]) == groups
    whole_norm = sum(norm**2 for norm in lines[-1]["grad_norms"].values()) ** 0.5
    assert lines[-1]["grad_norm"] == pytest.approx(whole_norm, rel=1e-5)
    assert all(0 <= line["data_wait"] <= 1 for line in lines)
    assert lines[-1]["peak_memory_bytes"] > 0
    assert lines[-1]["skipped"] == lines[-1]["rollbacks"] == 0 and lines[-1]["cursor"] == 6
    assert "mfu" not in lines[-1]  # nobody knows the peak of this processor


def test_a_finished_run_is_not_trained_again(whole, experiment, listener):
    folder, *_ = whole
    before = (folder / "metrics.jsonl").read_text()
    result = loop.train(experiment, folder, listener())
    assert result.step == 6 and result.bits_per_byte == {}
    assert (folder / "metrics.jsonl").read_text() == before


def test_a_run_stopped_by_a_signal_saves_and_ends_as_if_it_had_not_been(
    whole, experiment, tmp_path, listener
):
    log = listener("step 3: held out", lambda: signal.raise_signal(signal.SIGTERM))
    result = loop.train(experiment, tmp_path, log)
    assert result.interrupted == signal.SIGTERM and result.step == 3
    assert "stopped by SIGTERM after step 3" in log.text.getvalue()
    assert (tmp_path / "checkpoints" / "3").is_dir()
    log = listener()
    assert loop.train(experiment, tmp_path, log).step == 6
    assert "at step 3" in log.text.getvalue()
    assert_same_end(tmp_path, whole[0], experiment)


def test_a_run_that_died_ends_as_if_it_had_not(whole, experiment, tmp_path, listener):
    class Died(BaseException):
        pass

    def die():
        raise Died

    with pytest.raises(Died):  # after the lines of steps 1 to 3, with a checkpoint of step 2
        loop.train(experiment, tmp_path, listener("step 3: held out", die))
    assert timeless(tmp_path)[-1]["step"] == 3
    assert loop.train(experiment, tmp_path, listener()).step == 6
    assert_same_end(tmp_path, whole[0], experiment)


def test_a_heldout_loss_that_is_no_number_ends_the_run_before_it_is_written(
    experiment, tmp_path, monkeypatch, listener
):
    monkeypatch.setattr(loop, "evaluate", lambda *_: (float("nan"), 1.0, np.ones((1, 4)) / 4))
    with pytest.raises(Diverged, match="step 0: the loss of the held-out text is nan.*another c"):
        loop.train(experiment, tmp_path, listener())
    assert metrics.read(tmp_path) == []


def test_a_start_that_failed_leaves_the_way_free(experiment, changed, tmp_path, listener):
    folder = tmp_path / "run"
    with pytest.raises(UserError, match="data.source = '.*nowhere'"):
        loop.train(changed("data", source=str(tmp_path / "nowhere")), folder, listener())
    with pytest.raises(UserError, match="model.eos_id = 7, the tokenizer's is 1"):
        loop.train(changed("model", eos_id=7), folder, listener())
    (folder / "tokenizer").mkdir(exist_ok=True)  # a save that was cut off
    assert loop.train(experiment, folder, listener()).step == 6


def test_an_evaluation_that_was_stopped_is_made_up_for(
    whole, experiment, tmp_path, monkeypatch, listener
):
    calls = []

    def stopping(model, layout):
        evaluate = make_eval_step(model, layout)

        def step(*args):
            calls.append(args)
            if len(calls) == batches + 1:  # in the evaluation of step 3
                signal.raise_signal(signal.SIGTERM)
            return evaluate(*args)

        return step

    make_eval_step = loop.make_eval_step
    batches = len(loop.setup.prepare_data(experiment, tmp_path / "data").heldout.batches)
    assert batches > 1
    monkeypatch.setattr(loop, "make_eval_step", stopping)
    folder = tmp_path / "run"
    result = loop.train(experiment, folder, listener())
    assert (result.interrupted, result.step) == (signal.SIGTERM, 3)
    assert set(result.bits_per_byte) == {0} and len(calls) == batches + 1
    monkeypatch.undo()
    result = loop.train(experiment, folder, listener())
    assert set(result.bits_per_byte) == {3, 6} and result.interrupted is None
    assert_same_end(folder, whole[0], experiment)


def test_signals_are_answered_once_and_ignored_ones_stay_ignored(capfd):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    # A shell starts its background jobs, a test run among them, with SIGINT ignored.
    interrupted = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with interrupt.requests() as stop:
            signal.raise_signal(signal.SIGHUP)
            assert not stop
            signal.raise_signal(signal.SIGINT)
            assert stop.signal == signal.SIGINT
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGHUP, before)
        signal.signal(signal.SIGINT, interrupted)


def test_a_closed_terminal_stops_no_run():
    class Closed(io.StringIO):
        def write(self, text):
            raise OSError(5, "Input/output error")

    progress = Progress(6, Closed())
    progress.say("hello")
    progress.update(1, 2.0, 1.0, 100.0, 5.0)


def test_text_that_changed_since_the_run_began_is_refused(
    whole, experiment, corpus, tmp_path, listener
):
    shutil.copytree(whole[0], tmp_path / "run")
    extra = corpus / "m99.py"
    extra.write_text("import this\n" * 50)
    try:
        with pytest.raises(UserError, match="the data changed since"):
            loop.train(experiment, tmp_path / "run", listener())
    finally:
        extra.unlink()


@pytest.fixture
def copied(whole, tmp_path):
    """The finished run, to be written in."""
    return Path(shutil.copytree(whole[0], tmp_path / "there"))


def test_a_run_starts_from_another_runs_weights(whole, copied, changed, tmp_path, listener):
    settings = copied / "tokenizer" / "tokenizer_config.json"
    settings.write_text(
        json.dumps(
            {**json.loads(settings.read_text()), "chat_template": "x", "add_bos_token": True}
        )
    )
    result = loop.train(changed("train", init_from=str(copied)), tmp_path / "run", listener())
    assert result.bits_per_byte[0] == pytest.approx(whole[1].bits_per_byte[6], rel=1e-6)
    kept = tmp_path / "run" / "tokenizer" / "tokenizer_config.json"
    assert kept.read_text() == settings.read_text()


def test_weights_of_another_model_are_refused_field_by_field(whole, changed):
    again = changed("train", init_from=str(whole[0]))
    rope = dataclasses.replace(again.model.attention, rope_theta=10.0)
    longer = changed("model", base=again, context_length=128, attention=rope, init_std=1.0)
    told = []
    start.first_state(longer, told.append)
    assert len(told) == 2
    assert "context_length: 128 in the config, 64 there" in "".join(told)
    assert "attention.rope_theta: 10.0 in the config, 5000000.0 there" in "".join(told)
    other = changed("model", base=longer, norm_eps=0.5, expert_width=16)
    with pytest.raises(UserError) as error:
        start.first_state(other, told.append)
    lines = str(error.value).splitlines()
    assert len(lines) == 3 and len(told) == 2
    assert "  model.norm_eps: 0.5 in the config, 1e-05 there" in lines
    assert "  model.expert_width: 16 in the config, 32 there" in lines


def test_weights_without_a_tokenizer_are_named(copied, changed, tmp_path):
    shutil.rmtree(copied / "tokenizer")
    again = changed("train", init_from=str(copied))
    with pytest.raises(UserError, match="no tokenizer.json there; name one by data.tokenizer"):
        loop.setup.prepare_data(again, tmp_path / "run")


@pytest.mark.parametrize(
    "seconds, text", [(8.6, "0:09"), (754, "12:34"), (5025, "1:23:45"), (0, "0:00")]
)
def test_clock(seconds, text):
    assert clock(seconds) == text
