"""Every mesh computes what one device does: packed documents, Muon, balancing and all."""

from __future__ import annotations

import numpy as np
import pytest

pytestmark = pytest.mark.xdist_group("mesh")

STEPS = 20
FAST = ("data=2,fsdp=2,expert=2", "context=2,expert=2")
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
    "data=2,context=2,expert=2",
    "fsdp=2,context=2,expert=2",
)


@pytest.fixture(scope="session")
def one_device(on_devices):
    """Results of one device, by precision."""
    found = {}

    def get(dtype, steps, **changes):
        key = dtype, steps, repr(changes)
        if key not in found:
            found[key] = on_devices("train", mesh="", steps=steps, dtype=dtype, **changes)
        return found[key]

    return get


def assert_same(found, wanted, tolerance):
    """States and losses to a tolerance, relative to the largest number of a leaf; loads exactly."""
    np.testing.assert_array_equal(found["loads"], wanted["loads"])
    np.testing.assert_allclose(found["losses"], wanted["losses"], rtol=tolerance)
    for name in ("grad_norm", "balance_loss", "entropy"):
        np.testing.assert_allclose(found[name], wanted[name], rtol=tolerance, err_msg=name)
    nats, targets, counts = found["evaluated"]
    np.testing.assert_allclose(nats, wanted["evaluated"][0], rtol=tolerance)
    assert targets == wanted["evaluated"][1]
    np.testing.assert_array_equal(counts, wanted["evaluated"][2])
    assert set(found["state"]) == set(wanted["state"])
    for name, value in wanted["state"].items():
        if "balance" in name or "biases" in name:
            np.testing.assert_array_equal(found["state"][name], value, err_msg=name)
            continue
        bound = tolerance * max(float(np.max(np.abs(value))), 1.0)
        np.testing.assert_allclose(found["state"][name], value, rtol=0, atol=bound, err_msg=name)


@pytest.mark.parametrize(
    "mesh", [*FAST, *(pytest.param(mesh, marks=pytest.mark.slow) for mesh in MESHES)]
)
def test_twenty_steps_in_float64_are_those_of_one_device(on_devices, one_device, mesh):
    wanted = one_device("float64", STEPS)
    found = on_devices("train", mesh=mesh, steps=STEPS, dtype="float64")
    assert_same(found, wanted, 1e-9)
    assert len({tuple(load.ravel()) for load in wanted["loads"]}) > 1  # loads did change


@pytest.mark.slow
@pytest.mark.parametrize("mesh", [*FAST, *MESHES])
def test_float32_stays_close(on_devices, one_device, mesh):
    wanted = one_device("float32", STEPS)
    found = on_devices("train", mesh=mesh, steps=STEPS, dtype="float32")
    assert found["losses"][0] == pytest.approx(wanted["losses"][0], rel=1e-5)
    np.testing.assert_allclose(found["losses"], wanted["losses"], atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("mesh", ["data=2,fsdp=2", "fsdp=2,context=2,expert=2"])
@pytest.mark.parametrize(
    "changes",
    [
        {"train": {"microbatches": 2, "batch_size": 16}},
        {"optim": {"kind": "adamw"}},
        {"model": {"layers": "unroll", "remat": "none"}},
        {"parallel": {"room": 0.25}},
    ],
    ids=["microbatches", "adamw", "unrolled", "many turns"],
)
def test_however_it_is_computed(on_devices, one_device, mesh, changes):
    wanted = one_device("float64", 4, **changes)
    assert_same(on_devices("train", mesh=mesh, steps=4, dtype="float64", **changes), wanted, 1e-9)


@pytest.mark.slow
def test_top_2_with_the_skip_class_passing_through(on_devices, one_device):
    from zaya_jax.config import Router

    changes = {"model": {"router": Router(experts=8, width=16, top_k=2, skip="passthrough")}}
    wanted = one_device("float64", 4, **changes)
    found = on_devices("train", mesh="data=2,expert=4", steps=4, dtype="float64", **changes)
    assert_same(found, wanted, 1e-9)


def test_parameters_and_optimizer_are_divided_at_rest(on_devices, one_device):
    """ZeRO: no device keeps a whole matrix, its momentum or its moments."""
    places = on_devices("train", mesh=FAST[0], steps=1, dtype="float64")["places"]
    whole = {name for name, spec in places.items() if "fsdp" not in spec and "data" not in spec}
    small = ("step", "cursor", "faults", "biases", "balance", "count", "temperature")
    assert all(any(word in name for word in small) for name in whole), sorted(whole)
    experts = [spec for name, spec in places.items() if "gate_up" in name]
    assert experts and all("expert" in spec for spec in experts)
