"""A program against its tests, in one sandbox: `programs`, `calls`, `checks`."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from zaya_jax.sandbox import values
from zaya_jax.sandbox.limits import MIB, Limits, Result
from zaya_jax.sandbox.python import run_python

STARTING_SECONDS = 5.0
MOST_OUTPUT = 64 * MIB
"""That is kept of all tests of one program."""


@dataclass(frozen=True)
class Outcome:
    """What became of one test.

    Attributes:
        status: `ok` if the program ran to its end; `failed` if it raised, exited with another
            status, or gave back what is not plain data; else which limit it broke.
        value: what the function returned; of a program, the text that it printed.
        detail: a message about a failure, where there is one.
    """

    status: Literal["ok", "failed", "time", "cpu", "memory", "output", "files"]
    value: Any = None
    detail: str = ""

    @property
    def ok(self) -> bool:
        """Whether it ran to its end."""
        return self.status == "ok"


@dataclass(frozen=True)
class PerTest:
    """What a program may use in one test; memory and processes are the sandbox's.

    Attributes:
        seconds: from start to end.
        total: seconds of all tests of a program together; by default, as many as they may take.
        stop: whether the tests behind one that did not run to its end count as failed, unseen.
        output: bytes it may print, or its result may have.
        memory: bytes, of the program and its judge.
    """

    seconds: float = 5.0
    total: float | None = None
    stop: bool = False
    output: int = MIB
    memory: int = 512 * MIB


def programs(source: str, inputs: Sequence[str], limits: PerTest | None = None) -> list[Outcome]:
    """Runs a program with each input as standard input, anew every time; tells what it printed.

    Raises:
        SandboxUnavailable: see `run_python`.
    """
    return _each("programs", source, "", list(inputs), limits, lambda reply: reply["output"])


def calls(
    source: str, entry: str, arguments: Sequence[Sequence[Any]], limits: PerTest | None = None
) -> list[Outcome]:
    """Calls a function with each list of arguments, anew every time; tells what it returned.

    Args:
        source: a program that defines it.
        entry: its name, or that of a method of the class `Solution`.
        arguments: of each call; plain data.

    Raises:
        SandboxUnavailable: see `run_python`.
        ValueError: arguments that are not plain data.
    """
    tests = [values.encode(list(call)) for call in arguments]
    return _each("calls", source, entry, tests, limits, _decoded)


def sweep(
    sources: Sequence[str],
    entry: str,
    arguments: Sequence[Sequence[Any]],
    limits: PerTest | None = None,
) -> list[list[Outcome]]:
    """Calls the function of each of many programs with each list of arguments, in one sandbox.

    Faster than `calls`, and for programs that mean no harm: one may spoil the others' results, and
    a call finds what the program's earlier calls left.

    Raises:
        As `calls`.
    """
    if not (sources and arguments):
        return [[] for _ in sources]
    limits = limits or PerTest()
    encoded = [values.encode(list(call)) for call in arguments]
    tests = [{"source": source, "tests": encoded} for source in sources]
    seconds = limits.seconds * len(sources) * len(arguments)
    replies, result = _run("sweep", "", entry, tests, limits, seconds)
    told = [reply.get("told", []) for reply in replies[: len(sources)]]
    told += [[]] * (len(sources) - len(told))
    return [_outcomes(each, len(encoded), result, _decoded) for each in told]


def checks(
    source: str, entry: str, setup: str, test: str, limits: PerTest | None = None
) -> Outcome:
    """Lets a test program judge a function, by calling `check(candidate)` of its own.

    The function runs in another process than the test, and only plain data passes between them: it
    can neither read what is asserted nor give back an object that equals everything.

    Args:
        source: a program that defines the function.
        entry: its name.
        setup: what the test may use besides, run before it; the function is bound to `entry` then.
        test: defines `check`, which raises if the candidate is wrong. It is trusted.

    Raises:
        SandboxUnavailable: see `run_python`.
    """
    limits = limits or PerTest()
    replies, result = _run(
        "checks", source, entry, [{"setup": setup, "checks": test}], limits, limits.seconds
    )
    if replies:
        return Outcome(replies[0]["status"], detail=replies[0].get("detail", ""))
    return _without_reply(result)


def _each(
    kind: str,
    source: str,
    entry: str,
    tests: list[Any],
    limits: PerTest | None,
    value: Callable[[dict], Any],
) -> list[Outcome]:
    if not tests:
        return []
    limits = limits or PerTest()
    replies, result = _run(kind, source, entry, tests, limits, limits.seconds * len(tests))
    return _outcomes(replies, len(tests), result, value)


def _decoded(reply: dict) -> Any:
    return values.decode(reply["value"])


def _outcomes(
    replies: list[dict], count: int, result: Result, value: Callable[[dict], Any]
) -> list[Outcome]:
    """One for each test, whatever came back."""
    outcomes = []
    for reply in replies[:count]:
        if reply["status"] != "ok":
            outcomes.append(Outcome(reply["status"]))
            continue
        try:
            outcomes.append(Outcome("ok", value(reply)))
        except (values.NotPlain, RecursionError) as error:
            outcomes.append(Outcome("failed", detail=str(error)))
    return [*outcomes, *[_without_reply(result)] * (count - len(outcomes))]


def _run(
    kind: str, source: str, entry: str, tests: list[Any], limits: PerTest, seconds: float
) -> tuple[list[dict], Result]:
    seconds = seconds if limits.total is None else min(seconds, limits.total)
    job = {
        "kind": kind,
        "source": source,
        "entry": entry,
        "seconds": limits.seconds,
        "total": seconds,
        "stop": limits.stop,
        "output": limits.output,
    }
    largest = max((len(test) for test in tests if isinstance(test, str)), default=0)
    frames = [_frame(frame) for frame in (job, *tests)]
    box = Limits(
        wall_seconds=STARTING_SECONDS + seconds,
        cpu_seconds=STARTING_SECONDS + seconds,
        memory=limits.memory,
        # a judged program's output is text in JSON, where a byte may take six
        output=min(MIB + 6 * limits.output * len(tests), MOST_OUTPUT),
        disk=16 * MIB + 4 * largest,
    )
    result = run_python(
        _part("inside.py"),
        files={"values.py": _part("values.py").encode()},
        stdin=b"".join(frames),
        limits=box,
    )
    return [_parsed(line) for line in result.stdout.splitlines()], result


def _parsed(line: bytes) -> dict:
    """A verdict. One cut off, by the end of its sandbox, is a failure."""
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return {"status": "failed"}


def _without_reply(result: Result) -> Outcome:
    """Of a test whose sandbox ended before it."""
    status = "failed" if result.status == "ok" else result.status
    return Outcome(status, detail=result.stderr.decode(errors="replace")[-500:])


def _frame(frame: Any) -> bytes:
    data = json.dumps(frame).encode()
    return len(data).to_bytes(4, "big") + data


@cache
def _part(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")
