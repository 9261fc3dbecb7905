import json
import os
import re
import shutil
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from zaya_jax.config import to_dict
from zaya_jax.errors import UserError
from zaya_jax.train import manifest, workdir
from zaya_jax.train import state as train_state
from zaya_jax.train.checkpoint import Checkpoints, kept
from zaya_jax.train.weights import restore_weights


@pytest.fixture(scope="module")
def run(experiment, tmp_path_factory):
    """A run directory with checkpoints of steps 2 and 4, and the two states."""
    folder = tmp_path_factory.mktemp("run")
    workdir.claim(experiment, folder)
    first = train_state.init(experiment)
    states = {
        step: jax.tree.map(lambda x, step=step: (x + step).astype(x.dtype), first)
        for step in (2, 4)
    }
    checkpoints = Checkpoints(folder, experiment)
    for step, state in states.items():
        assert checkpoints.save(state.replace(step=jnp.int32(step))) == step
    checkpoints.close()
    return folder, states


@pytest.fixture
def damaged(run, tmp_path):
    """A copy of the run whose newest checkpoint lost the end of its largest file."""
    folder = tmp_path / "copy"
    shutil.copytree(run[0], folder)
    files = (folder / "checkpoints/4/weights").rglob("*")
    largest = max((f for f in files if f.is_file()), key=lambda f: f.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:-7])
    return folder, run[1]


def assert_equal(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_a_state_comes_back_as_it_was(run, experiment):
    folder, states = run
    checkpoints = Checkpoints(folder, experiment)
    found = checkpoints.restore()
    checkpoints.close()
    assert found.step == 4
    assert_equal(found.replace(step=0), states[4].replace(step=0))


def test_weights_come_back_alone_from_a_run_a_folder_or_a_checkpoint(run, experiment):
    folder, states = run
    for path, step, expected in (
        (folder, None, 4),
        (folder, 2, 2),
        (folder / "checkpoints", None, 4),
        (folder / "checkpoints" / "2", None, 2),
    ):
        found, params, biases = restore_weights(path, step)
        assert found == experiment
        assert_equal(params, dict(states[expected].params))
        assert_equal(biases, dict(states[expected].biases))


def test_weights_need_no_optimizer_state(run, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(run[0], folder)
    shutil.rmtree(folder / "checkpoints/4/train")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _, params, _ = restore_weights(folder)
    assert_equal(params, dict(run[1][4].params))


def test_a_damaged_checkpoint_is_named_and_stepped_over(damaged, experiment):
    folder, states = damaged
    with pytest.warns(UserWarning, match=r"checkpoints/4 is damaged .*has \d+ bytes"):
        _, params, _ = restore_weights(folder)
    assert_equal(params, dict(states[2].params))

    checkpoints = Checkpoints(folder, experiment)
    with pytest.warns(UserWarning, match="renamed damaged-4"):
        found = checkpoints.restore()
    assert found.step == 2
    # The way is free for the step to be done again, and nothing was deleted.
    assert checkpoints.save(states[4].replace(step=jnp.int32(4))) == 4
    checkpoints.close()
    assert (folder / "checkpoints/damaged-4").is_dir()
    assert_equal(restore_weights(folder)[1], dict(states[4].params))


def test_a_whole_checkpoint_that_cannot_be_read_now_keeps_its_name(run, experiment, monkeypatch):
    """Too little memory, or other code, damages nothing: the same command may go on later."""
    folder = run[0]
    before = sorted(path.name for path in (folder / "checkpoints").iterdir())

    def restore(*args, **kwargs):
        raise RuntimeError("RESOURCE_EXHAUSTED: out of memory")

    checkpoints = Checkpoints(folder, experiment)
    monkeypatch.setattr(ocp.Checkpointer, "restore", restore)
    with pytest.raises(UserError, match=r"is whole, but could not be read: .*RESOURCE_EXHAUSTED"):
        checkpoints.restore()
    checkpoints.close()
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == before


def test_a_damaged_checkpoint_asked_for_by_number_is_an_error(damaged):
    with pytest.raises(UserError, match="checkpoints/4 is damaged"):
        restore_weights(damaged[0], 4)


def test_when_nothing_can_be_read_that_is_an_error(damaged, experiment):
    folder, _ = damaged
    (folder / "checkpoints/2/manifest.json").write_text("{")
    with pytest.warns(UserWarning), pytest.raises(UserError, match="can be read"):
        restore_weights(folder)


def test_a_run_whose_checkpoints_are_all_damaged_is_not_begun_anew(damaged, experiment):
    folder, _ = damaged
    (folder / "checkpoints/2/manifest.json").write_text("{")
    for _ in range(2):  # the second time, both have another name
        checkpoints = Checkpoints(folder, experiment)
        with warnings.catch_warnings(), pytest.raises(UserError, match="can be read"):
            warnings.simplefilter("ignore")
            checkpoints.restore()
        checkpoints.close()


def test_a_checkpoint_without_a_manifest_is_damaged(run, experiment, tmp_path):
    """It is in the folder before the folder has its name, so nothing of ours leaves it out."""
    folder = shutil.copytree(run[0], tmp_path / "copy")
    (folder / "checkpoints/4/manifest.json").unlink()
    checkpoints = Checkpoints(folder, experiment)
    assert checkpoints.newest() == folder / "checkpoints" / "4"
    with pytest.warns(UserWarning, match="manifest.json is missing"):
        assert checkpoints.restore().step == 2
    checkpoints.close()


def test_training_goes_on_while_a_checkpoint_is_written(experiment, changed, tmp_path, monkeypatch):
    """What is saved is the state as it was, however the donated buffers are used meanwhile."""
    wide = changed("model", vocab_size=20_000)
    state = train_state.init(wide)
    state = state.replace(step=jnp.int32(7), optimizer=state.optimizer)
    scale = jax.jit(
        lambda s: jax.tree.map(lambda x: (x * 3 + 1).astype(x.dtype), s), donate_argnums=0
    )
    state = scale(state).replace(step=jnp.int32(7))
    expected = jax.tree.map(np.array, state)
    held = threading.Event()
    write = manifest.write
    monkeypatch.setattr(manifest, "write", lambda folder: (held.wait(60), write(folder)))
    checkpoints = Checkpoints(tmp_path, wide)
    checkpoints.save(state)
    for _ in range(5):
        state = scale(state)
    jax.block_until_ready(state)
    # Nothing has the step's name before it is whole, manifest and all.
    assert checkpoints.newest() is None
    assert [path.name for path in (tmp_path / "checkpoints").glob(".*")]
    held.set()
    checkpoints.wait()
    assert_equal(checkpoints.restore(), expected)
    checkpoints.close()


def test_leftovers_of_a_killed_run_are_removed(run, experiment, tmp_path):
    folder = shutil.copytree(run[0], tmp_path / "copy")
    for name in (".scratch-6", ".scratch-6.orbax-checkpoint-tmp", ".scratch-deleting-2"):
        (folder / "checkpoints" / name / "weights").mkdir(parents=True)
    checkpoints = Checkpoints(folder, experiment)
    checkpoints.close()
    assert {path.name for path in (folder / "checkpoints").iterdir()} == {"2", "4"}


@pytest.mark.parametrize(
    "there, stay",
    [
        ([2, 4, 6], {4, 6}),
        ([2, 4, 5], {2, 4, 5}),  # 5: asked for by a signal; a rollback needs 2 and 4 as ever
        ([2, 4, 5, 6], {4, 6}),
        ([3, 5], {5}),
    ],
)
def test_a_checkpoint_that_a_signal_asked_for_pushes_out_no_other(changed, there, stay):
    train = changed("train", checkpoint_every=2, keep_checkpoints=2).train
    assert kept(there, train) == stay


FULL = """
import json, resource, sys, warnings
from pathlib import Path
import jax, numpy as np
from zaya_jax.config import from_dict
from zaya_jax.config import to_dict
from zaya_jax.errors import UserError
from zaya_jax.train import state as train_state
from zaya_jax.train.checkpoint import Checkpoints, kept
experiment, folder = from_dict(json.load(sys.stdin)), Path(sys.argv[1])
state = train_state.init(experiment)
checkpoints = Checkpoints(folder, experiment)
checkpoints.save(state.replace(step=np.int32(2)))
checkpoints.wait()
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
checkpoints.save(state.replace(step=np.int32(4)))
try:
    checkpoints.close()
except UserError as error:
    print(error)
"""


def test_a_disk_without_room_is_one_clear_error(experiment, tmp_path):
    """The limit on a file's size fails the very writes that a full disk fails."""
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path)],
        input=json.dumps(to_dict(experiment)),
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        env={**os.environ, "PYTHONPATH": "."},
    )
    assert done.returncode == 0, done.stderr
    place = (tmp_path / "checkpoints").absolute()
    assert re.search(
        rf"no room for a checkpoint in {place}: it needs [\d,]+ bytes, [\d,]+ are free .*"
        rf"the last good checkpoint is {place}/2",
        done.stdout,
    )
    assert [path.name for path in place.iterdir()] == ["2"]
    assert manifest.damage(place / "2") is None


def test_missing_runs_and_steps_are_named(run, tmp_path, experiment):
    with pytest.raises(UserError, match="no config.json"):
        restore_weights(tmp_path)
    with pytest.raises(UserError, match="no checkpoint of step 3; there are: 2, 4"):
        restore_weights(run[0], 3)
    workdir.claim(experiment, tmp_path / "new")
    with pytest.raises(UserError, match="no checkpoints yet"):
        restore_weights(tmp_path / "new")


def test_a_manifest_sees_a_flipped_bit_and_a_missing_file(tmp_path):
    (tmp_path / "a").write_bytes(bytes(100))
    (tmp_path / "b").write_bytes(b"b")
    assert manifest.damage(tmp_path) == "manifest.json is missing"
    manifest.write(tmp_path)
    assert manifest.damage(tmp_path) is None
    (tmp_path / "a").write_bytes(bytes(99) + b"\1")
    assert "a has other contents" in manifest.damage(tmp_path)
    assert manifest.damage(tmp_path, "b") is None
    (tmp_path / "b").unlink()
    assert manifest.damage(tmp_path, "b") == "b is missing"
