"""The cascade: its order, its commands, its scores and its page."""

import json
import os
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.report import fake
from zaya_jax import cascade, cli, config
from zaya_jax.config.rl import RL
from zaya_jax.report import run
from zaya_jax.train import workdir

ROOT = Path(__file__).parents[1]


@pytest.fixture
def tiny():
    return runpy.run_path(str(ROOT / cascade.CASCADE))


def test_every_stage_and_set_of_the_tiny_one_is_an_experiment(tiny):
    for name, verb in tiny["STAGES"].items():
        experiment = config.freeze(tiny["get_config"](name))
        assert bool(experiment.rl.tasks) == (verb == "rl")
        assert bool(experiment.preference.pairs) == (verb == "reward-model")
    for name in tiny["SETS"]:
        experiment = config.freeze(tiny["get_config"](name))
        assert experiment.train.steps == 0 and experiment.rl.heldout >= 32


def test_a_stage_begins_where_the_last_policy_ended(tiny):
    after = {stage.name: stage.after for stage in cascade.stages_of(tiny["STAGES"])}
    assert after == {
        "sft": None,
        "warmup": "sft",
        "curriculum": "warmup",
        "math_code": "curriculum",
        "rewards": "math_code",
        "behaviour": "math_code",
    }
    last = cascade.stages_of(tiny["STAGES"])[-1]
    assert last.rewards == "rewards"


def score(accuracy, half=0.05):
    return {"accuracy": accuracy, "low": accuracy - half, "high": accuracy + half,
            "length": 10.0, "decoded": 10.0, "prompt": 40, "tasks": 32}  # fmt: skip


@pytest.fixture
def finished(tmp_path):
    """A cascade of two stages, as it lies on disk."""
    base = fake.BASE
    fake.write_run(tmp_path / "sft", base)
    stage = config.from_dict(
        config.to_dict(base) | {"rl": config.to_dict(config.Experiment(rl=RL()))["rl"]}
    )
    data = config.to_dict(stage)
    data["rl"]["tasks"] = (("t.jsonl", 1.0),)
    data["rl"]["loss"]["replay"] = False
    folder = tmp_path / "warmup"
    folder.mkdir()
    workdir.write_json(folder / workdir.CONFIG, data)
    lines = [{"step": 0, "seconds": 1.0, "heldout_accuracy": 0.1, "heldout_length": 5.0}]
    lines += [
        {"step": step, "seconds": 1.0 + step, "loss": 0.1, "reward": step / 10, "length": 9.0,
         "kl": 1e-4, "staleness": 1, "entropy": 0.5} for step in (1, 2)
    ]  # fmt: skip
    lines += [{"step": 400, "seconds": 9.0, "heldout_accuracy": 0.9, "heldout_length": 7.0}]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path


def test_the_page_has_scores_with_intervals_and_every_stages_curves(finished):
    stages = cascade.stages_of({"sft": "train", "warmup": "rl"})
    scores = {"sft": {"sums": score(0.2)}, "warmup": {"sums": score(0.8)}}
    runs = {stage.name: run.read(finished / stage.name) for stage in stages}
    page = cascade.of(stages, ["sums"], scores, runs)
    assert page.opening[0].text == "sums 20% to 80%"
    tables = {section.title: section.parts[0] for section in page.sections if section.parts}
    assert tables["Scores after each stage"].rows[1] == ["warmup", "80.0% (75% to 85%)"]
    assert tables["What each stage changed"].rows == [["warmup", "+60.0"]]
    titles = [section.title for section in page.without_gaps()]
    assert "warmup: answers" in titles and "warmup: generation and trainer" in titles


def test_small_changes_stand_in_brackets():
    assert cascade.change(score(0.5), score(0.55)) == "[+5.0]"
    assert cascade.change(score(0.5), score(0.2)) == "-30.0"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--cascade=nowhere.py"], "no such file"),
        (["--cascade=experiments/zaya1_tiny.py"], "it has no STAGES"),
        (["--until=nothing"], "--until=nothing: the stages are sft, warmup"),
    ],
)
def test_mistakes_are_told_before_anything_runs(tmp_path, monkeypatch, capsys, arguments, words):
    monkeypatch.chdir(ROOT)
    assert cli.main(["cascade", f"--workdir={tmp_path / 'w'}", *arguments]) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "w").exists()


def test_commands_are_those_that_one_would_type(tmp_path, tiny, monkeypatch):
    flags_of = type("Flags", (), {"cascade": cascade.CASCADE, "seed": 3})
    monkeypatch.setattr(cascade, "FLAGS", flags_of)
    *_, last = cascade.stages_of(tiny["STAGES"])
    command = cascade.command_of(last, tmp_path, tiny["get_config"]("behaviour"))
    assert command[:3] == ["launch.py", "rl", f"--config={cascade.CASCADE}:behaviour"]
    assert f"--config.train.init_from={tmp_path / 'math_code'}" in command
    assert f"--config.rl.reward_model={tmp_path / 'rewards'}" in command


def test_a_cascade_with_a_reward_model_has_its_page_too(finished):
    """A reward model is evaluated on pairs, not on text, and no policy."""
    data = config.to_dict(fake.BASE)
    data["preference"]["pairs"] = "pairs.jsonl"
    folder = finished / "rewards"
    folder.mkdir()
    workdir.write_json(folder / workdir.CONFIG, data)
    lines = [{"step": 0, "seconds": 1.0, "heldout_accuracy": 0.5},
             {"step": 5, "seconds": 2.0, "loss": 0.6},
             {"step": 10, "seconds": 3.0, "heldout_accuracy": 0.9}]  # fmt: skip
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    stages = cascade.stages_of({"sft": "train", "warmup": "rl", "rewards": "reward-model"})
    scores = {"sft": {"sums": score(0.2)}, "warmup": {"sums": score(0.8)}}
    page = cascade.write_page(finished, stages, ["sums"], scores)
    assert "warmup" in page.read_text()
    said = (folder / "report.html").read_text()
    assert "90.0% of the held-out pairs are ordered right after 10 steps, from 50.0%" in said


def test_a_stage_that_saves_when_it_is_interrupted_is_waited_for(tmp_path):
    """Ctrl-C reaches the whole group: the stage must not be killed while it saves."""
    stage = tmp_path / "stage.py"
    stage.write_text(
        "import signal, time, pathlib\n"
        "def stop(*_):\n    time.sleep(1)\n    pathlib.Path('saved').touch()\n"
        "    raise SystemExit(130)\n"
        "signal.signal(signal.SIGINT, stop)\npathlib.Path('ready').touch()\ntime.sleep(60)\n"
    )
    program = (
        f"from pathlib import Path\nfrom zaya_jax import cascade\n"
        f"cascade.ROOT = Path({str(tmp_path)!r})\nraise SystemExit(cascade.execute(['stage.py']))"
    )
    process = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, start_new_session=True)
    while not (tmp_path / "ready").exists():
        assert process.poll() is None
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(60) == 130 and (tmp_path / "saved").exists()
