"""Chats made of the standard library: a function is asked for, reasoned about, and given.

The user gives a function's signature and docstring. The assistant thinks in a few sentences that
state facts of the code (its parameters, what it calls, how it branches, what it raises and
returns), and answers with the function as it is written in the library, without its docstring.
Everything is derived from the syntax tree; nothing is made up.
"""

from __future__ import annotations

import ast
import textwrap
from collections.abc import Iterable, Iterator, Sequence

from zaya_jax.data.readers import Conversation, Document

_LEAST_LINES = 2
"""Shorter bodies say nothing."""
_NAMED = 6
"""Names that a sentence lists at most."""
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
_SCOPES = (*_FUNCTIONS, ast.ClassDef, ast.Lambda)


def conversations(modules: Iterable[Document]) -> Iterator[Conversation]:
    """A chat for every function and method that has a docstring and a body behind it.

    Args:
        modules: Python sources; those that do not parse are passed over.

    Yields:
        Chats of one turn, named `module:line`.
    """
    for module in modules:
        try:
            tree = ast.parse(module.text)
        except (SyntaxError, ValueError, RecursionError):
            continue
        lines = module.text.splitlines(keepends=True)
        for function, owner in _functions(tree):
            docstring = ast.get_docstring(function)
            if not docstring or not _says_something(function):
                continue
            source = _source(function, lines)
            if source[0].isspace():  # a string's lines stand further left than the function
                continue
            thinking = f"<think>\n{' '.join(_facts(function))}\n</think>"
            yield Conversation(
                f"{module.name}:{function.lineno}",
                [
                    {"role": "user", "content": _question(function, owner, docstring)},
                    {
                        "role": "assistant",
                        "content": f"{thinking}\n\n```python\n{source}\n```",
                    },
                ],
            )


_Function = ast.FunctionDef | ast.AsyncFunctionDef


def _functions(tree: ast.AST, owner: str = "") -> Iterator[tuple[_Function, str]]:
    """Functions with the name of the class that owns them, in the order of the text."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, _FUNCTIONS):
            yield node, owner
        elif isinstance(node, ast.ClassDef):
            yield from _functions(node, node.name)
        else:
            yield from _functions(node, owner)


def _says_something(function: _Function) -> bool:
    body = function.body[1:]  # without the docstring
    return bool(body) and (body[-1].end_lineno or 0) - body[0].lineno + 1 >= _LEAST_LINES


def _question(function: _Function, owner: str, docstring: str) -> str:
    kind = f"method of the class `{owner}`" if owner else "function"
    return f"Write this Python {kind}:\n\n{_signature(function)}\n\n{docstring}"


def _signature(function: _Function) -> str:
    kind = "async def" if isinstance(function, ast.AsyncFunctionDef) else "def"
    returns = f" -> {ast.unparse(function.returns)}" if function.returns else ""
    return f"{kind} {function.name}({ast.unparse(function.args)}){returns}"


def _source(function: _Function, lines: Sequence[str]) -> str:
    """The text of a function without its docstring and indentation."""
    first = min([function.lineno, *(d.lineno for d in function.decorator_list)])
    docstring = function.body[0]
    # The lines around the docstring; whole ones, for the library writes no other.
    head = lines[first - 1 : docstring.lineno - 1]
    rest = lines[docstring.end_lineno or docstring.lineno : function.end_lineno]
    return textwrap.dedent("".join([*head, *rest])).strip("\n")


def _facts(function: _Function) -> Iterator[str]:
    """Sentences about the code."""
    nodes = list(_inside(function))
    yield _parameters(function)
    calls = dict.fromkeys(
        name for node in nodes if isinstance(node, ast.Call) and (name := _dotted(node.func))
    )
    if calls:
        yield f"It calls {_listed(list(calls))}."
    shape = [
        _counted(nodes, (ast.For, ast.AsyncFor, ast.While), "loop"),
        _counted(nodes, (ast.If, ast.IfExp, ast.Match), "branch", "branches"),
        _counted(nodes, (ast.Try,), "try block"),
        _counted(nodes, (ast.With, ast.AsyncWith), "with block"),
        _counted(nodes, (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp),
                 "comprehension"),
    ]  # fmt: skip
    if present := [part for part in shape if part]:
        yield f"There {'is' if present[0].startswith('one') else 'are'} {_listed(present, '')}."
    raised = dict.fromkeys(
        name
        for node in nodes
        if isinstance(node, ast.Raise) and node.exc is not None
        if (name := _dotted(node.exc.func if isinstance(node.exc, ast.Call) else node.exc))
    )
    if raised:
        yield f"It raises {_listed(list(raised))}."
    yield _outcome(nodes)


def _inside(function: _Function) -> Iterator[ast.AST]:
    """The nodes of a body, depth first, those of functions and classes within it left out."""
    pending: list[ast.AST] = list(reversed(function.body))
    while pending:
        node = pending.pop()
        yield node
        if not isinstance(node, _SCOPES):
            pending += reversed(list(ast.iter_child_nodes(node)))


def _parameters(function: _Function) -> str:
    a = function.args
    names = [arg.arg for arg in (*a.posonlyargs, *a.args, *a.kwonlyargs)]
    names += [f"{stars}{arg.arg}" for stars, arg in (("*", a.vararg), ("**", a.kwarg)) if arg]
    defaults = len(a.defaults) + sum(default is not None for default in a.kw_defaults)
    if not names:
        return "It takes no parameters."
    optional = f", {_number(defaults)} with a default" if defaults else ""
    return f"It takes {_listed(names)}{optional}."


def _outcome(nodes: Sequence[ast.AST]) -> str:
    if any(isinstance(node, (ast.Yield, ast.YieldFrom)) for node in nodes):
        return "It is a generator."
    values = [node.value for node in nodes if isinstance(node, ast.Return) and node.value]
    if not values:
        return "It returns nothing."
    last = ast.unparse(values[-1])
    what = f"`{last}`" if len(last) <= 60 and "\n" not in last else f"a {_kind(values[-1])}"
    return f"It returns {what}." if len(values) == 1 else f"In the end it returns {what}."


def _kind(node: ast.expr) -> str:
    """`IfExp` -> `if exp`: what sort of expression it is."""
    name = type(node).__name__
    return "".join(f" {c.lower()}" if c.isupper() else c for c in name).strip()


def _dotted(node: ast.expr) -> str:
    """`os.path.join`; nothing for what is no name."""
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return ".".join([node.id, *reversed(parts)]) if isinstance(node, ast.Name) else ""


def _counted(nodes: Sequence[ast.AST], kinds: tuple, one: str, more: str = "") -> str:
    count = sum(isinstance(node, kinds) for node in nodes)
    return f"{_number(count)} {one if count == 1 else more or one + 's'}" if count else ""


def _number(count: int) -> str:
    words = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
    return words[count] if count < len(words) else str(count)


def _listed(names: Sequence[str], quote: str = "`") -> str:
    """`a`, `b` and `c`; of a long list the beginning and how many more there are."""
    shown = [f"{quote}{name}{quote}" for name in names[:_NAMED]]
    if len(names) > _NAMED:
        shown.append(f"{len(names) - _NAMED} more")
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}"
