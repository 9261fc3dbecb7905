"""What the compiled step sends between devices, and what it must never send."""

from __future__ import annotations

import math

import pytest

from zaya_jax.aot.collectives import collectives
from zaya_jax.config.mesh import parse

pytestmark = pytest.mark.xdist_group("mesh")

MESH = "data=2,context=2,expert=2"
# Of tests.parallel.programs: hidden 32, experts 8 of width 16, 16 rows of 32 tokens.
D, F, E, ROWS, LENGTH = 32, 16, 8, 16, 32


@pytest.fixture(scope="module")
def sent(on_devices):
    """The collectives of the step, by mesh."""
    found = {}

    def get(mesh):
        if mesh not in found:
            found[mesh] = collectives(on_devices("compiled", mesh=mesh), parse(mesh))
        return found[mesh]

    return get


def of(found, kind, *axes):
    return [one for one in found if one.kind == kind and one.axes == axes]


def test_tokens_travel_by_all_to_all_and_halos_by_permute(sent):
    found = sent(MESH)
    tokens = [
        one
        for one in of(found, "all-to-all", "expert")
        if any(D in shape or 2 * D in shape for _, shape in one.shapes)
    ]
    assert tokens, "no all-to-all of tokens over expert"
    assert of(found, "collective-permute", "context")
    keys = [one for one in of(found, "all-gather", "context") if one.times > 1]
    assert keys, "no gather of keys and values in the scan over layers"


def test_weights_of_experts_are_never_gathered_over_their_axis(sent):
    """Whatever has the size of an expert's matrix stays where it is, also in the optimizer."""
    for mesh in (MESH, "fsdp=2,expert=4"):
        for one in sent(mesh):
            if one.kind in ("all-gather", "all-reduce") and "expert" in one.axes:
                for _, shape in one.shapes:
                    whole = math.prod(shape) >= E * D * F and set(shape) & {F, 2 * F} and E in shape
                    assert not whole, one


def test_activations_are_never_whole(sent):
    """No collective gives a device the activations of all tokens, or of all of its rows' tokens
    but in the width of keys and values."""
    for mesh in (MESH, "fsdp=2,expert=4"):
        sizes = parse(mesh)
        local = ROWS * LENGTH // math.prod(sizes.values())
        for one in sent(mesh):
            if one.kind == "all-gather" and one.axes:
                for _, shape in one.shapes:
                    assert not (shape and shape[-1] == D and math.prod(shape[:-1]) > local * 2), one


def test_zero_gathers_once_and_fsdp_layer_by_layer(sent):
    once = [one for one in of(sent(MESH), "all-gather", "data") if one.times > 1]
    assert not once
    layers = [one for one in of(sent("fsdp=2,expert=4"), "all-gather", "fsdp") if one.times > 1]
    assert layers
    assert of(sent("fsdp=2,expert=4"), "reduce-scatter", "fsdp")
