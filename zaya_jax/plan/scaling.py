"""Bytes that a device sends, against the number of devices: each kind of parallelism alone, from
compiled programs, beside the law that the plan's formulas give.

Every device keeps its work (weak scaling): as many tokens, whatever the number of devices. Under
`context` a row grows with them. The model is a slice, so that a program compiles in seconds; its
ops are XLA's own, which send nothing and compile fastest.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from zaya_jax.aot.compiler import Compiler
from zaya_jax.aot.targets import target_of
from zaya_jax.config import Attention, Experiment, Model, Muon, Ops, Optim, Router, Train
from zaya_jax.config.mesh import AXES
from zaya_jax.errors import UserError
from zaya_jax.plan import compiled
from zaya_jax.plan.case import Case, case_of
from zaya_jax.plan.traffic import EXCHANGE, GATHER, PERMUTE, RAGGED, SCATTER, Message, messages

DEVICES = (2, 4, 8, 16, 32, 64)
ROWS, TOKENS = 2, 256
"""Rows of a device, and its tokens of each."""
KINDS = (GATHER, SCATTER, EXCHANGE, RAGGED, PERMUTE)
LAWS = {
    "data": "parameters gathered, gradients scattered: 6 P (1 - 1/n)",
    "fsdp": "layers gathered twice, gradients scattered: 6 P' (1 - 1/n)",
    "expert": "tokens there and back: 14 D T L (1 - 1/n)",
    "context": "keys and values: 12 K C L T n (1 - 1/n)",
}
"""What dominates each; P' are the matrices' parameters. The curves are the whole formulas."""


def slice_of(axis: str, devices: int) -> Experiment:
    """A layer of 256 channels and 64 experts, on a mesh of one axis. Muon trades matrices under all
    of them in the same way, and takes long to compile: `data` alone has it, with one iteration."""
    ops = Ops(**{field.name: "xla" for field in dataclasses.fields(Ops)})
    model = Model(
        vocab_size=2048,
        hidden_size=256,
        num_layers=1,
        layers="unroll",
        expert_width=128,
        attention=Attention(heads=4, kv_heads=2, head_dim=64),
        router=Router(experts=64, width=64),
        activation_dtype="bfloat16",
        remat="full",
        ops=ops,
    )
    long = axis == "context"
    train = Train(
        batch_size=ROWS * (1 if long else devices),
        sequence_length=TOKENS * (devices if long else 1),
    )
    return Experiment(
        name=f"slice_{axis}",
        mesh=f"{axis}={devices}",
        model=model,
        train=train,
        optim=Optim(
            kind="muon" if axis == "data" else "adamw",
            muon=Muon(iterations=1, implementation="xla"),
        ),
    )


def measured(compiler: Compiler, axis: str, devices: int) -> dict[str, Any]:
    """Bytes sent by the compiled program and by the formulas, by kind.

    Raises:
      UserError: it does not compile, in the compiler's words.
    """
    case = case_of(slice_of(axis, devices), compiler.target.platform)
    predicted = messages(case)
    report = compiler.compile(compiled.job(case))
    if not report.ok:
        raise UserError(f"{axis}={devices} does not compile: {report.error}")
    found = compiled.read(case, report, predicted)
    return {
        "axis": axis,
        "devices": devices,
        "seconds": report.seconds,
        "compiled": _sent(case, found.groups),
        "predicted": _sent(case, compiled.predicted_groups(predicted, case.sizes)),
        "warnings": list(found.warnings),
    }


def _sent(case: Case, groups: Iterable[compiled.Group]) -> dict[str, float]:
    """Bytes that leave a device, by kind; buffers of a ragged exchange count as if full."""
    found: dict[str, float] = {}
    for group in groups:
        if group.axes:
            message = Message("", group.kind, group.axes, group.count, group.bytes)
            found[group.kind] = found.get(group.kind, 0.0) + message.sent(case.sizes)
    return found


def draw(target: str, file: str, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Compiles all programs and writes the figure; returns its numbers.

    Raises:
      UserError: the compiler is not installed; a program does not compile; an unwritable file.
    """
    points = []
    with Compiler(target) as compiler:
        for axis in AXES:
            for devices in DEVICES:
                points.append(measured(compiler, axis, devices))
                last = points[-1]
                say(
                    f"{axis}={devices}: compiled in {last['seconds']:.1f} s, sends "
                    f"{sum(last['compiled'].values()) / 2**20:.2f} MiB, predicted "
                    f"{sum(last['predicted'].values()) / 2**20:.2f}"
                )
    try:
        Path(file).write_text(figure(points, target_of(target).title))
    except OSError as error:
        raise UserError(f"--scaling={file}: cannot write there: {error.strerror}") from None
    say(f"drawn: {file}")
    return {"target": target, "points": points}


def figure(points: list[dict[str, Any]], title: str) -> str:
    """The figure as SVG: a panel for each axis, dots compiled, lines predicted, a colour a kind."""
    from zaya_jax.report import draw as drawing

    def panels(whole: Any) -> None:
        for axes, axis in zip(whole.subplots(1, len(AXES), sharey=True), AXES, strict=True):
            own = [point for point in points if point["axis"] == axis]
            n = [point["devices"] for point in own]
            for number, kind in enumerate(KINDS):
                colour = drawing.COLOURS[number]
                law = [point["predicted"].get(kind, 0) / 2**20 for point in own]
                dots = [point["compiled"].get(kind, 0) / 2**20 for point in own]
                if max(law + dots) > 0.01:
                    axes.plot(n, law, color=colour, label=kind)
                    axes.plot(n, dots, "o", color=colour, markersize=4)
            axes.set_xscale("log", base=2)
            axes.set_yscale("log")
            axes.set_xticks(n, [str(devices) for devices in n])
            law_in_lines = LAWS[axis].replace(": ", ":\n")
            axes.set_title(f"{axis}\n{law_in_lines}", fontsize=7.5)
            # Plain numbers: a page's text has no exponents.
            axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
            axes.yaxis.set_minor_formatter("")
            axes.set_xlabel("devices")
            axes.legend(fontsize=7)
        whole.axes[0].set_ylabel("MiB that a device sends in a step")

    name = f"bytes against devices, compiled for {title}; lines are the plan's formulas"
    return drawing.standalone(drawing.canvas(name, panels, 3.6, 13.0))
