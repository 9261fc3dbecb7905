"""The verb: what it prints, its exit status, mistakes; every experiment can be planned."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from zaya_jax import cli, config
from zaya_jax.config import Experiment
from zaya_jax.plan import case_of, cluster, plan
from zaya_jax.plan.experiment import experiment_of

ROOT = Path(__file__).parents[2]
CONFIGS = [
    path
    for folder in (".", "stages")
    for path in sorted((ROOT / "experiments" / folder).glob("*.py"))
    if path.stem not in ("__init__", "saved")
]


@pytest.fixture
def verb(capsys, monkeypatch):
    """`launch.py plan`: status, stdout, stderr."""
    monkeypatch.chdir(ROOT)

    def run(*arguments):
        status = cli.main(["plan", *arguments])
        printed = capsys.readouterr()
        return status, printed.out, printed.err

    return run


TINY = "--config=experiments/zaya1_tiny.py"
EIGHT = "--config=experiments/zaya1_8b.py"


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_experiment_has_a_plan(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    settings = module.get_config()
    experiment, _ = experiment_of(settings)
    found = plan(experiment, cluster("mi300x"))
    assert 0 < found.memory.arguments < found.memory.total
    assert found.time.seconds > 0 and 0 < found.mfu < 1
    assert bool(found.messages) == (found.case.devices > 1)
    json.dumps(importlib.import_module("zaya_jax.plan.prediction").to_json(found))


def test_what_fits_is_told_with_its_parts(verb, tmp_path):
    file = tmp_path / "plan.json"
    status, out, _ = verb(TINY, "--mesh=data=2,expert=4", f"--json={file}")
    assert status == 0
    for part in ("parameters in use", "saved activations", "all-to-all", "fits:", "tokens/s"):
        assert part in out
    record = json.loads(file.read_text())
    assert record["ok"] and record["plan"]["mesh"] == {
        "data": 2, "fsdp": 1, "context": 1, "expert": 4,
    }  # fmt: skip
    assert record["plan"]["memory"]["total"] < record["plan"]["memory"]["limit"]


def test_what_does_not_fit_is_told_with_what_would(verb):
    status, out, _ = verb(
        EIGHT, "--target=h100", "--mesh=data=8", "--config.model.param_dtype=float32",
        "--config.train.batch_size=64", "--config.train.sequence_length=8192",
    )  # fmt: skip
    assert status == 1
    assert "DOES NOT FIT" in out and "what would fit on 8 devices" in out
    assert "--mesh=" in out and "--config.model.remat=" in out


def test_a_search_names_a_mesh_a_policy_and_a_batch(verb, tmp_path):
    file = tmp_path / "plan.json"
    status, out, _ = verb(TINY, "--nodes=1", "--search", f"--json={file}")
    assert status == 0
    assert "meshes of 8 devices, the fastest first" in out and "largest microbatch" in out
    record = json.loads(file.read_text())
    assert {"none", "dots", "full"} == set(record["largest"])
    assert record["plan"]["devices"] == 8


def test_a_search_on_a_mesh_keeps_it(verb):
    status, out, _ = verb(TINY, "--mesh=data=4", "--search")
    assert status == 0 and "on data=4" in out and "the fastest first" not in out


def test_an_rl_stage_is_planned_by_its_microbatch(verb):
    status, out, err = verb(
        "--config=experiments/stages/rl_warmup.py", "--mesh=data=8", "--config.rl.microbatch_rows=8"
    )
    assert status == 0 and "131,072 tokens (1 rows of 131,072)" in out
    assert "planned as ZAYA1-8B" in err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ((TINY, "--target=a100"), "no target 'a100'"),
        ((TINY, "--mesh=data=8,context=2", "--nodes=1"), "takes 16 devices; --nodes=1 has 8"),
        ((TINY, "--nodes=0"), "--nodes=0: expected at least 1"),
        ((TINY, "--mesh=data=3"), "cannot be divided into data 3 parts"),
        ((TINY, "--mesh=expert=3"), "does not divide model.router.experts"),
        ((TINY, "--mesh=tensor=2"), "no axis 'tensor'"),
        ((), "--config is missing"),
        (
            ("--config=experiments/stages/rl_warmup.py", "--mesh=data=8"),
            "rl.microbatch_rows = 1 cannot be divided into 8 parts",
        ),
    ],
)
def test_mistakes_end_with_2_and_say_what_to_do(verb, arguments, told):
    status, _, err = verb(*arguments)
    assert status == 2 and told in err


def test_one_device_sends_nothing():
    found = plan(Experiment(model=config.Model(remat="full")), cluster("mi300x"))
    assert not found.messages and found.time.links == found.time.network == 0


def test_auto_asks_the_platform_how_tokens_travel():
    these = Experiment(mesh="expert=4")
    kinds = {name: case_of(these, name).exchange for name in ("rocm", "cuda", "cpu")}
    assert [kinds[name].kind for name in kinds] == ["ragged", "ragged", "padded"]
