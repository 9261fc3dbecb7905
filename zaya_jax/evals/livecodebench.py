"""LiveCodeBench's format: contest problems with hidden tests, on standard input or of a method.

A row has `question_content`, `starter_code`, `question_id`, `metadata` (JSON, with `func_name` for
methods), `public_test_cases` and `private_test_cases`: JSON lists of `{input, output, testtype}`.
The private ones may be packed as the published set has them: pickled JSON, zlib, base64. A pickle
is a program, so only one that makes a text is read.

Verdicts are the published scorer's: every test must pass; lines are compared without spaces at
their ends, or as decimals; a method may give a tuple for a list. One thing differs: a program that
ends with an exit status other than 0 has failed.
"""

from __future__ import annotations

import base64
import binascii
import io
import json
import pickle
import zlib
from collections.abc import Mapping
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

from zaya_jax.answers import FORMATS, extract
from zaya_jax.evals import contamination, rows
from zaya_jax.rl.rewards.interface import Submission, Task
from zaya_jax.sandbox import judge
from zaya_jax.sandbox.judge import PerTest

LIMITS = PerTest(seconds=6.0, total=60.0, stop=True, memory=1 << 30)
"""The published scorer's time for a test."""
MOST_PACKED = 512 << 20
"""Bytes that packed tests may unpack to."""

# Solutions lean on what contest sites import for them.
_MODULES = (
    "string re datetime collections heapq bisect copy math random statistics itertools functools "
    "operator io sys json builtins typing"
).split()
PRELUDE = (
    "\n".join(f"from {name} import *" for name in _MODULES)
    + f"\nimport {', '.join(_MODULES)}\nsys.setrecursionlimit(50000)\n"
)


def load(path: Path) -> list[Task]:
    """Tasks of a JSONL file.

    Raises:
      UserError: a malformed row.
    """
    return [_task(row) for row in rows.read(path)]


def _task(row: rows.Row) -> Task:
    tests = [*_tests(row, "public_test_cases"), *_tests(row, "private_test_cases")]
    if not tests:
        raise row.mistake("there are no tests")
    kinds = {test["testtype"] for test in tests}
    if len(kinds) != 1 or not kinds <= {"stdin", "functional"}:
        raise row.mistake(f"testtype is {sorted(map(str, kinds))}; one of stdin, functional wanted")
    entry = None
    if kinds == {"functional"}:
        entry = _json(row, "metadata").get("func_name")
        if not isinstance(entry, str):
            raise row.mistake("metadata has no func_name, which functional tests need")
        for test in tests:
            try:
                _arguments(test["input"]), json.loads(test["output"])
            except (ValueError, RecursionError):
                raise row.mistake(f"a functional test is no JSON: {test!r:.80}") from None
    starter = row.optional("starter_code")
    form = "Write a Python program that reads standard input and prints the answer."
    if entry is not None:
        form = f"Complete this Python code.\n\n```python\n{starter.rstrip()}\n```"
    return Task(
        prompt=f"{row.text('question_content')}\n\n{form}\n\n{FORMATS['code']}",
        answer="its tests",
        verifier=f"{__name__}:verify",
        source="livecodebench",
        name=row.text("question_id"),
        metadata={
            contamination.PROBLEM: row.text("question_content").strip(),
            "entry": entry,
            "inputs": [test["input"] for test in tests],
            "outputs": [test["output"] for test in tests],
        },
    )


def verify(submission: Submission) -> float:
    """1 if the response's program passes all tests; else 0.

    Raises:
      SandboxUnavailable: there is none, and nothing was run.
    """
    code = extract(submission.response, "code", thinking=submission.thinking)
    return 0.0 if code is None else float(passes(submission.metadata, code))


def passes(about: Mapping[str, Any], code: str) -> bool:
    """Whether a program passes the tests of a task's metadata.

    Raises:
      SandboxUnavailable: there is none.
    """
    source, outputs = PRELUDE + code, about["outputs"]
    if about["entry"] is None:
        ran = judge.programs(source, about["inputs"], LIMITS)
        return all(o.ok and same_text(o.value, text) for o, text in zip(ran, outputs, strict=True))
    ran = judge.calls(source, about["entry"], list(map(_arguments, about["inputs"])), LIMITS)
    return all(o.ok and _same(o.value, json.loads(t)) for o, t in zip(ran, outputs, strict=True))


def same_text(printed: str, expected: str) -> bool:
    """Whether two texts have equal lines, as texts or as decimals."""
    ours, theirs = (
        [line.strip() for line in text.strip().split("\n")] for text in (printed, expected)
    )
    return len(ours) == len(theirs) and all(
        a == b or ((x := _decimals(a)) is not None and x == _decimals(b))
        for a, b in zip(ours, theirs, strict=True)
    )


def _decimals(line: str) -> list[Decimal] | None:
    try:
        return [Decimal(word) for word in line.split()]
    except (InvalidOperation, ValueError):
        return None


def _same(returned: Any, expected: Any) -> bool:
    return (list(returned) if isinstance(returned, tuple) else returned) == expected


def _arguments(text: str) -> list[Any]:
    """A line of JSON for each argument."""
    return [json.loads(line) for line in text.split("\n")]


def _tests(row: rows.Row, name: str) -> list[dict[str, str]]:
    found = row.fields.get(name, "[]")
    if isinstance(found, str):
        try:
            found = json.loads(found)
        except ValueError:
            try:
                found = json.loads(unpack(found))
            except (ValueError, binascii.Error, zlib.error, pickle.UnpicklingError) as error:
                raise row.mistake(f"{name} cannot be read: {error}") from None
    if not isinstance(found, list) or not all(_is_test(test) for test in found):
        raise row.mistake(f"{name} must be a list of {{input, output, testtype}}")
    return found


def _is_test(test: Any) -> bool:
    texts = (test.get(name) for name in ("input", "output", "testtype")) if _is_dict(test) else ()
    return _is_dict(test) and all(isinstance(text, str) for text in texts)


def _is_dict(value: Any) -> bool:
    return isinstance(value, dict)


def _json(row: rows.Row, name: str) -> dict[str, Any]:
    found = row.fields.get(name) or {}
    try:
        found = json.loads(found) if isinstance(found, str) else found
    except ValueError as error:
        raise row.mistake(f"{name} is no JSON: {error}") from None
    if not isinstance(found, dict):
        raise row.mistake(f"{name} is a {type(found).__name__}; expected an object")
    return found


class _TextOnly(pickle.Unpickler):
    """Reads pickles that need no names: those of texts and plain data."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"a pickle that would call {module}.{name}")


def unpack(packed: str) -> str:
    """The text in a base64 of a zlib of a pickle.

    Raises:
      ValueError, zlib.error, pickle.UnpicklingError: it is none, would do more than make a text, or
        is larger than `MOST_PACKED`.
    """
    stream = zlib.decompressobj()
    data = stream.decompress(base64.b64decode(packed, validate=True), MOST_PACKED)
    if stream.unconsumed_tail:
        raise ValueError(f"it unpacks to more than {MOST_PACKED} bytes")
    try:
        text = _TextOnly(io.BytesIO(data)).load()
    except (EOFError, IndexError, KeyError, AttributeError, TypeError) as error:
        raise pickle.UnpicklingError(f"not a pickle: {error}") from None
    if not isinstance(text, str):
        raise ValueError(f"a pickle of a {type(text).__name__}, not of a text")
    return text
