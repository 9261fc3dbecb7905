"""A log of a run's rollouts, each written when it is there, so that a run may be taken up again.

One JSON object a line: first what the run is, then its rollouts in the order in which they came. A
process that is killed while it writes leaves a part of a line, which the next one cuts off; what
was whole before is never touched.
"""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zaya_jax.errors import UserError
from zaya_jax.infer.rsa.policy import Sample

FORMAT = 2
BEGINNING = b'{"run": '


class Trace:
    """An open log; a context manager.

    Attributes:
      known: the rollouts that it holds, by (stage, number).
    """

    def __init__(self, path: Path, about: Mapping[str, Any]):
        """Begins a log, or takes up the one that is there.

        Args:
          path: the file.
          about: what the run is, as plain JSON: two runs of the same give the same rollouts.

        Raises:
          UserError: another run's log (names the field that differs), no log at all, one that
            another process writes, or a file that cannot be written.
        """
        self.path = path
        about = json.loads(json.dumps({"format": FORMAT, **about}))
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("a+b")
        except OSError as error:
            raise UserError(f"--trace={path}: cannot write there: {error.strerror}") from error
        try:
            self._lock()
            lines = self._whole_lines()
            self.known = self._read(lines, about) if lines else {}
            if not lines:
                self._append({"run": about})
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Trace:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def add(self, stage: int, number: int, shown: tuple[int, ...], sample: Sample) -> None:
        """Writes a rollout; when this returns, it is on the disk."""
        place = {"stage": stage, "number": number, "shown": list(shown)}
        self._append(place | dataclasses.asdict(sample))
        self.known[stage, number] = sample

    def _append(self, record: Mapping[str, Any]) -> None:
        try:
            self._file.write(json.dumps(record).encode() + b"\n")
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise UserError(f"--trace={self.path}: writing failed: {error.strerror}") from error

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"--trace={self.path}: another process writes it") from None
        except OSError:
            pass  # a file system without locks

    def _whole_lines(self) -> list[bytes]:
        self._file.seek(0)
        data = self._file.read()
        whole = data.rfind(b"\n") + 1
        if whole < len(data):
            if data[: len(BEGINNING)] != BEGINNING[: len(data)]:
                raise UserError(f"--trace={self.path}: not a trace; it stays as it is")
            self._file.truncate(whole)
        return data[:whole].splitlines()

    def _read(self, lines: list[bytes], about: Mapping[str, Any]) -> dict[tuple[int, int], Sample]:
        try:
            records = [json.loads(line) for line in lines]
            run, rollouts = dict(records[0]["run"]), records[1:]
            fields = [field.name for field in dataclasses.fields(Sample)]
            known = {
                (r["stage"], r["number"]): Sample(**{name: r[name] for name in fields})
                for r in rollouts
            }
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise UserError(f"--trace={self.path}: not a trace, or damaged: {error!r}") from None
        for name in sorted({*run, *about}):
            if run.get(name) != about.get(name):
                raise UserError(
                    f"--trace={self.path}: of another run: its {name} is {run.get(name)!r:.80}, "
                    f"this one's {about.get(name)!r:.80}; name another file"
                )
        return known
