"""The Pallas kernels that a traced program launches, with the operands whose values are known.

A kernel's work can depend on values: group sizes, cache lengths, segment ids. So the program is
run on what is known of its arguments: an equation all of whose inputs are known is computed, of
the others nothing is known.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.extend.core import jaxprs_in_params

from zaya_jax.aot import count, ttir
from zaya_jax.aot.report import Launch

# A known value is an array.
Value = Any
LARGEST = 2**26  # elements of a value that is followed


class PallasCall(NamedTuple):
    """A `pallas_call` in a program: its equation, what is known of its operands (None where
    nothing is), and how often it runs."""

    equation: Any
    operands: list[Value | None]
    times: int

    @property
    def sizes(self) -> tuple[int, ...]:
        """Bytes of operands, then of results."""
        variables = [*self.equation.invars, *self.equation.outvars]
        return tuple(size_of(variable.aval) for variable in variables)

    def lower(self, platform: str) -> Any:
        """This call alone, lowered for `platform`."""
        equation = self.equation

        def call(*operands):
            return equation.primitive.bind(*operands, **equation.params)

        shapes = [jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in equation.invars]
        return jax.jit(call).trace(*shapes).lower(lowering_platforms=(platform,))


def size_of(array: Any) -> int:
    """Bytes of an array, or of what has its shape and dtype."""
    return math.prod(array.shape) * np.dtype(array.dtype).itemsize


def follow(
    jaxpr: Any, constants: Sequence[Value | None], inputs: Sequence[Value | None], times: int = 1
) -> tuple[list[Value | None], list[PallasCall]]:
    """Follows what is known through `jaxpr`.

    Args:
      jaxpr: an open jaxpr.
      constants: of its `constvars`.
      inputs: of its `invars`; None where unknown.
      times: how often it runs.

    Returns: what is known of its outputs, and its Pallas calls in program order.
    """
    known: dict[Any, Value | None] = {}
    calls: list[PallasCall] = []
    known.update(zip(jaxpr.constvars, constants, strict=True))
    known.update(zip(jaxpr.invars, inputs, strict=True))

    def read(variable: Any) -> Value | None:
        return variable.val if hasattr(variable, "val") else known.get(variable)

    for equation in jaxpr.eqns:
        operands = [read(variable) for variable in equation.invars]
        if equation.primitive.name == "pallas_call":
            calls.append(PallasCall(equation, operands, times))
            outputs: list[Value | None] = [None] * len(equation.outvars)
        else:
            outputs, inner = _equation(equation, operands, times)
            calls += inner
        known.update(zip(equation.outvars, outputs, strict=True))
    return [read(variable) for variable in jaxpr.outvars], calls


def _equation(
    equation: Any, operands: list[Value | None], times: int
) -> tuple[list[Value | None], list[PallasCall]]:
    bodies = [_open(body) for body in jaxprs_in_params(equation.params)]
    name = equation.primitive.name
    unknown: list[Value | None] = [None] * len(equation.outvars)
    if not bodies or (all(v is not None for v in operands) and not any(map(_launches, bodies))):
        return (_computed(equation, operands) or unknown), []
    if name in ("scan", "while", "cond"):
        # What a loop carries is not followed; what it only reads is.
        repeat = equation.params.get("length", 1) * times
        constants = operands[: equation.params["num_consts"]] if name == "scan" else []
        calls = []
        for body, fixed in bodies:
            inputs = [*constants, *[None] * (len(body.invars) - len(constants))]
            calls += follow(body, fixed, inputs, repeat)[1]
        return unknown, calls
    body, fixed = bodies[0]
    if len(body.invars) != len(operands):
        return unknown, follow(body, fixed, [None] * len(body.invars), times)[1]
    outputs, calls = follow(body, fixed, operands, times)
    return (outputs if len(outputs) == len(unknown) else unknown), calls


def _computed(equation: Any, operands: list[Value | None]) -> list[Value] | None:
    """The outputs of an equation on known operands; None if it cannot be computed here, or is too
    much to compute: what steers kernels is small."""
    if any(value is None for value in operands):
        return None
    if any(math.prod(variable.aval.shape) > LARGEST for variable in equation.outvars):
        return None
    try:
        result = equation.primitive.bind(*operands, **equation.params)
    except Exception:  # what only a device can compute is not known
        return None
    return list(result) if equation.primitive.multiple_results else [result]


def _launches(body: tuple[Any, Sequence[Value | None]]) -> bool:
    return any(
        equation.primitive.name == "pallas_call"
        or any(map(_launches, map(_open, jaxprs_in_params(equation.params))))
        for equation in body[0].eqns
    )


def _open(jaxpr: Any) -> tuple[Any, Sequence[Value | None]]:
    """An open jaxpr and its constants, from a closed or open one; an open one's are not known."""
    if hasattr(jaxpr, "consts"):
        return jaxpr.jaxpr, jaxpr.consts
    return jaxpr, [None] * len(jaxpr.constvars)


def counted(call: PallasCall, platform: str) -> Launch:
    """A call with its work counted and its TTIR taken out."""
    [kernel] = ttir.extract(call.lower(platform))
    contents = {at: value for at, value in enumerate(call.operands) if value is not None}
    counts, note = None, ""
    try:
        counts = count.count(kernel.body, kernel.grid, contents)
    except count.Uncountable as reason:
        note = str(reason)
    return Launch(
        name=kernel.name,
        grid=kernel.grid,
        warps=kernel.warps,
        stages=kernel.stages,
        times=call.times,
        sizes=call.sizes,
        operands=len(call.operands),
        counts=counts,
        note=note,
        ttir=kernel.text,
    )
