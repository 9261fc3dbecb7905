"""The roll call, and the connections that stay: over real sockets, with threads for processes."""

from __future__ import annotations

import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from zaya_jax.cluster import Member
from zaya_jax.errors import UserError
from zaya_jax.parallel.lifeline import NotMet, meet
from zaya_jax.train.restart import free_port

SECONDS = 2.0


@pytest.fixture
def port():
    return free_port()


def member(port: int, index: int, count: int) -> Member:
    return Member(f"localhost:{port}", count, index, None, "a test")


def outcomes(*members: Member, seconds: float = SECONDS):
    """Meets as each of these at once: lifelines, or what they were told."""

    def one(found: Member):
        try:
            return meet(found, seconds)
        except UserError as error:
            return error

    with ThreadPoolExecutor(len(members)) as pool:
        return list(pool.map(one, members))


def test_all_meet_and_hear_of_one_that_goes_without_a_goodbye(port):
    lines = outcomes(*(member(port, i, 3) for i in range(3)), seconds=30)
    heard = [[] for _ in lines]
    for line, into in zip(lines, heard, strict=True):
        line.watch(into.append)
    lines[1]._sockets[0].shutdown(socket.SHUT_RDWR)  # as the kernel does for a killed process
    until(lambda: heard[0] == [1])
    lines[2].close()  # which is none
    time.sleep(0.2)
    assert heard[0] == [1] and heard[2] == []
    lines[0].close()


def test_the_death_of_process_0_is_heard_by_all(port):
    lines = outcomes(*(member(port, i, 3) for i in range(3)), seconds=30)
    heard: list[int] = []
    for line in lines[1:]:
        line.watch(heard.append)
    for found in lines[0]._sockets.values():
        found.close()
    until(lambda: heard == [0, 0])


def until(there) -> None:
    end = time.monotonic() + 10
    while not there():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_the_port_is_free_when_all_have_met(port):
    """For jax, which listens there next, while the connections stay."""
    lines = outcomes(member(port, 0, 2), member(port, 1, 2), seconds=30)
    with socket.create_server(("", port)):
        pass
    for line in lines:
        line.close()


def test_those_that_came_are_told_who_did_not(port):
    first, second = outcomes(member(port, 0, 4), member(port, 2, 4))
    assert first.status == second.status == 75  # they may come to the next roll call
    first, second = str(first), str(second)
    for told in (first, second):
        assert f"process 1, 3 of 4 did not come to localhost:{port} within 2 s" in told
    assert first.startswith("process 0 of 4 (a test)")
    assert second.startswith("process 2 of 4 (a test)")


def test_a_coordinator_that_nobody_reaches(port):
    began = time.monotonic()
    with pytest.raises(NotMet, match=f"coordinator localhost:{port} was not reached in 1 s"):
        meet(member(port, 1, 2), 1.0)
    assert time.monotonic() - began < 5
    with pytest.raises(UserError, match="knows the name nowhere.invalid") as found:
        meet(Member(f"nowhere.invalid:{port}", 2, 1, None, "a test"), 0.5)
    assert found.value.status == 2


@pytest.mark.parametrize(
    ("others", "message"),
    [
        ([(1, 3), (1, 3)], "two processes were started as process 1"),
        ([(1, 8)], "process 1 was started as one of 8 processes, process 0 of 3"),
        ([(4, 3)], "somebody came as process 4 of 3"),
    ],
)
def test_what_contradicts_is_told_to_all(port, others, message):
    members = [member(port, index, count) for index, count in others]
    for told in outcomes(member(port, 0, 3), *members, seconds=10):
        assert message in str(told) and told.status == 2  # it stays so


def test_a_process_that_died_before_all_were_there_may_come_again(port):
    with socket.socket() as early:
        caller = threading.Thread(target=lambda: results.append(meet(member(port, 0, 2), 20)))
        results: list = []
        caller.start()
        until(lambda: early.connect_ex(("localhost", port)) in (0, 106))
    (line,) = outcomes(member(port, 1, 2), seconds=20)  # the stranger has gone
    caller.join()
    for found in (*results, line):
        found.close()


def test_a_stranger_is_no_process(port):
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(meet, member(port, 0, 2), 20.0)
        for words in (b"GET / HTTP/1.1\r\n\r\n", b'{"process": "x"}\n', b"[]\n", b"\xff" * 5000):
            until(lambda: answers(port, words))  # noqa: B023
        (line,) = outcomes(member(port, 1, 2), seconds=20)
        first.result().close()
        line.close()


def answers(port: int, words: bytes) -> bool:
    """Whether somebody listens; it is told these words."""
    try:
        with socket.create_connection(("localhost", port), timeout=2) as found:
            found.sendall(words)
        return True
    except OSError:
        return False


def test_a_port_that_is_taken_is_told(port):
    with socket.create_server(("", port)), pytest.raises(UserError, match="cannot listen on port"):
        meet(member(port, 0, 2), SECONDS)
    with pytest.raises(UserError, match="cannot listen on port 99999"):
        meet(Member("localhost:99999", 2, 0, None, ""), SECONDS)
