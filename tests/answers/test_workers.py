"""Functions that raise, hang, die or eat memory cost their own result and nothing else."""

import os
import time

import pytest

from zaya_jax.answers.external import ExternalVerifier
from zaya_jax.answers.workers import Workers
from zaya_jax.errors import UserError

MODULE = "tests.answers.verifiers"


@pytest.fixture(scope="module", autouse=True)
def importable():
    """Workers are started with this process's path, on which `tests` must be found."""
    import sys
    from pathlib import Path

    sys.path.insert(0, str(Path(__file__).parents[2]))
    yield
    sys.path.pop(0)


def test_results_come_in_order_from_processes_that_stay():
    with Workers(f"{MODULE}:double", processes=2) as workers:
        assert [o.value for o in workers.map(range(20))] == list(range(0, 40, 2))
        before = {worker.process.pid for worker in workers._workers}
        assert [o.value for o in workers.map(["a"])] == ["aa"]
        assert {worker.process.pid for worker in workers._workers} == before
        assert workers.map([]) == []


def test_each_failure_is_its_own():
    asked = ["a", "raise", "hang", "b", "loop", "exit", "die", "eat", "c", "lambda", "print", "d"]
    with Workers(f"{MODULE}:odd_ones", processes=2, seconds=1.0) as workers:
        begun = time.monotonic()
        outcomes = dict(zip(asked, workers.map(asked), strict=True))
        assert time.monotonic() - begun < 30
        after = workers.map(["e", "f", "g"])
    for good in ("a", "b", "c", "d", "print"):
        assert (outcomes[good].value, outcomes[good].failure) == (good, None)
    assert [o.value for o in after] == ["e", "f", "g"]
    failures = {name: o.failure for name, o in outcomes.items() if o.failure}
    assert failures == {
        "raise": "raised",
        "hang": "timeout",
        "loop": "timeout",
        "exit": "raised",
        "die": "died",
        "eat": "raised",
        "lambda": "raised",
    }
    assert outcomes["raise"].message == "ValueError: no such thing"
    assert "MemoryError" in outcomes["eat"].message
    assert "7" in outcomes["die"].message and outcomes["hang"].seconds >= 1


@pytest.mark.parametrize("place", ["tests.answers.nowhere:f", f"{MODULE}:nothing"])
def test_a_function_that_is_not_there_fails_every_call_at_once(place):
    with Workers(place) as workers:
        outcomes = workers.map([1, 2, 3])
    assert [o.failure for o in outcomes] == ["unstarted"] * 3
    assert "Error" in outcomes[0].message


def test_closing_leaves_no_process_behind():
    workers = Workers(f"{MODULE}:double", processes=1)
    workers.map([1])
    pid = workers._workers[0].process.pid
    workers.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_an_argument_that_cannot_be_sent_fails_alone():
    with Workers(f"{MODULE}:double", processes=1) as workers:
        outcomes = workers.map([1, lambda: None, 3])
    assert [o.failure for o in outcomes] == [None, "raised", None]


def test_numbers_are_checked():
    with pytest.raises(UserError, match="processes = 0"):
        Workers("a:b", processes=0)
    with pytest.raises(UserError, match="seconds = 0"):
        Workers("a:b", seconds=0)


def test_a_verifier_from_outside_scores_what_it_can():
    with ExternalVerifier(f"{MODULE}:longest", "problem") as verifier:
        with pytest.warns(UserWarning, match="no score for rollout"):
            assert verifier(["abc", "raise", "abcde", "die"]) == [3, None, 5, None]
    with pytest.raises(UserError, match="no 'shortest'"):
        ExternalVerifier(f"{MODULE}:shortest", "problem")
