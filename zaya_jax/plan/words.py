"""A plan as a person reads it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from zaya_jax.aot.targets import target_of
from zaya_jax.plan.compiled import NEGLIGIBLE, Compiled, Group, in_program, predicted_groups
from zaya_jax.plan.prediction import Plan

GIB = 2**30


def size(count: float) -> str:
    """Bytes, in the unit that leaves one to three digits before the point."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.2f} TiB"


def seconds(time: float) -> str:
    return f"{time:.2f} s" if time >= 1 else f"{time * 1e3:.1f} ms"


def lines(plan: Plan) -> Iterator[str]:
    """The whole of it."""
    case, target = plan.case, target_of(plan.hardware.target)
    model = case.experiment.model
    mesh = " x ".join(f"{axis} {n}" for axis, n in case.sizes.items() if n > 1) or "one device"
    yield f"{case.experiment.name} on {case.devices:,} x {target.title}: {mesh}"
    parts = f", {case.microbatches} microbatches" if case.microbatches > 1 else ""
    share = "" if case.sizes["context"] == 1 else f", 1/{case.sizes['context']} of each here"
    yield (
        f"  a device: {case.tokens:,} tokens ({case.rows} rows of {case.length:,}{share}){parts}; "
        f"a step: {case.tokens_a_step:,}; remat {model.remat}"
    )
    yield ""
    yield from _memory(plan)
    yield ""
    yield from _traffic(plan)
    yield ""
    yield from _time(plan)


def verdict(plan: Plan) -> str:
    limit = f"{size(plan.hardware.limit)} ({plan.hardware.usable:.0%} of the device)"
    total = size(plan.memory.total)
    return f"{'fits' if plan.fits else 'DOES NOT FIT'}: {total} of {limit}"


def _memory(plan: Plan) -> Iterator[str]:
    yield "memory of a device, predicted"
    for name, count in plan.memory.parts.items():
        if count:
            yield f"  {name:<28} {size(count):>12}"
    yield f"  {'together':<28} {size(plan.memory.total):>12}   {verdict(plan)}"


def _traffic(plan: Plan) -> Iterator[str]:
    if not plan.messages:
        yield "collectives: none"
        return
    head = f"{'collectives of a step':<31} {'kind':<19} {'over':<16}"
    yield f"{head} {'count':>6} {'buffers':>11} {'sent':>11}"
    for m in plan.messages:
        sent = size(m.sent(plan.case.sizes))
        axes = ", ".join(m.axes)
        yield f"  {m.what:<29} {m.kind:<19} {axes:<16} {m.count:>6} {size(m.bytes):>11} {sent:>11}"
    yield f"  {'together':<66} {size(plan.sent):>23}"


def _time(plan: Plan) -> Iterator[str]:
    time, found = plan.time, plan.work
    yield "a step, by a roofline that no GPU has confirmed yet (docs/scale.md)"
    for name, (matrices, moved) in time.parts.items():
        yield (
            f"  {name:<11} {seconds(max(matrices, moved)):>10}   matrices {seconds(matrices)} "
            f"({found.flops[name] / 1e12:,.1f} TFLOP {found.dtypes[name]}), memory {seconds(moved)}"
        )
    if plan.messages:
        yield f"  {'collectives':<11} {seconds(time.links + time.network):>10}   " + (
            f"inside nodes {seconds(time.links)}, between nodes {seconds(time.network)}"
        )
    yield (
        f"  {'together':<11} {seconds(time.seconds):>10}   {plan.tokens_per_second:,.0f} tokens/s, "
        f"{plan.tokens_per_second / plan.case.devices:,.0f} a device, MFU {plan.mfu:.1%}"
    )


def table(plans: Iterable[Plan], title: str) -> str:
    """Several plans, a line each."""
    rows = [
        f"{title}\n  {'mesh':<38} {'remat':<6} {'tokens here':>11} {'parts':>5} {'memory':>11} "
        f"{'a step':>9} {'tokens/s':>12} {'MFU':>6}"
    ]
    for one in plans:
        case = one.case
        rows.append(
            f"  {case.mesh or 'one device':<38} {case.experiment.model.remat:<6} "
            f"{case.tokens:>11,} {case.microbatches:>5} {size(one.memory.total):>11} "
            f"{seconds(one.time.seconds):>9} {one.tokens_per_second:>12,.0f} {one.mfu:>6.1%}"
        )
    return "\n".join(rows) + "\n"


def beside(plan: Plan, found: Compiled) -> Iterator[str]:
    """What the compiler says beside what was predicted."""
    versions = ", ".join(f"{name} {version}" for name, version in found.versions.items())
    yield f"compiled in {found.seconds:.0f} s ({versions})"
    if found.error:
        yield f"  DOES NOT COMPILE: {found.error}"
        return
    memory = plan.memory
    yield f"  {'memory of a device':<50} {'predicted':>12} {'compiled':>12}"
    for name in ("arguments", "temporaries", "total"):
        pair = getattr(memory, name), getattr(found, name)
        yield f"    {name:<48} {size(pair[0]):>12} {size(pair[1]):>12}"
    fits = found.total <= plan.hardware.limit
    yield f"    {'fits' if fits else 'DOES NOT FIT'}: the limit is {size(plan.hardware.limit)}"
    groups = predicted_groups(in_program(plan.case, plan.messages), plan.case.sizes)
    predicted = {(one.kind, one.axes): one for one in groups}
    compiled = {(one.kind, one.axes): one for one in found.groups}
    if predicted or compiled:
        yield f"  {'buffers of collectives':<50} {'predicted':>12} {'compiled':>12}  count"
    for key in sorted({*predicted, *compiled}, key=lambda key: -_bytes(compiled.get(key))):
        pair = _bytes(predicted.get(key)), _bytes(compiled.get(key))
        if max(pair) < NEGLIGIBLE:
            continue
        kind, axes = key
        over = ", ".join(axes) or "(no axes)"
        count = compiled[key].count if key in compiled else 0
        yield f"    {kind:<20} {over:<27} {size(pair[0]):>12} {size(pair[1]):>12}  {count}"
    for line in found.warnings:
        yield f"  warning: {line}"


def _bytes(group: Group | None) -> int:
    return 0 if group is None else group.bytes
