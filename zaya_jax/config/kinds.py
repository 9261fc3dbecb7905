"""Variation points: what a field of the config may name, and where that lives.

A name stands for an object of a module, `module:object`. Any other object is named by that alone:
a kind of one's own needs no change here (docs/extending.md). The table is text, so that the config
knows the names without importing the rooms that they lead to.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Iterator, Mapping
from typing import Any

from zaya_jax.errors import hint

ATTENTION_KINDS = {
    "cca": "zaya_jax.model.attention.cca:CCA",
    "gqa": "zaya_jax.model.attention.gqa:GQA",
    "mha": "zaya_jax.model.attention.gqa:MHA",
    "mla": "zaya_jax.model.attention.mla:MLA",
}
ROUTER_KINDS = {
    "mlp_eda": "zaya_jax.model.router:mlp_eda",
    "mlp": "zaya_jax.model.router:mlp",
    "linear": "zaya_jax.model.router:linear",
}
BALANCERS = {
    "adamw": "zaya_jax.balance:adamw",
    "pid": "zaya_jax.balance:pid",
    "sign": "zaya_jax.balance:sign",
    "none": "zaya_jax.balance:none",
}


def find(kinds: Mapping[str, str], name: str) -> Any:
    """What a value of a field stands for.

    Args:
      kinds: the field's table.
      name: a key of it, or `module:object`.
    """
    return _load(kinds.get(name, name))


@functools.cache
def _load(place: str) -> Any:
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(module), name)


def check_kind(field: str, name: str, kinds: Mapping[str, str]) -> Iterator[str]:
    """Yields a message if `name` stands for nothing."""
    if name in kinds:
        return
    module, colon, member = name.partition(":")
    if not colon:
        yield f"{field} = {name!r}{hint(name, kinds)}"
        return
    if not member or not all(module.split(".")):
        yield f"{field} = {name!r}: expected module:function"
        return
    try:
        code = importlib.import_module(module)
    except Exception as error:  # a module's own code may raise whatever it likes
        yield f"{field} = {name!r}: {_why(module, error)}"
        return
    found = getattr(code, member, None)
    if found is None:
        yield f"{field} = {name!r}: the module has no {member!r}; expected module:function"
    elif not callable(found):
        yield f"{field} = {name!r}: expected a function or a class there, found {found!r:.60}"


def _why(module: str, error: Exception) -> str:
    """Why a module could not be imported: it is not there, or its code does not run."""
    missing = error.name if isinstance(error, ModuleNotFoundError) else None
    if missing and f"{module}.".startswith(f"{missing}."):
        return f"there is no module {module!r}; set PYTHONPATH to its folder"
    return f"the import of {module!r} failed with {type(error).__name__}: {error}"
