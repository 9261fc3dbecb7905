"""Every mesh computes what one device does: packed documents, Muon, balancing and all."""

from __future__ import annotations

import numpy as np
import pytest

from zaya_jax.config import Attention, Router

STEPS = 20
ALL_KINDS = "data=2,context=2,expert=2"
MESHES = (
    "data=8",
    "fsdp=8",
    "expert=8",
    "context=8",
    "data=4,fsdp=2",
    "data=2,expert=4",
    "data=2,context=4",
    "fsdp=2,expert=4",
    "fsdp=2,context=4",
    "context=2,expert=4",
    "data=2,fsdp=2,expert=2",
    "fsdp=2,context=2,expert=2",
    ALL_KINDS,
)
QUICK = {"optim": {"kind": "adamw"}}  # less to compile


@pytest.fixture(scope="session")
def one_device(on_devices):
    """`one_device(steps, dtype, **changes)`: what the first device alone comes to."""
    found = {}

    def get(**arguments):
        key = repr(arguments)
        if key not in found:
            found[key] = on_devices("train", mesh="", **arguments)
        return found[key]

    return get


def assert_same(found, wanted, tolerance, biases=0.0):
    """Losses, statistics and states to a tolerance, relative to the largest number of a leaf;
    loads exactly, and biases and the balancer's state to `biases`."""
    np.testing.assert_array_equal(found["loads"], wanted["loads"])
    np.testing.assert_allclose(found["losses"], wanted["losses"], rtol=tolerance)
    for name in ("grad_norm", "balance_loss", "z_loss", "entropy"):
        np.testing.assert_allclose(found[name], wanted[name], rtol=tolerance, err_msg=name)
    nats, targets, counts = found["evaluated"]
    np.testing.assert_allclose(nats, wanted["evaluated"][0], rtol=tolerance)
    assert targets == wanted["evaluated"][1]
    np.testing.assert_array_equal(counts, wanted["evaluated"][2])
    assert set(found["state"]) == set(wanted["state"])
    for name, value in wanted["state"].items():
        if "balance" in name or "biases" in name:
            np.testing.assert_allclose(
                found["state"][name], value, rtol=biases, atol=0, err_msg=name
            )
            continue
        bound = tolerance * max(float(np.max(np.abs(value))), 1.0)
        np.testing.assert_allclose(found["state"][name], value, rtol=0, atol=bound, err_msg=name)


def test_a_gradient_in_float64_is_that_of_one_device(on_devices):
    """Of every parameter, with the loads of all layers; steps take minutes to compile."""
    found, wanted = (on_devices("gradient", mesh=mesh) for mesh in (ALL_KINDS, ""))
    assert set(found) == set(wanted) and any("counts" in name for name in wanted)
    for name, value in wanted.items():
        bound = 0 if "counts" in name else 1e-9 * np.max(np.abs(value))
        np.testing.assert_allclose(found[name], value, rtol=0, atol=bound, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("mesh", MESHES)
def test_twenty_steps_in_float64_are_those_of_one_device(on_devices, one_device, mesh):
    these = {"steps": STEPS, "dtype": "float64"}
    wanted = one_device(**these)
    assert_same(on_devices("train", mesh=mesh, **these), wanted, 1e-9)
    assert len({tuple(load.ravel()) for load in wanted["loads"]}) > 1  # loads did change


@pytest.mark.slow
@pytest.mark.parametrize("mesh", MESHES)
def test_float32_stays_close(on_devices, one_device, mesh):
    """The first step in all that it changes, the curve of losses after it."""
    first = {"steps": 1, "dtype": "float32"}
    assert_same(on_devices("train", mesh=mesh, **first), one_device(**first), 1e-5)
    these = {"steps": STEPS, "dtype": "float32"}
    wanted, found = one_device(**these), on_devices("train", mesh=mesh, **these)
    np.testing.assert_allclose(found["losses"], wanted["losses"], atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("mesh", ["data=2,fsdp=2", "fsdp=2,context=2,expert=2"])
@pytest.mark.parametrize(
    "changes",
    [
        {"train": {"microbatches": 2}},
        {"model": {"layers": "unroll", "remat": "none"}},
        {"parallel": {"room": 0.25}},
    ],
    ids=["microbatches", "unrolled", "many turns"],
)
def test_however_it_is_computed(on_devices, one_device, mesh, changes):
    """Unrolled, XLA fuses the biases' update with other things on every mesh: its last bits differ,
    by 2e-15 after four steps."""
    these = {"steps": 4, "dtype": "float64", **QUICK, **changes}
    assert_same(on_devices("train", mesh=mesh, **these), one_device(**these), 1e-9, biases=1e-12)


@pytest.mark.slow
def test_top_2_with_the_skip_class_passing_through(on_devices, one_device):
    router = Router(experts=8, width=16, top_k=2, skip="passthrough")
    these = {"steps": 4, "dtype": "float64", "model": {"router": router}, **QUICK}
    assert_same(on_devices("train", mesh="data=2,expert=4", **these), one_device(**these), 1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["gqa", "mla"])
def test_other_kinds_of_attention_see_whole_rows(on_devices, one_device, kind):
    attention = Attention(kind=kind, heads=4, kv_heads=2, head_dim=8, kv_rank=16)
    these = {"steps": 4, "dtype": "float64", "model": {"attention": attention}, **QUICK}
    assert_same(on_devices("train", mesh="data=2,context=4", **these), one_device(**these), 1e-9)


@pytest.mark.parametrize("mesh", ["data=2,fsdp=2,expert=2"])
def test_muons_updates_are_those_of_whole_matrices(on_devices, mesh):
    found = on_devices("orthogonalized", mesh=mesh)
    assert any("experts" in path for path in found) and max(found.values()) < 1e-12


def test_parameters_and_optimizer_are_divided_at_rest(on_devices):
    """ZeRO: no device keeps a whole matrix, its momentum or its moments."""
    places = on_devices("places", mesh=ALL_KINDS)
    whole = {name for name, spec in places.items() if "data" not in spec}
    small = ("step", "cursor", "faults", "biases", "balance", "count")
    assert all(any(word in name for word in small) for name in whole), sorted(whole)
    experts = [spec for name, spec in places.items() if "gate_up" in name]
    assert experts and all("expert" in spec for spec in experts)
