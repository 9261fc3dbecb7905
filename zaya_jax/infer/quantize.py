"""Networks with weights in 8 or 4 bits, for inference: what is quantized, and when.

The experts are 95% of ZAYA1-8B; `all` adds the projections of attention and the embedding, which is
the head too. The embedding is kept in 8 bits whatever the kind, with a scale for each token: logits
are the one place where its error is not averaged by what follows. Norms, convolutions, routers and
residual scales stay as they are: they are small, and routing decides by small differences.

Weights are quantized one by one as they are read, and each lets go of what it was made from.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from pallas_kernels.quantized import GROUP, KINDS, Quantized, default_group
from pallas_kernels.quantized import quantize as quantize_values
from zaya_jax import load as load_lib
from zaya_jax.config import Model
from zaya_jax.errors import UserError
from zaya_jax.load import Loaded
from zaya_jax.model.functional import Declaration, declarations

WHAT = ("experts", "all")
TOKENS = 4096  # of the embedding, quantized at a time


@dataclasses.dataclass(frozen=True)
class Scheme:
    """What is quantized, and how.

    kind: of numbers: `int8`, `int4`, or floating point as it is published: `fp8` (e4m3fn), `fp4`
      (e2m1).
    what: `experts`, or `all` matrices that are read in the activation dtype.
    group: rows of a matrix [in, out] that share a scale; by default all of them for 8 bits, 128 at
      most for int4 and 32 for fp4.
    """

    kind: str
    what: str = "experts"
    group: int | None = None

    def __post_init__(self):
        if self.kind not in KINDS:
            raise UserError(f"quantize = {self.kind!r}: accepted: {', '.join(KINDS)}")
        if self.what not in WHAT:
            raise UserError(f"quantize_what = {self.what!r}: accepted: {', '.join(WHAT)}")

    def kind_of(self, declaration: Declaration) -> str | None:
        """How a parameter is stored; None as it is."""
        if "expert_mlp" in declaration.axes:
            return self.kind
        if self.what != "all":
            return None
        if declaration.group == "embedding":
            return "int8"
        return self.kind if _is_projection(declaration) else None

    def group_of(self, declaration: Declaration) -> int:
        """Rows of it that share a scale."""
        kind = self.kind_of(declaration)
        assert kind is not None
        if declaration.group == "embedding":
            return declaration.shape[-1]
        rows = declaration.shape[-2]
        return default_group(rows, kind) if self.group is None else self.group

    def check(self, model: Model) -> None:
        """Raises UserError for a group that does not divide the rows of some matrix; names it."""
        for path, declaration in declarations(model).items():
            if self.kind_of(declaration) is None or declaration.group == "embedding":
                continue
            rows, group = declaration.shape[-2], self.group_of(declaration)
            halves = self.kind in GROUP
            if group < 1 or rows % group or (halves and group % 2):
                even = "even numbers" if halves else "numbers"
                raise UserError(
                    f"quantize_group = {group}: {path} has {rows} rows; accepted: {even} that "
                    f"divide them, such as {default_group(rows, self.kind)}"
                )

    def store(self, declaration: Declaration, value: Any) -> Any:
        """A parameter as this scheme stores it.

        Raises:
          UserError: it is quantized already.
        """
        kind = self.kind_of(declaration)
        if kind is None:
            return value
        if isinstance(value, Quantized):
            raise UserError(
                f"quantize = {self.kind!r}: these weights are {value.kind} as they were published; "
                "leave --quantize out"
            )
        value = jnp.asarray(value)
        if declaration.group == "embedding":
            value = value[..., None]  # a matrix [D, 1] for each token
        return _quantize(value, kind, self.group_of(declaration))


def _is_projection(declaration: Declaration) -> bool:
    return declaration.group == "matrix" and declaration.name.startswith("self_attn.")


def keep(declaration: Declaration, value: Any) -> Any:
    """A parameter as it was read, be it quantized or not."""
    del declaration
    return value


@functools.partial(jax.jit, static_argnames=("kind", "group"))
def _quantize(value: jax.Array, kind: str, group: int) -> Quantized:
    """Expert by expert, and a part of the tokens after the other: little is held in float32."""
    # A scale for a column costs nothing; those of groups are as exact as what they multiply.
    dtype = jnp.bfloat16 if group < value.shape[-2] else jnp.float32
    one = functools.partial(quantize_values, kind=kind, group=group, scales_dtype=dtype)
    if value.ndim == 2:
        return one(value)
    batch = None if value.shape[-1] > 1 else min(TOKENS, len(value))
    return jax.lax.map(one, value, batch_size=batch)


def of_flags(flags: Any) -> Scheme | None:
    """What `--quantize` and its companions say; see `zaya_jax.options.quantize`.

    Raises:
      UserError: an unknown kind, or companions alone.
    """
    if flags.quantize is None:
        for name in ("quantize_what", "quantize_group"):
            if flags[name].present:
                raise UserError(f"--{name} goes with --quantize={'|'.join(KINDS)}")
        return None
    return Scheme(flags.quantize, flags.quantize_what, flags.quantize_group)


def load(path: str | Path, scheme: Scheme | None = None, **options: Any) -> Loaded:
    """`zaya_jax.load.load` for inference: quantized by `scheme`, or as it was published.

    Raises:
      UserError: as that; a group that fits no matrix; a scheme for weights that are quantized.
    """
    if scheme is not None:
        scheme.check(load_lib.model_of(path))
    store: Callable[[Declaration, Any], Any] = keep if scheme is None else scheme.store
    return load_lib.load(path, store=store, **options)


def quantize(loaded: Loaded, scheme: Scheme) -> Loaded:
    """The same network with weights as `scheme` stores them; `loaded` keeps its own.

    Raises:
      UserError: a group that fits no matrix; weights that are quantized.
    """
    scheme.check(loaded.model)
    declared = declarations(loaded.model)
    params = {
        name: scheme.store(declared[name], value) for name, value in loaded.params.items()
    }
    return dataclasses.replace(loaded, params=params)


def like(old: Any, value: Any) -> Any:
    """A weight stored as the old one in its place is."""
    if not isinstance(old, Quantized) or isinstance(value, Quantized):
        return value
    value = jnp.asarray(value).reshape(old.shape)
    return _quantize(value, old.kind, old.group)


def kinds(params: Mapping[str, Any]) -> set[str]:
    """In which kinds some of these are quantized."""
    return {value.kind for value in params.values() if isinstance(value, Quantized)}


def nbytes(values: Iterable[Any]) -> int:
    """Of arrays, quantized or not, as they are stored."""
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(list(values)))


def describe(params: Mapping[str, Any]) -> str:
    """What there is of quantized weights, for people; empty if nothing."""
    found = {name: value for name, value in params.items() if isinstance(value, Quantized)}
    if not found:
        return ""
    shares = [f"{kind} {sum(v.size for v in found.values() if v.kind == kind):,}"
              for kind in sorted(kinds(found))]  # fmt: skip
    gigabytes = nbytes(params.values()) / 1e9
    return f"weights by kind: {', '.join(shares)}; {gigabytes:.2f} GB with all others"
