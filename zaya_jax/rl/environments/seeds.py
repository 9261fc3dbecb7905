"""Problem seeds: what code environments are built from.

A seed is a problem with tests, and with programs that are known to be right or wrong. A program is
either a function of arguments, which a schema describes, or it reads its input and prints; then
another program tells which inputs are valid.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from zaya_jax.errors import UserError
from zaya_jax.rl.environments import schema as schemas
from zaya_jax.sandbox import judge, values
from zaya_jax.sandbox.judge import Outcome, PerTest


@dataclasses.dataclass(frozen=True)
class Test:
    """An input and what comes out.

    Attributes:
      input: a list of arguments; of a program, the text that it reads.
      output: what the function returns; of a program, what it prints.
    """

    __test__ = False  # nothing for pytest

    input: Any
    output: Any


@dataclasses.dataclass(frozen=True)
class Seed:
    """A problem.

    Attributes:
      name: tells it from others.
      statement: what is asked, as people read it.
      entry: the function's name; None for a program that reads and prints.
      tests: at least one.
      accepted: programs that are right; at least one. The first is trusted.
      rejected: programs that are wrong: they fail a test.
      schema: of each argument, if known. Without, no inputs can be asked for or drawn.
      validator: of a program, if known: a program that exits with 0 if the input it reads is valid.
    """

    name: str
    statement: str
    entry: str | None
    tests: tuple[Test, ...]
    accepted: tuple[str, ...]
    rejected: tuple[str, ...] = ()
    schema: tuple[schemas.Schema, ...] | None = None
    validator: str | None = None

    @classmethod
    def parse(cls, record: Any, where: str) -> Seed:
        """Reads a seed from what JSON gives; values are as `zaya_jax.sandbox.values` writes them.

        Raises:
          UserError: it is none; names the place and the field.
        """
        if not isinstance(record, Mapping):
            raise UserError(f"{where}: a {type(record).__name__}; a seed is an object")
        known = {field.name for field in dataclasses.fields(cls)}
        for name in record:
            if name not in known:
                raise UserError(f"{where}: a seed has no field {name!r}; it has {sorted(known)}")
        entry = record.get("entry")
        if entry is not None and not (isinstance(entry, str) and entry.isidentifier()):
            raise UserError(f"{where}: entry is {entry!r:.60}; it must be a function's name")
        tests = record.get("tests")
        if not isinstance(tests, list) or not tests:
            raise UserError(f"{where}: tests must be a list of at least one {{input, output}}")
        schema = record.get("schema")
        if schema is not None:
            if entry is None:
                raise UserError(f"{where}: schema is for functions; a program has a validator")
            if not isinstance(schema, list):
                raise UserError(f"{where}: schema must be a list, one for each argument")
            for number, part in enumerate(schema):
                schemas.check(part, f"{where}: schema[{number}]")
        if entry is not None and record.get("validator") is not None:
            raise UserError(f"{where}: validator is for programs; a function has a schema")
        seed = cls(
            name=_text(record, "name", where),
            statement=_text(record, "statement", where),
            entry=entry,
            tests=tuple(
                _test(test, entry, f"{where}: tests[{number}]") for number, test in enumerate(tests)
            ),
            accepted=_programs(record, "accepted", where, least=1),
            rejected=_programs(record, "rejected", where, least=0),
            schema=None if schema is None else tuple(schema),
            validator=None
            if record.get("validator") is None
            else _text(record, "validator", where),
        )
        for number, test in enumerate(seed.tests):
            if seed.schema is not None and not seed.is_valid(test.input):
                raise UserError(f"{where}: tests[{number}].input does not fit the schema")
        return seed

    def record(self) -> dict[str, Any]:
        """What `parse` reads."""
        written = vars(self) | {
            "tests": [
                {"input": values.encode(test.input), "output": values.encode(test.output)}
                for test in self.tests
            ],
            "accepted": list(self.accepted),
            "rejected": list(self.rejected),
            "schema": None if self.schema is None else list(self.schema),
        }
        return {name: value for name, value in written.items() if value is not None}

    def run(
        self, source: str, inputs: Sequence[Any], limits: PerTest | None = None
    ) -> list[Outcome]:
        """What a program, of whatever origin, makes of inputs."""
        return run(source, self.entry, inputs, limits)

    def run_all(
        self, sources: Sequence[str], inputs: Sequence[Any], limits: PerTest | None = None
    ) -> list[list[Outcome]]:
        """What each of many programs that mean no harm makes of inputs."""
        return run_all(sources, self.entry, inputs, limits)

    def is_valid(self, given: Any, limits: PerTest | None = None) -> bool:
        """Whether an input is valid; False if nothing is known about that."""
        return is_valid(given, self.schema, self.validator, limits)

    def draw(self, generator: np.random.Generator) -> list[Any]:
        """Valid arguments.

        Raises:
          UserError: there is no schema.
        """
        if self.schema is None:
            raise UserError(f"seed {self.name!r} has no schema to draw inputs from")
        return [schemas.draw(part, generator) for part in self.schema]


def run(
    source: str, entry: str | None, inputs: Sequence[Any], limits: PerTest | None = None
) -> list[Outcome]:
    """What a program, or its function, makes of inputs; each in a process of its own."""
    if entry is None:
        return judge.programs(source, inputs, limits)
    return judge.calls(source, entry, inputs, limits)


def run_all(
    sources: Sequence[str],
    entry: str | None,
    inputs: Sequence[Any],
    limits: PerTest | None = None,
) -> list[list[Outcome]]:
    """What each of many programs that mean no harm makes of inputs; see `judge.sweep`."""
    if entry is None:
        return [judge.programs(source, inputs, limits) for source in sources]
    return judge.sweep(sources, entry, inputs, limits)


def agree(entry: str | None, outcome: Outcome, output: Any) -> bool:
    """Whether a run came to an output: equal values, or texts equal but for spaces at ends."""
    if not outcome.ok:
        return False
    if entry is None:
        return normalised(outcome.value) == normalised(output)
    return values.same(outcome.value, output)


def normalised(text: str) -> list[str]:
    """Lines without spaces at their ends, and without empty ones at the end."""
    found = [line.rstrip() for line in text.splitlines()]
    while found and not found[-1]:
        found.pop()
    return found


def is_valid(
    given: Any,
    schema: Sequence[schemas.Schema] | None,
    validator: str | None,
    limits: PerTest | None = None,
) -> bool:
    """Whether an input is valid: by the schema of its arguments, or by a program that reads it."""
    if schema is not None:
        return (
            isinstance(given, (list, tuple))
            and len(given) == len(schema)
            and all(schemas.accepts(part, value) for part, value in zip(schema, given, strict=True))
        )
    if validator is not None and isinstance(given, str):
        return judge.programs(validator, [given], limits)[0].ok
    return False


def mistakes(seed: Seed, limits: PerTest | None = None) -> list[str]:
    """What is wrong with a seed's own claims, after all its programs were run; empty if nothing.

    Every accepted program must pass every test, every rejected one must fail one, and the tests'
    inputs must be valid.
    """
    found = []
    inputs = [test.input for test in seed.tests]
    runs = seed.run_all([*seed.accepted, *seed.rejected], inputs, limits)
    for number, outcomes in enumerate(runs):
        right = [
            agree(seed.entry, outcome, test.output)
            for outcome, test in zip(outcomes, seed.tests, strict=True)
        ]
        if number < len(seed.accepted):
            if not all(right):
                at = right.index(False)
                found.append(
                    f"accepted[{number}] fails tests[{at}] ({outcomes[at].status}, "
                    f"{outcomes[at].value!r:.60})"
                )
        elif all(right):
            found.append(f"rejected[{number - len(seed.accepted)}] passes all tests")
    if seed.validator is not None:
        valid = judge.programs(seed.validator, inputs, limits)
        found += [f"tests[{at}].input is not valid" for at, ok in enumerate(valid) if not ok.ok]
    return found


def _text(record: Mapping[str, Any], field: str, where: str) -> str:
    value = record.get(field)
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"{where}: {field} is {value!r:.60}; it must be text")
    return value


def _programs(record: Mapping[str, Any], field: str, where: str, least: int) -> tuple[str, ...]:
    found = record.get(field, [])
    if not isinstance(found, list) or not all(isinstance(item, str) and item for item in found):
        raise UserError(f"{where}: {field} must be a list of programs")
    if len(found) < least:
        raise UserError(f"{where}: {field} must have at least {least} program")
    return tuple(found)


def _test(test: Any, entry: str | None, where: str) -> Test:
    if not isinstance(test, Mapping) or set(test) != {"input", "output"}:
        raise UserError(f"{where} is {test!r:.60}; it must be {{input, output}}")
    try:
        given, output = values.decode(test["input"]), values.decode(test["output"])
    except values.NotPlain as error:
        raise UserError(f"{where}: {error}") from None
    if entry is None and not (isinstance(given, str) and isinstance(output, str)):
        raise UserError(f"{where}: of a program, input and output must be texts")
    if entry is not None and not isinstance(given, list):
        raise UserError(f"{where}.input is {given!r:.60}; it must be a list of arguments")
    return Test(given, output)
