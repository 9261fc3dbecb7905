"""What the compiled programs send between devices, and what they never send."""

from __future__ import annotations

import math

import pytest

from tests.parallel import programs
from zaya_jax.aot.collectives import collectives
from zaya_jax.config.mesh import parse
from zaya_jax.model import functional
from zaya_jax.parallel.rules import place

MESH = "data=2,context=2,expert=2"
MODEL = programs.experiment().model
D, C = MODEL.hidden_size, MODEL.attention.head_dim
PLACES = functional.declarations(MODEL)


@pytest.fixture(
    scope="module",
    params=[
        (MESH, "gradient"),  # the one that test_equal runs
        pytest.param((MESH, "step"), marks=pytest.mark.slow),
        pytest.param(("fsdp=2,expert=4", "step"), marks=pytest.mark.slow),
    ],
    ids=str,
)
def program(request):
    return request.param


@pytest.fixture(scope="module")
def mesh(program):
    return program[0]


@pytest.fixture(scope="module")
def sent(on_devices, program):
    """The collectives of the program."""
    mesh, what = program
    return collectives(on_devices("compiled", mesh=mesh, what=what), parse(mesh))


def of(found, kind, *axes):
    return [one for one in found if one.kind == kind and one.axes == axes]


def shapes_in_use(mesh):
    """Of each parameter on one device, while the network computes: whole or a layer of a stack, and
    what of it `fsdp` leaves to the device between a layer's use and the next."""
    sizes, found = parse(mesh), {}
    for path, declared in PLACES.items():
        shape, at = list(declared.shape), place(declared, sizes)
        if at.experts is not None:
            shape[at.experts] //= sizes["expert"]
        parts = [shape]
        if at.in_use and at.divided is not None:
            parts.append(list(shape))
            parts[1][at.divided] //= math.prod(sizes[axis] for axis in at.in_use)
        for part in parts:
            found.setdefault(sides(part), []).append(path)
            if isinstance(declared.layers, tuple):
                found.setdefault(sides(part[1:]), []).append(path)
    return found


def sides(shape) -> tuple[int, ...]:
    """Of an array, however XLA has transposed it."""
    return tuple(sorted(shape))


def test_every_collective_spans_axes_of_the_mesh(sent):
    assert sent and all(one.axes for one in sent)


def test_tokens_travel_by_all_to_all(sent):
    tokens = [
        one
        for one in of(sent, "all-to-all", "expert")
        if any(len(shape) == 2 and shape[1] in (D, 2 * D) for _, shape in one.shapes)
    ]
    assert any(one.times > 1 for one in tokens)  # in the scan over layers


def test_no_gather_but_of_parameters_and_of_keys_and_values(sent, mesh):
    """And those of experts never over their axis."""
    shapes = shapes_in_use(mesh)
    for one in sent:
        if one.kind != "all-gather":
            continue
        for dtype, shape in one.shapes:
            if dtype.startswith(("s", "u")):
                assert math.prod(shape) <= programs.ROWS * programs.LENGTH, one  # segments, loads
            elif one.axes == ("context",) and shape[-1] == 2 * C:
                assert shape[-2] == MODEL.attention.kv_heads, one
            else:
                assert sides(shape) in shapes, one
                own = all(".experts." in path for path in shapes[sides(shape)])
                assert not (own and "expert" in one.axes), one


def test_zero_gathers_once_and_fsdp_layer_by_layer(sent, mesh):
    sizes = parse(mesh)
    assert all(one.times == 1 for one in sent if one.kind == "all-gather" and "data" in one.axes)
    if sizes["fsdp"] > 1:
        layers = [one for one in of(sent, "all-gather", "fsdp") if one.times > 1]
        assert layers and [one for one in of(sent, "reduce-scatter", "fsdp") if one.times > 1]


def test_halos_travel_by_permute_and_do_not_grow(sent, mesh):
    halos = of(sent, "collective-permute", "context")
    assert bool(halos) == (parse(mesh)["context"] > 1)
    kernels, heads = MODEL.attention.conv_kernels, MODEL.attention.heads + MODEL.attention.kv_heads
    latents = (sum(kernels) - len(kernels)) * heads * C + MODEL.attention.kv_heads * C // 2
    assert {shape[-1] for one in halos for _, shape in one.shapes} <= {latents}
