"""What fits where: bytes of the published models' weights and cache, from their shapes alone."""

from __future__ import annotations

import dataclasses
import runpy
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax

from zaya_jax import config
from zaya_jax.config import Model
from zaya_jax.infer.engine import pool
from zaya_jax.infer.quantize import Scheme
from zaya_jax.model.functional import bias_declarations, declarations

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
MODELS = ("zaya1_8b", "zaya1_74b")
SCHEMES = (
    None,
    Scheme("fp8"),  # as FP8-Experts is published
    Scheme("int8"),
    Scheme("int8", "all"),
    Scheme("fp4"),  # as MXFP4-Experts is published
    Scheme("int4"),
    Scheme("int4", "all"),
)
CACHES = (None, "int8")
MEMORY = (8, 16, 24, 48, 80, 192)
"""GiB of a device."""
RESERVE = 1.0
"""GiB that are not for weights or cache: the runtime, the programs and their temporary arrays."""
PAGE = 64


@dataclasses.dataclass(frozen=True)
class Row:
    """One model in one form.

    weights: bytes. token: bytes of the cache for each token, by its dtype: keys, values and a share
      of the state, over all layers, in pages of 64 tokens. tokens: of the cache that fit, by GiB of
      a device and by its dtype; None where the weights do not.
    """

    model: str
    form: str
    weights: int
    token: dict[str, float]
    tokens: dict[int, dict[str, int | None]]


def model_of(name: str) -> Model:
    """The model section of an experiment, in unrolled form."""
    found = runpy.run_path(str(EXPERIMENTS / f"{name}.py"))["get_config"]()
    return dataclasses.replace(config.freeze(found).model, layers="unroll")


def weight_bytes(model: Model, scheme: Scheme | None) -> int:
    """Of all parameters as `scheme` stores them; nothing is allocated."""

    def bytes_of(declaration: Any) -> int:
        value = jax.ShapeDtypeStruct(declaration.shape, declaration.dtype)
        if scheme is not None:
            value = jax.eval_shape(lambda x: scheme.store(declaration, x), value)
        return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(value))

    declared = {**declarations(model), **bias_declarations(model)}
    sizes: dict[Any, int] = {}  # layers are alike
    for declaration in declared.values():
        key = (declaration.name, declaration.shape)
        if key not in sizes:
            sizes[key] = bytes_of(declaration)
    return sum(sizes[d.name, d.shape] for d in declared.values())


def form_of(scheme: Scheme | None) -> str:
    """A scheme in words."""
    if scheme is None:
        return "as stored"
    group = "" if scheme.group is None else f", groups of {scheme.group}"
    return f"{scheme.kind} {scheme.what}{group}"


def rows(names: tuple[str, ...] = MODELS) -> list[Row]:
    """Every model in every form, with keys and values in bfloat16 and in int8."""
    found = []
    for name in names:
        model = model_of(name)
        token = {
            cache or model.activation_dtype: pool.page_bytes(model, PAGE, cache) / PAGE
            for cache in CACHES
        }
        for scheme in SCHEMES:
            weights = weight_bytes(model, scheme)
            tokens = {
                gib: {dtype: tokens_in(gib, weights, each) for dtype, each in token.items()}
                for gib in MEMORY
            }
            found.append(Row(name, form_of(scheme), weights, token, tokens))
    return found


def tokens_in(gib: float, weights: int, token: float) -> int | None:
    """Tokens of the cache that fit beside the weights, in whole pages; None where these do not."""
    room = (gib - RESERVE) * 2**30 - weights
    pages = int(room // (token * PAGE))
    return None if pages < 1 else pages * PAGE


def show(found: list[Row]) -> str:
    """The table, in Markdown: thousands of tokens, by the dtypes of the cache."""
    columns = " | ".join(f"{gib} GiB" for gib in MEMORY)
    lines = [
        f"| model | weights | GiB | kB of cache a token | {columns} |",
        "|---" * (4 + len(MEMORY)) + "|",
    ]
    for row in found:
        token = " / ".join(f"{each / 1e3:.1f}" for each in row.token.values())
        cells = [_thousands(tokens.values()) for tokens in row.tokens.values()]
        weights = f"{row.weights / 2**30:.1f}"
        lines.append(f"| {row.model} | {row.form} | {weights} | {token} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _thousands(tokens: Iterable[int | None]) -> str:
    found = ["-" if n is None else f"{n // 1000:,}k" for n in tokens]
    return "-" if set(found) == {"-"} else " / ".join(found)
