"""Jinja templates of strangers, run on plain data in a sandbox."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any, Self

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment, SandboxedEnvironment
from jinja2.utils import Namespace

from zaya_jax.errors import UserError


class Template:
    """A Jinja template.

    Templates come with checkpoints. They run in Jinja's immutable sandbox and are to be given plain
    JSON data: then they cannot reach Python objects, files or the network. They can run for long.
    There is no `strftime_now`: data that is prepared tomorrow must be the same as today's.

    Attributes:
        source: the Jinja text.
        name: how to call it in messages.
    """

    def __init__(self, source: str, name: str = "template"):
        """Compiles a template.

        Raises:
            UserError: it is not Jinja; names the line.
        """
        self.source, self.name = source, name
        try:
            self._compiled = _environment().from_string(source)
        except (jinja2.TemplateSyntaxError, RecursionError) as error:
            line = getattr(error, "lineno", "?")
            raise UserError(f"{name}, line {line}: not a Jinja template: {error}") from None

    def __reduce__(self) -> tuple:  # to worker processes goes the source
        return type(self), (self.source, self.name)

    @classmethod
    def load(cls, path: Path | str) -> Self:
        """Reads a Jinja file.

        Raises:
            UserError: it cannot be read or compiled.
        """
        try:
            source = Path(path).expanduser().read_text(encoding="utf-8")
        except (OSError, UnicodeError) as error:
            raise UserError(f"template {path}: cannot be read: {error}") from None
        return cls(source, str(path))

    def render(self, **variables: Any) -> str:
        """The text for some variables.

        Raises:
            ValueError: the template refuses them or fails.
        """
        try:
            return self._compiled.render(**variables)
        except Exception as error:  # Foreign code: it may fail in any way.
            raise ValueError(f"{self.name} fails: {type(error).__name__}: {error}") from None


class _Generation(Extension):
    """`{% generation %} ... {% endgeneration %}`: prints its inside between marks."""

    tags = {"generation"}

    def parse(self, parser) -> nodes.Node:
        """Reads the block into a call of `_mark` around its inside."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        call = self.call_method("_mark", [nodes.Name("_marks", "load")])
        return nodes.CallBlock(call, [], [], body).set_lineno(line)

    def _mark(self, marks: tuple[str, str], caller) -> str:
        left, right = marks
        return f"{left}<{right}{caller()}{left}>{right}" if left else caller()


class _Namespace(Namespace):
    """Jinja's namespace; Python's inner names are out of reach."""

    def __init__(*args, **kwargs):
        self, *rest = args  # a template may have a field called self
        fields = dict(*rest, **kwargs)
        for name in fields:
            _check_name(name)
        Namespace.__init__(self, fields)

    def __setitem__(self, name, value):
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: str) -> None:
    if str(name).startswith("_"):
        raise jinja2.exceptions.SecurityError(f"a namespace has no room for {name!r}")


@lru_cache(maxsize=1)
def _environment() -> SandboxedEnvironment:
    """Jinja with what transformers offers to chat templates."""

    def fail(message):
        raise jinja2.TemplateError(str(message))

    def tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(
            value,
            ensure_ascii=ensure_ascii,
            indent=indent,
            separators=separators,
            sort_keys=sort_keys,
        )

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = tojson
    environment.globals.update(
        raise_exception=fail,
        namespace=_Namespace,
        dict=lambda *args, **fields: dict(*args, **fields),
    )
    return environment
