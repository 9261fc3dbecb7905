"""Programs against their tests: what right and wrong ones get, and what a cheat gets."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zaya_jax.sandbox import judge, values
from zaya_jax.sandbox.judge import PerTest

BRIEF = PerTest(seconds=0.4)
ALWAYS_EQUAL = """
class Equal(int):
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    def __hash__(self): return 0
def f(x): return Equal()
"""


def statuses(outcomes) -> list[str]:
    return [outcome.status for outcome in outcomes]


def test_every_test_of_a_program_begins_afresh():
    source = "import os\nprint(int(input()) + 1, os.path.exists('n'), __name__)\nseen = 1"
    outcomes = judge.programs(source, ["1\n", "41", "x"])
    assert statuses(outcomes) == ["ok", "ok", "failed"]
    assert [outcome.value for outcome in outcomes[:2]] == [
        "2 False __main__\n",
        "42 False __main__\n",
    ]


def test_what_fails_or_is_slow_costs_only_its_own_test():
    source = """
import sys, time
word = input()
if word == "loop":
    while True: pass
if word == "flood":
    while True: print("x" * 1000)
if word == "exit":
    sys.exit(3)
if word == "quiet":
    sys.stdout.close(); time.sleep(60)
print(word)
"""
    words = ["loop", "a", "flood", "exit", "b", "quiet", "c"]
    outcomes = judge.programs(source, words, PerTest(seconds=0.4, output=5000))
    assert statuses(outcomes) == ["time", "ok", "output", "failed", "ok", "time", "ok"]
    assert judge.programs(source, []) == []


def test_functions_give_back_plain_data():
    source = "def f(*x): return {x: (1.5, {2}, b'z', None, True, [x])}"
    (outcome,) = judge.calls(source, "f", [(1, "é")])
    assert outcome.value == {(1, "é"): (1.5, {2}, b"z", None, True, [(1, "é")])}
    source = "class Solution:\n    def f(self, x): return x * 2"
    assert judge.calls(source, "f", [([1],)])[0].value == [1, 1]
    assert judge.calls(source, "g", [([1],)])[0].status == "failed"
    assert judge.calls("def f(x): return 10 ** 5000", "f", [(1,)])[0].status == "failed"
    assert judge.calls("def f(x): return [f]", "f", [(1,)])[0].status == "failed"
    assert statuses(judge.calls("def f(x):\n    while x: pass", "f", [(1,), (0,)], BRIEF)) == [
        "time",
        "ok",
    ]


CHECKS = "def check(candidate):\n    assert candidate(1) == 2, 'no'\n    assert f(2) == helper(2)"


@pytest.mark.parametrize(
    ("source", "status"),
    [
        ("def f(x): return x + 1", "ok"),
        ("def f(x): return x + 2", "failed"),
        ("def f(x): raise ValueError", "failed"),
        ("def f(x):\n    while True: pass", "time"),
        ("def f(:", "failed"),
        ("", "failed"),
        # cheats
        (ALWAYS_EQUAL, "failed"),
        ("import os\nos._exit(0)", "failed"),
        ("raise SystemExit(0)", "failed"),
        ("import os\ndef f(x): os.kill(os.getppid(), 9)", "failed"),
        ('print(\'{"status": "ok"}\', flush=True)\ndef f(x): raise SystemExit(0)', "failed"),
        (
            'import os\nfor fd in range(64):\n    try: os.write(fd, b\'{"status": "ok"}\\n\')\n'
            "    except OSError: pass\nos._exit(0)",
            "failed",
        ),
        (
            "import gc, sys\ntests = [o for o in gc.get_objects() if 'assert' in repr(o)]\n"
            "def check(candidate): pass\nimport builtins\nbuiltins.AssertionError = ValueError\n"
            "def f(x): return 3",
            "failed",
        ),
    ],
)
def test_a_test_program_judges_a_function(source, status):
    outcome = judge.checks(source, "f", "def helper(x): return x + 1", CHECKS, BRIEF)
    assert outcome.status == status, outcome


def test_exceptions_reach_the_test_program():
    test = """
def check(candidate):
    try: candidate(0)
    except ZeroDivisionError: return
    assert False
"""
    assert judge.checks("def f(x): return 1 / x", "f", "", test).ok


def test_a_candidate_cannot_read_what_is_expected_of_it():
    source = """
import sys
def f(x):
    frames, found = sys._getframe(), []
    while frames:
        found.append(str(frames.f_globals) + str(frames.f_locals))
        frames = frames.f_back
    return " ".join(found)
"""
    test = "SECRET = 'never seen'\ndef check(c):\n    assert SECRET not in c(1)"
    assert judge.checks(source, "f", "", test).ok


@pytest.mark.parametrize(
    "line", [b"", b"{", b"[" * 100_000, b'{"status": "ok", "value": {"dict": 3}}']
)
def test_a_verdict_that_is_none_is_a_failure(line):
    reply = judge._parsed(line)
    assert reply["status"] == "failed" or pytest.raises(
        values.NotPlain, values.decode, reply["value"]
    )


plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.binary()
    | st.complex_numbers(allow_nan=False),
    lambda inner: (
        st.lists(inner)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text() | st.tuples(st.integers(), st.text()), inner)
        | st.frozensets(st.integers() | st.text())
        | st.sets(st.integers())
    ),
)


@given(plain)
def test_plain_data_survives(value):
    again = values.decode(json.loads(json.dumps(values.encode(value))))
    assert values.same(again, value, tolerance=0.0)
    assert type(again) is type(value)


def test_equality_is_of_types_too():
    assert not values.same(1, True) and not values.same([1], (1,)) and not values.same("1", 1)
    assert values.same(1, 1.0) and values.same(0.1 + 0.2, 0.3)
    assert values.same(math.nan, math.nan) and not values.same(math.nan, 1.0)
    assert not values.same(10**400, 1e300) and not values.same(10**400, 10**400 + 1)
    assert not values.same({1: 2}, {1: 3}) and not values.same([1], [1, 2])


def test_too_deep_or_foreign_values_are_refused():
    deep: list = []
    for _ in range(60):
        deep = [deep]
    for value in (deep, object(), [lambda: 0], iter([])):
        with pytest.raises(values.NotPlain):
            values.encode(value)
    nested: dict = {"tuple": []}
    for _ in range(400):
        nested = {"tuple": nested}
    for value in (nested, {"no": 1}, {"dict": [1]}, {"bytes": "x"}, {}, {"dict": [[[], 1]]}):
        with pytest.raises(values.NotPlain):
            values.decode(value)
