"""The roofline: what a message waits for, and the file that edits the cluster."""

from __future__ import annotations

import dataclasses
import json

import pytest

from tests.plan.small import planned
from zaya_jax.errors import UserError
from zaya_jax.plan import cluster
from zaya_jax.plan.traffic import Message
from zaya_jax.plan.work import neighbours, seconds_of

MIB = 2**20
SIZES = {"data": 4, "fsdp": 1, "context": 2, "expert": 4}


@pytest.mark.parametrize(
    ("axes", "sharing"),
    [
        (("expert",), 4),  # the last axis varies fastest
        (("context",), 2),
        (("context", "expert"), 8),
        (("data",), 1),  # the next device along it is a node further
        (("data", "context", "expert"), 8),
    ],
)
def test_which_devices_share_a_node(axes, sharing):
    assert neighbours(axes, SIZES, node=8) == sharing


def exact(target: str, **changes):
    """A cluster without latency that reaches its peaks."""
    plain = dict(links_reached=1.0, link_latency=0.0, network_latency=0.0)
    return dataclasses.replace(cluster(target), **plain, **changes)


@pytest.mark.parametrize(
    ("target", "kind", "axes", "inside", "outside"),
    [
        # Of 4 devices each passes on 3/4. H100's switch gives a few devices the whole link; of
        # MI300X's seven they have three.
        ("h100", "all-gather", ("expert",), 0.75 / 450e9, 0),
        ("mi300x", "all-gather", ("expert",), 0.75 / (448e9 * 3 / 7), 0),
        ("h100", "all-reduce", ("expert",), 1.5 / 450e9, 0),
        ("mi300x", "collective-permute", ("context",), 1 / 64e9, 0),
        # Four nodes, one device of each: 3/4 of the buffer come over one NIC.
        ("h100", "all-gather", ("data",), 0, 0.75 / 50e9),
        # All 32 devices: a node's share comes over its eight NICs, and is passed on inside.
        ("h100", "all-gather", ("data", "context", "expert"), 7 / 8 / 450e9, 0.75 / (8 * 50e9)),
        # Of an exchange every device sends 24/32 of its own to other nodes over its own NIC.
        ("h100", "all-to-all", ("data", "context", "expert"), 7 / 32 / 450e9, 0.75 / 50e9),
    ],
)
def test_seconds_of_a_message(target, kind, axes, inside, outside):
    message = Message("", kind, axes, 1, MIB)
    found = seconds_of(message, SIZES, exact(target))
    assert found == pytest.approx((MIB * inside, MIB * outside))


def test_each_message_waits_for_its_latency():
    slow = dataclasses.replace(exact("h100"), link_latency=1.0)
    inside, _ = seconds_of(Message("", "all-gather", ("expert",), 7, 0), SIZES, slow)
    assert inside == 7


def test_a_step_is_its_parts_and_what_does_not_hide(tmp_path):
    file = tmp_path / "cluster.json"
    whole = planned("data=8").time
    parts = sum(max(pair) for pair in whole.parts.values())
    assert whole.seconds == pytest.approx(parts + whole.links + whole.network)
    file.write_text(json.dumps({"overlap": 1.0}))
    from tests.plan.small import experiment
    from zaya_jax.plan import plan

    hidden = plan(experiment("data=8"), cluster("mi300x", str(file))).time
    assert hidden.seconds == pytest.approx(max(parts, whole.links + whole.network))


def test_a_file_edits_the_cluster(tmp_path):
    file = tmp_path / "mine.json"
    file.write_text('{"network": 25e9, "matrix": {"float32": 1e12}}')
    found, plain = cluster("h100", str(file)), cluster("h100")
    assert (found.network, found.matrix["float32"]) == (25e9, 1e12)
    assert found.matrix["bfloat16"] == plain.matrix["bfloat16"]
    assert dataclasses.replace(found, network=plain.network, matrix=plain.matrix) == plain


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('{"netwrk": 1}', "no field 'netwrk'; did you mean network?"),
        ('{"network": "fast"}', "network = 'fast': expected a number above 0"),
        ('{"network": -1}', "network = -1: expected a number above 0"),
        ('{"usable": 1.5}', "usable = 1.5: expected a share from 0 to 1"),
        ('{"matrix": {"bfloat16": 0}}', "expected a number above 0"),
        ('{"matrix": 1e15}', "matrix is 1000000000000000.0; expected rates by dtype"),
        ('{"node": 2.5}', "node = 2.5: expected a whole number"),
        ('{"switched": 1}', "switched = 1: expected true or false"),
        ('{"network": NaN}', "network = nan"),
        ("[1]", "expected an object"),
        ("{", "line 1"),
    ],
)
def test_a_wrong_file_is_told(tmp_path, text, told):
    file = tmp_path / "mine.json"
    file.write_text(text)
    with pytest.raises(UserError, match="--hardware=") as error:
        cluster("h100", str(file))
    assert told in str(error.value)


def test_a_missing_file_and_an_unknown_target_are_told(tmp_path):
    with pytest.raises(UserError, match="No such file"):
        cluster("h100", str(tmp_path / "none.json"))
    with pytest.raises(UserError, match="no target 'mi300'; did you mean mi300x"):
        cluster("mi300")
