"""Bytes on a device: exact between steps, and monotone in what makes a step larger."""

from __future__ import annotations

import dataclasses
import math

import jax
import pytest

from tests.plan.small import experiment, planned, with_model
from zaya_jax.config import Lora
from zaya_jax.config.mesh import AXES, parse
from zaya_jax.parallel.layout import OnMesh
from zaya_jax.plan import cluster, plan
from zaya_jax.plan.memory import kept
from zaya_jax.train import state as train_state

MESHES = ["", "data=4", "fsdp=4", "data=2,fsdp=2,expert=2", "context=2,expert=4"]


def at_rest(these) -> dict[str, int]:
    """Bytes of the state's shards on one device, as `OnMesh` lays them."""
    sizes = parse(these.mesh)
    mesh = jax.sharding.AbstractMesh(tuple(sizes[axis] for axis in AXES), AXES)
    state = train_state.abstract(these)
    places = OnMesh(these, mesh).shardings(state)

    def size(part, place) -> int:
        sizes = jax.tree.map(
            lambda x, at: math.prod(at.shard_shape(x.shape)) * x.dtype.itemsize, part, place
        )
        return sum(jax.tree.leaves(sizes))

    return {
        "parameters": size(state.params, places.params),
        "optimizer": size(state.optimizer, places.optimizer),
    }


@pytest.mark.parametrize("mesh", MESHES[1:])
@pytest.mark.parametrize("kind", ["muon", "adamw"])
def test_what_lies_between_steps_is_exact(mesh, kind):
    these = experiment(mesh, optim={"kind": kind})
    found, wanted = plan(these, cluster("h100")).memory.rest, at_rest(these)
    assert found["parameters"] == wanted["parameters"]
    # Counters of optimizer steps are a few bytes more.
    assert 0 <= wanted["optimizer"] - found["optimizer"] < 200


def test_without_momentum_muon_keeps_nothing():
    kept_by = {
        momentum: planned("data=4", optim={"muon": muon(momentum)}).memory.rest["optimizer"]
        for momentum in (0.0, 0.95)
    }
    # The rest of the parameters are AdamW's in both.
    assert kept_by[0.0] < kept_by[0.95] / 2


def muon(momentum: float):
    return dataclasses.replace(experiment("").optim.muon, momentum=momentum)


@pytest.mark.parametrize("mesh", MESHES)
def test_policies_keep_less_the_more_they_compute_again(mesh):
    saved = [
        plan(with_model(experiment(mesh), remat=policy), cluster("mi300x")).memory.gradient[
            "saved activations"
        ]
        for policy in ("none", "dots", "full")
    ]
    assert saved[0] > saved[1] > saved[2] > 0


def test_more_rows_take_more_and_microbatches_less():
    few, many = (planned("data=4", train={"batch_size": rows}).memory for rows in (16, 64))
    assert few.total < many.total
    cut = planned("data=4", train={"batch_size": 64, "microbatches": 4}).memory
    assert cut.gradient["saved activations"] == few.gradient["saved activations"]
    # A second set of gradients is what accumulation costs.
    assert cut.gradient["gradients in use"] == 2 * few.gradient["gradients in use"]


def test_adapters_take_no_optimizer_for_the_base():
    these = dataclasses.replace(
        experiment("data=4", optim={"kind": "adamw"}), lora=Lora(rank=2, targets=("q", "o"))
    )
    found = plan(these, cluster("mi300x"))
    # q and o of three layers, [32, 32] each, of rank 2; two moments; a quarter on each device.
    assert found.memory.rest["optimizer"] == 2 * 3 * 2 * (2 * 32 + 2 * 32) * 4 // 4
    assert found.memory.gradient["gradients in use"] == 3 * 2 * (2 * 32 + 2 * 32) * 4


def test_what_a_layer_keeps_is_the_sum_of_what_it_makes():
    """Float32; 32 channels, 4 + 2 heads of 8, router of 16, 9 classes, an expert of 16."""
    stream, norms = 2 * 32 * 4, 2 * 32 * 4
    attention = (2 * (32 + 16 + 16) + 32 + 32) * 4 + 4 * 4
    router = 4 * 16 * 4 + 2 * 9 * 4
    experts = (2 * 32 + 3 * 16 + 32) * 4
    assert kept(planned("").case) == stream + norms + attention + router + experts


def test_gradients_on_their_way_to_rest_are_there_in_both_dtypes():
    """Matrices of three layers: 4,240 numbers of attention and router, 8 experts of 1,536."""
    these = with_model(experiment("data=4"), activation_dtype="bfloat16")
    matrices = 3 * (4_240 + 8 * 1_536)
    found = plan(these, cluster("mi300x")).memory
    assert found.scatter["the same, as parameters"] == 4 * matrices
    parts = dataclasses.replace(these.train, microbatches=2)
    summed = plan(dataclasses.replace(these, train=parts), cluster("mi300x")).memory
    assert summed.scatter["the same, as parameters"] == 0  # they are summed in float32
