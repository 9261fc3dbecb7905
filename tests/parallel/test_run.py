"""Runs on meshes: trained, saved and resumed by the command, on another mesh too."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from zaya_jax import config
from zaya_jax.config import Attention, Data, Experiment, Model, Optim, Router, Train

ROOT = Path(__file__).parents[2]


def test_checkpoints_are_reshaped_exactly(on_devices, tmp_path):
    meshes = ["data=2,context=2,expert=2", "fsdp=8", "", "fsdp=2,expert=4"]
    found = on_devices("reshaped", folder=str(tmp_path), meshes=meshes)
    assert found["leaves"] > 100
    assert not found["changed"] and not found["misplaced"]


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    """A config file of a run of some seconds, on a page of text."""
    folder = tmp_path_factory.mktemp("run")
    corpus = folder / "corpus"
    corpus.mkdir()
    for i in range(12):
        lines = [f"def f{j}(x, y={i}):\n    return x * {j} + y\n" for j in range(40)]
        (corpus / f"m{i:02}.py").write_text("\n\n".join(lines))
    experiment = Experiment(
        name="mesh",
        model=Model(
            vocab_size=300,
            hidden_size=32,
            num_layers=2,
            expert_width=16,
            context_length=64,
            pad_id=0,
            eos_id=1,
            attention=Attention(heads=2, kv_heads=1, head_dim=16),
            router=Router(experts=4, width=16),
            layers="unroll",
        ),
        data=Data(
            source=str(corpus),
            heldout_fraction=0.2,
            heldout_max_bytes=2000,
            cache_dir=str(folder / "cache"),
        ),
        train=Train(
            steps=6, batch_size=8, sequence_length=32, log_every=1, eval_every=3, checkpoint_every=3
        ),
        optim=Optim(learning_rate=1e-2, warmup_steps=2),
    )
    plain = config.to_config_dict(experiment).to_json_best_effort()
    file = folder / "mesh.py"
    file.write_text(
        "import json\nfrom zaya_jax import config\n\n\ndef get_config():\n"
        f"    return config.to_config_dict(config.from_dict(json.loads({plain!r})))\n"
    )
    return file


def losses(run: Path) -> tuple[list[float], list[float]]:
    """Of training and of the held-out text."""
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return tuple([r[name] for r in records if name in r] for name in ("loss", "heldout_loss"))


@pytest.fixture
def launch(on_devices, settings, tmp_path):
    """`launch(workdir, *options)` trains; gives the status, and what was told."""

    def call(workdir: str, *options: str) -> tuple[int, str]:
        arguments = ["train", f"--config={settings}", f"--workdir={tmp_path / workdir}", *options]
        return on_devices("launch", arguments=arguments)

    return call


@pytest.mark.slow  # a minute and a half: three programs and their evaluations
def test_a_run_goes_on_on_another_mesh(launch, tmp_path):
    assert launch("one")[0] == 0
    status, told = launch("many", "--config.mesh=data=2,expert=2", "--config.train.steps=3")
    assert status == 0 and "mesh: data 2 x expert 2: 4 devices (cpu)" in told
    status, told = launch("many", "--mesh=fsdp=2,context=2")
    assert status == 0 and "resuming" in told and "at step 3" in told
    for found, wanted in zip(losses(tmp_path / "many"), losses(tmp_path / "one"), strict=True):
        assert len(found) == len(wanted)
        np.testing.assert_allclose(found, wanted, atol=1e-4)


def test_what_is_wrong_with_a_mesh_is_told_before_anything_is_written(launch, tmp_path):
    status, told = launch("none", "--mesh=data=16", "--config.train.batch_size=16")
    assert status == 2 and "takes 16 devices, and jax has 8" in told
    status, told = launch("none", "--mesh=data=3")
    assert status == 2 and "cannot be divided into data 3 parts" in told
    assert not (tmp_path / "none").exists()


@pytest.mark.slow
def test_the_command_of_the_documentation(tmp_path):
    """As it is typed: eight virtual devices, the tiny config."""
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    command = [
        sys.executable, "launch.py", "train", "--config=experiments/zaya1_tiny.py",
        "--config.mesh=data=2,context=2,expert=2", f"--workdir={tmp_path}/run",
        "--config.train.steps=4", "--config.train.checkpoint_every=2",
        "--config.optim.warmup_steps=2", "--config.data.heldout_max_bytes=20000",
    ]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "mesh: data 2 x context 2 x expert 2: 8 devices" in done.stdout + done.stderr
    assert (tmp_path / "run" / "checkpoints" / "4").is_dir()
