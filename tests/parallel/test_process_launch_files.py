"""The files of `cluster/`: what they start is a command of ours, on a mesh that fits."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from zaya_jax import cli, load
from zaya_jax.cluster import find
from zaya_jax.config import mesh

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "cluster"
SHELL = sorted(CLUSTER.glob("*.sh")) + sorted(CLUSTER.glob("*.sbatch"))
JOBSETS = sorted(CLUSTER.glob("*.yaml"))
CONFIG, NODES = "experiments/stages/pretrain_1.py", 4


@pytest.fixture(scope="module")
def flags():
    """The names of the options of `launch.py train`."""
    with contextlib.redirect_stdout(io.StringIO()) as told:
        assert cli.main(["help", "train"]) == 0
    names = re.findall(r"^  --(?:\[no\])?(\w+)", told.getvalue(), re.MULTILINE)
    assert {"config", "workdir", "mesh", "spawn", "restarts"} <= set(names)
    return set(names)


@pytest.fixture
def started(tmp_path):
    """Runs a shell file with a `srun` and a python that write down what they are given."""
    note = tmp_path / "note"
    for name in ("srun", "python"):
        script = tmp_path / name
        script.write_text(
            "#!/usr/bin/env python3\nimport json, os, sys\n"
            f"with open({str(note)!r}, 'a') as file:\n"
            "    file.write(json.dumps(sys.argv) + '\\n')\n"
            "words = sys.argv[1:]\n"
            "if sys.argv[0].endswith('srun'):\n"
            "    while words[0].startswith('-'): words.pop(0)\n"
            "    os.execv(words[0], words)\n"
        )
        script.chmod(0o755)

    def run(file: Path, *arguments: str, **environment: str) -> list[list[str]]:
        slurm = {"SLURM_JOB_NUM_NODES": str(NODES), "SLURM_CPUS_PER_TASK": "16"}
        path = f"{tmp_path}:{os.environ['PATH']}"
        subprocess.run(
            ["bash", str(file), *arguments],
            cwd=ROOT,
            env=os.environ
            | slurm
            | {"PATH": path, "PYTHON": str(tmp_path / "python")}
            | environment,
            check=True,
        )
        return [json.loads(line) for line in note.read_text().splitlines()]

    return run


def check(words: list[str], flags: set[str], devices: int) -> dict[str, str]:
    """Options that exist, of a config with such fields, on a mesh of so many devices; as a dict."""
    assert all(word.startswith("--") and "=" in word for word in words), words
    given = dict(word[2:].split("=", 1) for word in words)
    plain = {name for name in given if not name.startswith("config.")}
    assert plain <= flags, plain - flags
    settings = runpy.run_path(str(ROOT / given["config"]))["get_config"]()
    for name in given.keys() - plain:
        *parts, last = name.split(".")[1:]
        section = settings
        for part in parts:
            section = section[part]
        assert last in section, name
    experiment = dataclasses.replace(load.experiment(settings), mesh=given["mesh"])
    assert mesh.devices(given["mesh"]) == devices
    assert not list(mesh.check(experiment))
    return given


@pytest.mark.parametrize("file", SHELL, ids=lambda file: file.name)
def test_a_shell_file_starts_a_run_that_fits(file, flags, started):
    subprocess.run(["bash", "-n", str(file)], check=True)
    told = started(file, CONFIG, "runs/x", "--config.train.steps=7")
    assert told[-1][1:3] == ["launch.py", "train"]
    slurm = file.suffix == ".sbatch"
    given = check(told[-1][3:], flags, 8 * NODES if slurm else 8)
    assert given["config"] == CONFIG and given["workdir"] == "runs/x"
    assert given["config.train.steps"] == "7" and int(given["restarts"]) > 0
    if slurm:
        assert told[0][1:3] == ["--kill-on-bad-exit=1", "--cpus-per-task=16"]
        text = file.read_text()
        assert "--ntasks-per-node=1\n" in text and "--gpus-per-node=8\n" in text


@pytest.mark.parametrize("file", SHELL, ids=lambda file: file.name)
def test_a_shell_file_takes_another_mesh_and_says_what_is_missing(file, flags, started):
    told = started(file, CONFIG, "runs/x", MESH="data=2,fsdp=4")
    assert check(told[-1][3:], flags, 8)["mesh"] == "data=2,fsdp=4"
    with pytest.raises(subprocess.CalledProcessError):
        started(file, CONFIG)


def test_a_process_for_each_gpu(flags, started):
    told = started(CLUSTER / "node.sh", CONFIG, "runs/x", PROCESSES="8")
    assert check(told[-1][3:], flags, 8)["spawn"] == "8"


@pytest.mark.parametrize("file", JOBSETS, ids=lambda file: file.name)
def test_a_jobset_starts_a_run_that_fits_and_its_pods_find_each_other(file, flags):
    found = yaml.safe_load(file.read_text())
    (job,) = found["spec"]["replicatedJobs"]
    spec = job["template"]["spec"]
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    verb, *words = container["args"]
    pods = spec["parallelism"]
    assert verb == "train" and spec["completions"] == pods and job["replicas"] == 1
    check(words, flags, 8 * pods)
    assert set(container["resources"]["limits"].values()) == {8}

    environment = {one["name"]: one["value"] for one in container["env"]}
    environment["JOB_COMPLETION_INDEX"] = str(pods - 1)  # as an indexed job sets it
    member = find(environment, gpus=lambda _: 8)
    assert (member.count, member.index, member.devices) == (pods, pods - 1, None)
    name = found["metadata"]["name"]
    host = f"{name}-{job['name']}-0-0.{name}"  # of the first pod: JobSet, network
    assert member.coordinator == f"{host}:{container['ports'][0]['containerPort']}"
    # Status 2 is a mistake: not to be tried again.
    (rule,) = spec["podFailurePolicy"]["rules"]
    assert rule["onExitCodes"] == {
        "containerName": container["name"],
        "operator": "In",
        "values": [2],
    }
    # What is mounted is there.
    volumes = {volume["name"] for volume in pod["volumes"]}
    assert {mount["name"] for mount in container["volumeMounts"]} == volumes


def test_flags_of_xla_are_known_to_our_jaxlib():
    """XLA aborts on a flag that it does not know."""
    texts = (file.read_text() for file in CLUSTER.iterdir())
    names = {name for text in texts for name in re.findall(r"--xla_\w+(?:=\w+)?", text)}
    assert names
    subprocess.run(
        [sys.executable, "-c", "import jax; jax.devices()"],
        env=os.environ | {"XLA_FLAGS": " ".join(sorted(names)), "JAX_PLATFORMS": "cpu"},
        check=True,
    )
