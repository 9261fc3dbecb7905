"""English prose out of the standard library: what it says about itself and about the language.

Two kinds of documents: the topics of `help()` (chapters of the language reference and of the
library's), and for every module the docstrings of it, of its classes and of its functions, in
their order and each under the name that it is of.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator

from zaya_jax.data.readers import Document

_TOPICS = "pydoc_data/topics.py"
"""The module that holds the topics, in one dictionary."""
_DEFINITIONS = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
_DOCUMENTED = (ast.Module, *_DEFINITIONS)
_BLOCKS = ("body", "handlers", "orelse", "finalbody", "cases")
"""Fields in which statements hold statements."""


def documents(modules: Iterable[Document]) -> Iterator[Document]:
    """The prose of modules.

    Args:
        modules: Python sources by their paths; those that do not parse are passed over.

    Yields:
        The topics, named `module:topic`, and for every module that has docstrings a document of
        the module's name.
    """
    for module in modules:
        try:
            tree = ast.parse(module.text)
        except (SyntaxError, ValueError, RecursionError):
            continue
        if module.name == _TOPICS:
            for topic, text in _topics(tree):
                yield Document(f"{module.name}:{topic}", text)
        elif found := list(_docstrings(tree)):
            yield Document(module.name, "\n\n\n".join(found) + "\n")


def _docstrings(node: ast.AST, name: str = "") -> Iterator[str]:
    """The docstrings of a node and below it in the order of the text, under their dotted names.

    Expressions, which are most of a tree and have no docstrings, are not looked into.
    """
    if isinstance(node, _DOCUMENTED) and (text := ast.get_docstring(node)):
        yield f"{name}\n\n{text}" if name else text
    for field in _BLOCKS:
        for child in getattr(node, field, ()):
            inner = f"{name}.{child.name}" if isinstance(child, _DEFINITIONS) else name
            yield from _docstrings(child, inner.lstrip("."))


def _topics(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """The items of the dictionary `topics`."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
            yield from ast.literal_eval(node.value).items()
