"""500 updates: nothing is compiled after the first ones, and memory is where it was."""

import dataclasses
import os
import threading
from pathlib import Path

import numpy as np
import pytest

from tests.rl.conftest import quiet
from zaya_jax.rl import loop
from zaya_jax.train import metrics

UPDATES = 500
SETTLED = 20
"""Updates after which every shape has been seen."""


class Watched:
    """Resident memory of this process, taken twice a second from now on. Bytes."""

    def __init__(self):
        self.seen: list[int] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self):
        page = os.sysconf("SC_PAGE_SIZE")
        while not self._stop.wait(0.5):
            self.seen.append(int(Path("/proc/self/statm").read_text().split()[1]) * page)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *error):
        self._stop.set()
        self._thread.join()


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="looks into /proc")
@pytest.mark.parametrize("overlap", [False, True])
def test_500_updates_compile_nothing_new_and_grow_by_nothing(start, tmp_path, overlap):
    section = dataclasses.replace(start.rl, dynamic_sampling=False, heldout=4, overlap=overlap)
    train = dataclasses.replace(
        start.train, steps=UPDATES, eval_every=50, checkpoint_every=100, log_every=50
    )
    optim = dataclasses.replace(start.optim, learning_rate=1e-5)
    stage = dataclasses.replace(start, rl=section, train=train, optim=optim)
    with Watched() as memory:
        assert loop.run(stage, tmp_path / "run", quiet()).step == UPDATES
    updates = [record for record in metrics.read(tmp_path / "run") if "loss" in record]
    assert len(updates) == UPDATES
    assert updates[-1]["compilations"] == updates[SETTLED]["compilations"]
    assert max(record["staleness"] for record in updates) <= section.staleness
    quarter = len(memory.seen) // 4
    second, last = (np.median(memory.seen[n * quarter : (n + 1) * quarter]) for n in (1, 3))
    print(f"\n{second / 2**20:.0f} MiB in the second quarter, {last / 2**20:.0f} MiB in the last")
    assert last < second + 20 * 2**20
