"""The calls of ops that `launch.py kernels` compiles, at the shapes of the 8B.

Every op with a `triton` implementation tells them in its `example.py` (`pallas_kernels.shapes`).
The backward pass is a program of its own: residuals and cotangents in, gradients out.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels import dispatch, tuned
from pallas_kernels.shapes import FORMS
from zaya_jax.aot.launches import follow
from zaya_jax.aot.program import Job, Program, is_array

# By kernel, as in a platform's part of `tuned.json`.
Settings = Mapping[str, Mapping[str, int]]

FORWARD, BACKWARD = "forward", "backward"


class Name(NamedTuple):
    """Of a call to compile: JSON arguments of `build`."""

    op: str
    form: str
    call: str
    direction: str

    def __str__(self) -> str:
        call = f" {self.call}" if self.call else ""
        return f"{self.op}{call} {self.direction} {self.form}"

    def job(self, settings: Settings | None = None) -> Job:
        """To compile it, with `settings` of its op's kernels instead of those in `tuned.json`."""
        arguments = {**self._asdict(), "settings": settings or {}}
        return Job(f"{__name__}:build", arguments, want_kernels=True)


def ops_with_kernels() -> list[str]:
    """The ops that have a kernel of ours."""
    return [op for op in dispatch.OPS if "triton" in dispatch.load(op).IMPLEMENTATIONS]


def names(op: str, forms: list[str]) -> Iterator[Name]:
    """The calls of `op` in `forms`, each forward and, where it trains, backward."""
    for form in forms:
        for call_name, call in _example(op).shapes_8b(FORMS[form]).items():
            yield Name(op, form, call_name, FORWARD)
            if FORMS[form].trains and call.trains:
                yield Name(op, form, call_name, BACKWARD)


def build(op: str, form: str, call: str, direction: str, settings: Settings) -> Program:
    """The program of one call: forward, or backward from residuals and cotangents."""
    chosen = _example(op).shapes_8b(FORMS[form])[call]
    function = chosen.function or dispatch.load(op).IMPLEMENTATIONS["triton"]
    # jax does not see settings: what it has traced with others must not come back.
    jax.clear_caches()

    def with_settings(call):
        def run(*args):
            with contextlib.ExitStack() as stack:
                for kernel, own in settings.items():
                    stack.enter_context(tuned.trying(op, kernel, own))
                return call(*args)

        return run

    # Arrays in keywords become arguments too.
    arguments = (tuple(chosen.args), dict(chosen.kwargs))
    forward = Program(with_settings(lambda args, kwargs: function(*args, **kwargs)), arguments)
    if direction == FORWARD:
        return forward
    # A backward pass builds its kernels only when it is called.
    backward = backward_of(forward)
    return Program(with_settings(backward.function), backward.args)


def _example(op: str) -> Any:
    return importlib.import_module(f"pallas_kernels.{op}.example")


def backward_of(forward: Program) -> Program:
    """The backward pass of a program with regard to its floating-point arrays."""
    leaves, structure = jax.tree.flatten(forward.args)
    moving = [is_array(leaf) and jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in leaves]
    arrays = [is_array(leaf) for leaf in leaves]

    def with_residuals(given):
        given = iter(given)
        merged = [next(given) if own else x for x, own in zip(leaves, arrays, strict=True)]

        def primal(floats):
            floats = iter(floats)
            full = [next(floats) if own else x for x, own in zip(merged, moving, strict=True)]
            return forward.function(*jax.tree.unflatten(structure, full))

        return jax.vjp(primal, [x for x, own in zip(merged, moving, strict=True) if own])

    given = [leaf for leaf, own in zip(leaves, arrays, strict=True) if own]
    shapes = [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in given]
    jaxpr, (out, vjp) = jax.make_jaxpr(with_residuals, return_shape=True)(shapes)
    # What is known of the arguments is followed into the residuals: lengths, segments, groups.
    known = [None if isinstance(leaf, jax.ShapeDtypeStruct) else leaf for leaf in given]
    found, _ = follow(jaxpr.jaxpr, jaxpr.consts, known)
    residuals = found[len(jax.tree.leaves(out)) :]
    shapes = jax.tree.leaves(vjp)
    values = [
        shape if value is None else np.asarray(value)
        for shape, value in zip(shapes, residuals, strict=True)
    ]
    vjp = jax.tree.unflatten(jax.tree.structure(vjp), values)
    outputs, out_structure = jax.tree.flatten(out)
    smooth = [jnp.issubdtype(output.dtype, jnp.floating) for output in outputs]

    def backward(vjp, cotangents):
        given = iter(cotangents)
        full = [
            # The cotangent of integers has no numbers in it.
            next(given) if own else np.zeros(output.shape, jax.dtypes.float0)
            for output, own in zip(outputs, smooth, strict=True)
        ]
        return vjp(jax.tree.unflatten(out_structure, full))[0]

    cotangents = [
        jax.ShapeDtypeStruct(output.shape, output.dtype)
        for output, own in zip(outputs, smooth, strict=True)
        if own
    ]
    return Program(backward, (vjp, cotangents))
