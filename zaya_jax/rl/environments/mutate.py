"""Bugs to plant: every program that one small slip would make of a right one."""

from __future__ import annotations

import ast
import copy
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple


class Mutation(NamedTuple):
    """A program with one slip.

    Attributes:
      source: the whole program.
      line: of the slip, in the original.
      about: what was changed into what.
    """

    source: str
    line: int
    about: str


def mutations(source: str) -> Iterator[Mutation]:
    """All programs that differ from a program by one slip, in the order of its text.

    Comparisons and arithmetic with a neighbouring operator, numbers off by one, `and` for `or`, a
    condition turned around, `min` for `max`, True for False. Layout and comments are not kept.

    Raises:
      SyntaxError: the source is no program.
    """
    tree = ast.parse(source)
    original = ast.unparse(tree)
    seen = {original}
    for at, node in enumerate(ast.walk(tree)):
        for about, change in _changes(node):
            changed = copy.deepcopy(tree)
            place = next(inner for number, inner in enumerate(ast.walk(changed)) if number == at)
            change(place)
            text = ast.unparse(ast.fix_missing_locations(changed))
            if text not in seen:
                seen.add(text)
                yield Mutation(text + "\n", getattr(node, "lineno", 0), about)


_COMPARISONS = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}
_ARITHMETIC = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Add,
    ast.FloorDiv: ast.Mod,
    ast.Mod: ast.FloorDiv,
}
_NAMES = {"min": "max", "max": "min", "any": "all", "all": "any"}

Change = tuple[str, Callable[[Any], None]]


def _changes(node: Any) -> Iterator[Change]:
    other: Any
    if isinstance(node, ast.Compare):
        for at, operator in enumerate(node.ops):
            if (other := _COMPARISONS.get(type(operator))) is not None:
                yield _named(operator, other), partial(_compare_by, at=at, operator=other)
    elif isinstance(node, ast.BinOp | ast.AugAssign):
        if (other := _ARITHMETIC.get(type(node.op))) is not None:
            yield _named(node.op, other), partial(_set, field="op", value=other())
    elif isinstance(node, ast.BoolOp):
        other = ast.Or if isinstance(node.op, ast.And) else ast.And
        yield _named(node.op, other), partial(_set, field="op", value=other())
    elif isinstance(node, ast.Constant):
        for other in _near(node.value):
            yield f"{node.value!r} for {other!r}", partial(_set, field="value", value=other)
    elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) and node.id in _NAMES:
        other = _NAMES[node.id]
        yield f"{node.id} for {other}", partial(_set, field="id", value=other)
    elif isinstance(node, ast.If | ast.While | ast.IfExp):
        yield "a condition turned around", _turn_around


def _set(node: Any, field: str, value: Any) -> None:
    setattr(node, field, value)


def _compare_by(node: Any, at: int, operator: type) -> None:
    node.ops[at] = operator()


def _turn_around(node: Any) -> None:
    node.test = ast.UnaryOp(ast.Not(), node.test)


def _near(value: Any) -> tuple[Any, ...]:
    if isinstance(value, bool):
        return (not value,)
    if isinstance(value, int):
        return tuple(other for other in (value + 1, value - 1) if other >= 0)
    return ()


def _named(operator: ast.AST, other: type) -> str:
    return f"{type(operator).__name__} for {other.__name__}"
