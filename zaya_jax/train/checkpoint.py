"""Saving and restoring a run: `checkpoints/<step>/` in its directory, in Orbax's format.

A checkpoint has two items. `weights` holds {"params", "biases"}, all that inference needs (the
adapters alone under LoRA, see `zaya_jax.train.base`); `train` holds the rest of the state: step,
optimizer, balancer, faults, data cursor. Its manifest tells damage apart from numbers.

Of several processes each writes and reads its own shards; process 0 alone makes, names and removes
folders, and says what is there.

Training goes on while a checkpoint is written. Orbax takes its copy of the state before `save`
returns, and writes into a scratch folder; once that is whole, the manifest is added and the folder
gets its name, in one rename. What has a step's name is therefore complete, whenever the process
was killed.
"""

from __future__ import annotations

import functools
import logging
import os
import re
import shutil
import threading
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from zaya_jax.config import Experiment, Train
from zaya_jax.errors import UserError
from zaya_jax.parallel import ONE_DEVICE, OneDevice
from zaya_jax.parallel.processes import ALONE, Alone
from zaya_jax.train import manifest
from zaya_jax.train import state as train_state
from zaya_jax.train.state import TrainState
from zaya_jax.train.workdir import CHECKPOINTS

WEIGHTS, TRAIN = "weights", "train"
_SCRATCH = ".scratch-"
_NO_ROOM = re.compile(r"os_error_code='(27|28|122)'|Errno (27|28|122)\b|ENOSPC|EFBIG|EDQUOT")
"""File too large, no space left, quota exceeded: in the words of TensorStore and of Python."""

# Orbax tells every file that it touches, and logs with a traceback what it raises anyway.
logging.getLogger("absl").setLevel(logging.CRITICAL)


class Checkpoints:
    """The checkpoints of one run, newest kept.

    One is written at a time. The caller holds the run directory's lock, so scratch folders that are
    there at the start are leftovers of a killed run, and are removed.

    Args:
      folder: the run directory.
      experiment: gives shapes and dtypes, and how many to keep.
      layout: where a restored state is to lie, wherever it lay when it was saved.
      group: the processes of the run, all of which make the same calls.
    """

    def __init__(
        self,
        folder: Path,
        experiment: Experiment,
        layout: OneDevice = ONE_DEVICE,
        group: Alone = ALONE,
    ):
        self._folder, self._experiment = (folder / CHECKPOINTS).absolute(), experiment
        self._layout, self._group = layout, group
        group.share(self._clear)
        self._among = ocp.options.MultiprocessingOptions(
            # Named, they meet in the key-value store. Else they would meet on the devices, where
            # a thread that writes must not get in between two steps.
            active_processes=set(range(group.count)) if group.count > 1 else None
        )
        self._orbax = ocp.AsyncCheckpointer(self._handler(), multiprocessing_options=self._among)
        self._writing: threading.Thread | None = None
        self._failure: BaseException | None = None

    def save(self, state: TrainState) -> int:
        """Begins to write the state under its step, if it is not there yet; returns the step.

        The state may be donated as soon as this returns.

        Raises:
          UserError: as `raise_failure`, of the save before this one.
        """
        self.wait()
        step = int(state.step)
        if self._group.share(lambda: step in steps_in(self._folder)):
            return step
        weights, rest = _items(state)
        scratch = self._folder / f"{_SCRATCH}{step}"
        self._bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
        try:
            self._orbax.save(
                scratch,
                args=ocp.args.Composite(
                    **{WEIGHTS: ocp.args.StandardSave(weights), TRAIN: ocp.args.StandardSave(rest)}
                ),
            )
        except Exception as error:
            self._failure = error
            self.raise_failure()
        self._writing = threading.Thread(target=self._publish, args=(scratch, step))
        self._writing.start()
        return step

    def _publish(self, scratch: Path, step: int) -> None:
        """Runs beside the training: waits for Orbax, then gives the folder its name."""

        def name() -> None:
            manifest.write(scratch)
            scratch.rename(self._folder / str(step))
            _sync(self._folder)
            there = steps_in(self._folder)
            self._remove(set(there) - kept(there, self._experiment.train))

        try:
            self._orbax.wait_until_finished()
            self._group.share(name, "published")
        except BaseException as error:  # whatever it is, the training thread is to hear of it
            self._failure = error

    def _remove(self, steps: Iterable[int]) -> None:
        """Deletes checkpoints, each at once: a part of one never keeps its name."""
        for step in sorted(steps):
            scratch = self._folder / f"{_SCRATCH}deleting-{step}"
            (self._folder / str(step)).rename(scratch)
            # A file that a reader has open on a network file system: the next start sweeps it up.
            shutil.rmtree(scratch, ignore_errors=True)

    def wait(self) -> None:
        """Until nothing is being written.

        Raises:
          UserError: as `raise_failure`.
        """
        if self._writing is not None:
            self._writing.join()
            self._writing = None
        self.raise_failure()

    def raise_failure(self) -> None:
        """Tells of a save that failed, as soon as it did; cheap, and returns if none has.

        Raises:
          UserError: there was no room; what was half written has been removed.
        """
        error = self._failure
        if error is None:
            return  # and leaves it alone: the writer may have failed since
        self._failure = None
        if self._group.leads:
            self._clear()
        if not _NO_ROOM.search(f"{error!r} {error}"):
            raise error
        saved = self.newest()
        last = f"the last good checkpoint is {saved}" if saved else "no checkpoint is there yet"
        raise UserError(
            f"no room for a checkpoint in {self._folder}: it needs {self._bytes:,} bytes, "
            f"{shutil.disk_usage(self._folder).free:,} are free ({first_line(error)}); {last}. "
            "Make room and give the same command again; a smaller train.keep_checkpoints takes less"
        ) from error

    def restore(self, scheduled: bool = False) -> TrainState | None:
        """The newest state that can be read, or None if there is no checkpoint.

        A checkpoint that cannot be read is named in a warning, set aside (renamed, so that its step
        can be saved again) and the one before it taken.

        Args:
          scheduled: only checkpoints of `train.checkpoint_every`, which every course of this run
            has, none that a signal asked for.

        Raises:
          UserError: there are checkpoints, but none can be read.
        """
        self.wait()
        steps = self._group.share(lambda: sorted(steps_in(self._folder), reverse=True))
        if scheduled:
            steps = [step for step in steps if _is_scheduled(step, self._experiment.train)]
        for step in steps:
            found, why = self._read(step)
            if found is not None:
                return found
            self._group.share(functools.partial(self._set_aside, step, why))
        if steps or (not scheduled and any(self._folder.glob("damaged-*"))):
            raise UserError(
                f"none of the checkpoints in {self._folder} can be read (they were renamed, not "
                "deleted): start anew in another --workdir"
            )
        return None

    def _read(self, step: int) -> tuple[TrainState | None, str]:
        """A checkpoint's state, or what of it is damaged.

        Raises:
          UserError: it is whole, but cannot be read: by some of the processes, or for want of
            memory, or by this version of the code. Then trying an older one would not help.
        """
        folder = self._folder / str(step)
        damage = self._group.share(lambda: _failing(lambda: check(folder))[1])
        if damage:
            return None, damage
        wanted = train_state.abstract(self._experiment)
        weights, rest = _items(placed_on(self._layout, wanted))
        args = {
            WEIGHTS: ocp.args.StandardRestore(weights),
            TRAIN: ocp.args.StandardRestore(rest),
        }
        with ocp.Checkpointer(self._handler(), multiprocessing_options=self._among) as reader:
            found, why = _failing(lambda: reader.restore(folder, args=ocp.args.Composite(**args)))
        told = self._group.gather(why)
        failed = [f"process {index}: {text}" for index, text in enumerate(told) if text]
        if not failed:
            return TrainState(**found[WEIGHTS], **found[TRAIN]), ""
        if len(failed) < len(told):
            raise UserError(
                f"{folder} is whole, but cannot be read by {'; '.join(failed)}. All processes must "
                "see --workdir under the same path"
            )
        raise UserError(
            f"{folder} is whole, but could not be read: {told[0]}. Nothing was renamed or deleted: "
            "mend that (too little memory? other code?) and give the same command again"
        )

    def _handler(self) -> ocp.CompositeCheckpointHandler:
        options = ocp.CompositeOptions(multiprocessing_options=self._among)
        return ocp.CompositeCheckpointHandler(composite_options=options)

    def forget_after(self, step: int) -> None:
        """Deletes the checkpoints of later steps: the run takes another course from here."""
        self._group.share(
            lambda: self._remove(later for later in steps_in(self._folder) if later > step)
        )

    def newest(self) -> Path | None:
        """The folder of the last checkpoint that is complete, if there is one."""
        steps = steps_in(self._folder)
        return self._folder / str(max(steps)) if steps else None

    def _set_aside(self, step: int, why: str) -> None:
        damaged = self._folder / str(step)
        aside = self._folder / f"damaged-{step}"
        number = 1
        while aside.exists():
            number += 1
            aside = self._folder / f"damaged-{step}-{number}"
        damaged.rename(aside)
        warnings.warn(
            f"checkpoint {damaged} is damaged and was renamed {aside.name}; trying the one before "
            f"it ({why})",
            stacklevel=3,
        )

    def _clear(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        for scratch in self._folder.glob(f"{_SCRATCH}*"):
            shutil.rmtree(scratch, ignore_errors=True)

    def close(self) -> None:
        """Waits for what is being written.

        Raises:
          UserError: as `raise_failure`.
        """
        try:
            self.wait()
        finally:
            self._orbax.close()


def steps_in(folder: Path) -> list[int]:
    """The steps of the complete checkpoints in a `checkpoints` folder, in no order."""
    return [int(path.name) for path in folder.glob("[0-9]*") if path.name.isdigit()]


def kept(steps: list[int], train: Train) -> set[int]:
    """Which of the checkpoints stay: the newest `keep_checkpoints` of the scheduled ones.

    One that a signal asked for stays while it is the newest of all. It must not push out a
    scheduled one: to which a rollback goes, must not depend on where a run was interrupted.
    """
    scheduled = sorted(step for step in steps if _is_scheduled(step, train))
    return {*scheduled[-train.keep_checkpoints :], max(steps)}


def _is_scheduled(step: int, train: Train) -> bool:
    return step % train.checkpoint_every == 0


def check(folder: Path, part: str = "") -> None:
    """Compares a checkpoint, or an item of it, with its manifest.

    Raises:
      OSError: it is damaged; says how.
    """
    found = manifest.damage(folder, part)
    if found:
        raise OSError(found)


def _failing(call: Callable[[], Any]) -> tuple[Any, str]:
    """What a call returns, and no text; or None, and why it failed in one line."""
    try:
        return call(), ""
    except Exception as error:  # what Orbax, TensorStore or the file system may raise
        return None, first_line(error)


def _items(state: TrainState) -> tuple[dict[str, Any], dict[str, Any]]:
    weights = {"params": state.params, "biases": state.biases}
    names = ("step", "optimizer", "balance", "faults", "cursor")
    return weights, {name: getattr(state, name) for name in names}


def placed_on(layout: OneDevice, tree: Any) -> Any:
    """Shapes and dtypes of arrays that are to lie as a layout says."""
    return jax.tree.map(
        lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
        tree,
        layout.shardings(tree),
    )


def _sync(folder: Path) -> None:
    """Brings a rename in `folder` to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def first_line(error: BaseException) -> str:
    """An error in one line of bounded length."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:200] if text else ''}"
