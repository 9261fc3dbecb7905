"""Where the values of a kernel come from: what its control flow needs, where its pointers point."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from zaya_jax.aot.ttir import Block, Operation, Value, walk


def needed(body: Block, addresses: bool) -> set[Value]:
    """The values that masks, branches, loop bounds and, if wanted, addresses depend on."""
    sources: dict[Value, list[Value]] = {}
    roots: list[Value] = []
    for operation in walk(body):
        _link(operation, sources)
        match operation.name:
            case "tt.load":
                roots += operation.operands[0 if addresses else 1 : 2]
            case "tt.store":
                roots += operation.operands[2:]
            case "tt.atomic_rmw":
                roots += operation.operands[2:]
            case "scf.for":
                roots += operation.operands[:3]
            case "scf.if":
                roots += operation.operands[:1]
            case "scf.condition":
                roots += operation.operands[:1]
    found: set[Value] = set()
    while roots:
        value = roots.pop()
        if value not in found:
            found.add(value)
            roots += sources.get(value, ())
    return found


def bases(body: Block) -> dict[Value, int]:
    """The kernel's argument that each pointer points into, where one can tell by the code."""
    found = {argument: position for position, argument in enumerate(body.arguments)}
    sources: dict[Value, list[Value]] = {}
    for operation in walk(body):
        _link(operation, sources)
    for operation in walk(body):
        inner = [value for region in operation.regions for value in region.arguments]
        for value in [*inner, *operation.results]:
            origins = [origin for origin in sources.get(value, ()) if origin in found]
            if value.type.pointer and origins:
                found[value] = found[origins[0]]
    return found


def _link(operation: Operation, sources: dict[Value, list[Value]]) -> None:
    """Notes what each result and each argument of an inner block comes from."""

    def link(values: Iterable[Value], *origins: Sequence[Value]) -> None:
        for position, value in enumerate(values):
            own = sources.setdefault(value, [])
            own += [origin[position] for origin in origins if position < len(origin)]

    ends = [region.operations[-1].operands for region in operation.regions if region.operations]
    match operation.name:
        case "scf.for":
            carried, [yielded] = operation.operands[3:], ends
            link(operation.regions[0].arguments[1:], carried, yielded)
            link(operation.results, carried, yielded)
        case "scf.while":
            before, after = operation.regions
            condition, yielded = ends
            link(before.arguments, operation.operands, yielded)
            link(after.arguments, condition[1:])
            link(operation.results, condition[1:])
        case "scf.if":
            link(operation.results, *ends)
        case _:
            for result in operation.results:
                sources[result] = list(operation.operands)
