"""What processes say to each other, and how they end each other: over jax's real store, with a
thread for each process."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from jax._src.lib import _jax

from zaya_jax.errors import UserError
from zaya_jax.parallel import watch as watch_module
from zaya_jax.parallel.processes import (
    ALONE,
    FirstFailed,
    FromFirst,
    Group,
    session,
)
from zaya_jax.parallel.watch import LOST, Watch
from zaya_jax.train import agree
from zaya_jax.train.restart import free_port

COUNT = 3


class Processes:
    """Some groups of one store; `all(function)` calls it as each of them, at the same time."""

    def __init__(self, clients, lost: float, hung: float):
        self.ended: dict[int, int] = {}
        self.groups, self.watches = [], []
        for index, client in enumerate(clients):

            def end(status: int, index: int = index) -> None:
                self.ended[index] = status

            watch = Watch(client, index, COUNT, lost, hung, end)
            self.watches.append(watch)
            self.groups.append(Group(client, index, COUNT, watch))

    def all(self, function):
        def call(group):
            try:
                return function(group)
            except (UserError, FirstFailed) as error:
                return error

        with ThreadPoolExecutor(COUNT) as pool:
            return list(pool.map(call, self.groups))


@pytest.fixture
def processes(monkeypatch):
    """`processes(lost, hung)`: three, whose heartbeats and watchdog have such limits."""
    monkeypatch.setattr(watch_module, "_LOOK", 0.1)
    address = f"localhost:{free_port()}"
    service = _jax.get_distributed_runtime_service(address, COUNT, shutdown_timeout=10)
    clients = [
        _jax.get_distributed_runtime_client(address, i, init_timeout=30) for i in range(COUNT)
    ]
    made: list[Processes] = []

    def make(lost: float = 60.0, hung: float = 0.0) -> Processes:
        made.append(Processes(clients, lost, hung))
        return made[0]

    with ThreadPoolExecutor(COUNT) as pool:
        list(pool.map(lambda client: client.connect(), clients))
        yield make
        for found in made:
            for watch in found.watches:
                watch.close()
        list(pool.map(lambda client: client.shutdown(), clients))
    service.shutdown()


def until(there) -> None:
    end = time.monotonic() + 20
    while not there():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_what_process_0_makes_is_shared_in_order(processes):
    calls = []

    def many(group):
        found = []
        for number in range(5):
            found.append(group.share(lambda: calls.append(group.index) or {"n": number}))  # noqa: B023
        found.append(group.share(lambda: None, "another"))
        return found

    assert processes().all(many) == [[*({"n": n} for n in range(5)), None]] * COUNT
    assert calls == [0] * 5


def test_all_hear_all_in_order(processes):
    found = processes().all(lambda group: group.gather(f"I am {group.index}"))
    assert found == [["I am 0", "I am 1", "I am 2"]] * COUNT


def test_what_process_0_raises_is_raised_in_all(processes):
    def mistake():
        raise UserError("no such thing")

    def failure():
        raise OSError(28, "no space")

    group = processes()
    first, *others = group.all(lambda one: one.share(mistake))
    assert type(first) is UserError and str(first) == "no such thing"
    assert all(type(other) is FromFirst and "no such thing" in str(other) for other in others)
    with pytest.raises(OSError, match="no space"):
        group.groups[0].share(failure)
    with pytest.raises(FirstFailed, match="Errno 28"):
        group.groups[1].share(failure)


@pytest.mark.parametrize("who", range(COUNT))
def test_a_signal_to_one_is_answered_by_all_at_the_same_look(processes, who):
    """With steps that bind the processes together as collectives do."""
    barrier = threading.Barrier(COUNT)

    def loop(group):
        for step in range(200):
            if group.asked(15 if group.index == who and step >= 5 else None) == 15:
                return step
            barrier.wait()
        return None

    first, *others = processes().all(loop)
    assert first is not None and others == [first] * (COUNT - 1)
    assert 5 <= first <= 8


def test_what_is_old_is_forgotten(processes):
    def many(group):
        for number in range(100):
            group.share(lambda: number, "steps")  # noqa: B023
            if number % 10 == 0:
                group.gather("here")

    found = processes()
    found.all(many)
    kept = found.groups[0]._client.key_value_dir_get("zaya/steps/")
    assert len(kept) <= 65


def test_a_silent_process_ends_all_others(processes, capfd):
    found = processes(lost=1.0)
    found.watches[2]._over.set()  # it says no more
    until(lambda: {0, 1} <= set(found.ended))
    assert found.ended == {0: LOST, 1: LOST}
    told = capfd.readouterr().err
    assert told.count("process 2 of 3 was lost: nothing has been heard of it for 1 s") == 2


def test_one_that_fails_is_quoted_by_the_others(processes, capfd):
    found = processes()

    def one(group):
        if group.index == 1:
            with group.guard():
                raise UserError("a file is missing")

    found.all(one)
    until(lambda: len(found.ended) == 2)
    assert found.ended == {0: 2, 2: 2}  # a mistake: not to be tried again
    told = capfd.readouterr().err
    assert "process 0 ends: process 1 of 3 failed: a file is missing" in told
    assert "from the last checkpoint" not in told


def test_one_that_hangs_has_all_write_their_stacks(processes, capfd):
    found = processes(hung=1.0)
    for _ in range(15):  # as long as it moves, nothing happens
        found.all(lambda group: group.asked(None))
        time.sleep(0.1)
    assert not found.ended
    until(lambda: len(found.ended) == COUNT)
    assert set(found.ended.values()) == {LOST}
    told = capfd.readouterr().err
    assert "has not finished a step for 1 s" in told
    assert told.count("The stacks of all threads") == COUNT and "in until" in told


def test_alone_there_is_nothing_to_say():
    assert ALONE.share(lambda: 7) == 7 and ALONE.gather("x") == ["x"]
    assert ALONE.asked(None) is None and ALONE.asked(15) == 15
    with ALONE.guard():
        pass
    with pytest.raises(ZeroDivisionError), session(None) as group:
        assert group.leads
        group.share(lambda: 1 // 0)


def test_a_start_that_hangs_is_found(monkeypatch, capfd):
    """Before the first step, too, as when a checkpoint is read from a disk that does not answer."""
    ended: list[int] = []
    monkeypatch.setattr(watch_module, "_LOOK", 0.05)
    monkeypatch.setattr(watch_module, "_START_LEAST", 0.0)
    began = time.monotonic()
    watch = Watch(None, 0, 1, 60.0, 0.2, ended.append)
    until(lambda: ended)
    watch.close()
    assert ended == [LOST] and time.monotonic() - began > 0.8  # a start may take four times as long
    told = capfd.readouterr().err
    assert "error: this process has not begun its first step for 0.8 s (a start may take" in told
    assert "The stacks of all threads" in told and "in until" in told


def test_alone_too_a_hang_can_be_found(monkeypatch, capfd):
    ended = []
    monkeypatch.setattr(watch_module, "_LOOK", 0.05)
    watch = Watch(None, 0, 1, 60.0, 0.3, ended.append)
    watch.beat()
    until(lambda: ended)
    watch.close()
    assert ended == [LOST]
    told = capfd.readouterr().err
    assert "error: this process has not finished a step for 0.3 s" in told
    assert "The stacks of all threads" in told and "in until" in told


# --- Starting alike --------------------------------------------------------------------------


def test_what_differs_is_named():
    first = {
        "config": {"train": {"steps": 1, "seed": 0}, "data": {"cache_dir": "a"}},
        "code": {"a.py": "1", "b.py": "2"},
        "version": {"jax": "0.10.2"},
    }
    other = {
        "config": {"train": {"steps": 2, "seed": 0}, "data": {"cache_dir": "b"}},
        "code": {"a.py": "1", "b.py": "3", "c.py": "4"},
        "version": {"jax": "0.10.3"},
    }
    assert agree.compare(first, first) == []
    assert agree.compare(first, other) == [
        "  config.train.steps: 1 in process 0, 2 here",
        "  code: b.py",
        "  code: c.py",
        "  version.jax: '0.10.2' in process 0, '0.10.3' here",
    ]


def test_many_differences_are_not_all_named():
    first = {"code": {f"{i}.py": "0" for i in range(30)}}
    lines = agree.compare(first, {"code": {}})
    assert len(lines) == 9 and lines[-1] == "  ... and 22 more"


def test_the_code_is_that_which_runs():
    found = agree.code()
    assert {"zaya_jax/train/agree.py", "pallas_kernels/attention/__init__.py"} <= set(found)
    assert all(len(checksum) == 8 for checksum in found.values())


def test_folders_and_texts_that_differ_are_refused_by_all(processes, tmp_path):
    for number in range(2):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "config.json").write_text("x" * number)

    def folder(group):
        where = tmp_path / ("1" if group.index == 2 else "0")
        agree.check_folder(group, where, seconds=0.5)

    found = processes()
    assert all("process 2: --workdir=" in str(told) for told in found.all(folder))
    texts = found.all(
        lambda group: agree.check_data(group, "data.source = 's'", str(group.index == 1))
    )
    assert all("process 1: data.source = 's': other text" in str(told) for told in texts)
