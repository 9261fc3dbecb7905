"""The laws that bytes follow as devices are added, and the figure of them."""

from __future__ import annotations

import pytest

from zaya_jax.plan import case_of, compiled, scaling
from zaya_jax.plan.traffic import GATHER, PERMUTE, RAGGED, SCATTER, messages


def sent(axis: str, devices: int, kind: str) -> float:
    """Bytes that leave a device for the messages of one kind, as the formulas have it."""
    case = case_of(scaling.slice_of(axis, devices))
    assert case.tokens == scaling.ROWS * scaling.TOKENS  # a device keeps its work
    return sum(one.sent(case.sizes) for one in messages(case) if one.kind == kind)


@pytest.mark.parametrize(
    ("axis", "kind", "law"),
    [
        ("data", GATHER, lambda n: 1 - 1 / n),
        ("data", SCATTER, lambda n: 1 - 1 / n),
        ("fsdp", GATHER, lambda n: 1 - 1 / n),
        ("expert", RAGGED, lambda n: 1 - 1 / n),
        ("context", PERMUTE, lambda n: 1),
    ],
)
@pytest.mark.parametrize("devices", scaling.DEVICES[1:])
def test_bytes_grow_by_their_law(axis, kind, law, devices):
    two, many = sent(axis, 2, kind), sent(axis, devices, kind)
    assert many / two == pytest.approx(law(devices) / law(2), rel=0.01)


def test_keys_and_values_grow_with_the_row():
    def of(devices: int) -> float:
        case = case_of(scaling.slice_of("context", devices))
        return sum(one.sent(case.sizes) for one in messages(case) if one.what == "keys and values")

    assert of(64) / of(2) == pytest.approx(63)  # n - 1 others, each with as many tokens


def test_the_figure_has_a_panel_for_each_axis_and_a_dot_for_each_program():
    points = []
    for axis in ("data", "fsdp", "context", "expert"):
        for devices in (2, 4):
            case = case_of(scaling.slice_of(axis, devices))
            groups = compiled.predicted_groups(messages(case), case.sizes)
            found = scaling._sent(case, groups)
            points.append({"axis": axis, "devices": devices, "compiled": found, "predicted": found})
    drawn = scaling.figure(points, "AMD Instinct MI300X")
    assert drawn.startswith("<?xml") and "MiB that a device sends in a step" in drawn
    for axis, law in scaling.LAWS.items():
        assert f">{axis}<" in drawn and law.split(":")[0] in drawn
