"""The line, the table, and the mistakes that are found before anything is compiled."""

from __future__ import annotations

import dataclasses
import math
from runpy import run_path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import PartitionSpec as P

from zaya_jax import config
from zaya_jax.config import Attention, Experiment, Model, Router, Train
from zaya_jax.config.mesh import AXES, parse
from zaya_jax.errors import UserError
from zaya_jax.model import functional
from zaya_jax.parallel.rules import place


def problems(**fields) -> str:
    """The message about an experiment, empty where there is none."""
    data = config.to_dict(Experiment(train=Train(batch_size=64, sequence_length=4096)))
    for name, value in fields.items():
        *sections, field = name.split("__")
        node = data
        for section in sections:
            node = node[section]
        node[field] = value
    try:
        config.from_dict(data)
    except UserError as error:
        return str(error)
    return ""


def test_a_line_is_read_in_any_order():
    assert parse("") == dict.fromkeys(AXES, 1)
    assert parse(" expert=2, data=4") == {"data": 4, "fsdp": 1, "context": 1, "expert": 2}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("dta=2", "no axis 'dta'; did you mean data?"),
        ("data=2,data=2", "'data' is there twice"),
        ("data=0", "data has '0'; expected AXIS=DEVICES"),
        ("data", "data has 'no size'; expected AXIS=DEVICES"),
        ("data=-1", "data has '-1'"),
        ("data=2.5", "data has '2.5'"),
        ("8", "no axis '8'"),
    ],
)
def test_a_line_that_is_none(line, message):
    with pytest.raises(UserError) as error:
        parse(line)
    assert message in str(error.value)
    assert message in problems(mesh=line)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"mesh": "expert=5"}, "expert = 5 does not divide model.router.experts = 16"),
        ({"mesh": "fsdp=3"}, "fsdp = 3 does not divide model.hidden_size = 2048"),
        ({"mesh": "data=48"}, "train.batch_size = 64 cannot be divided into data 48 parts"),
        (
            {"mesh": "data=32,expert=2", "train__microbatches": 2},
            "into data 32 x expert 2 parts of train.microbatches = 2 each: expected a multiple "
            "of 128",
        ),
        (
            {"mesh": "context=3"},
            "context = 3 cuts a row into 6 chunks, two a rank; train.sequence_length = 4096 is no",
        ),
        (
            {"mesh": "context=8", "train__sequence_length": 16},
            "leaves chunks of 1 tokens of train.sequence_length = 16; the convolutions read 2",
        ),
        ({"parallel__all_to_all": "ragd"}, "did you mean ragged?"),
        ({"parallel__room": 0.0}, "parallel.room = 0.0: expected a positive number"),
    ],
)
def test_what_a_mesh_does_not_divide(fields, message):
    assert message in problems(**fields)


@pytest.mark.parametrize(
    ("stage", "ranks"), [("pretrain_1", 1), ("pretrain_2", 1), ("midtrain_32k", 2), ("sft_131k", 8)]
)
def test_stages_have_the_reports_context_ranks(stage, ranks):
    """On 1,024 devices; what they do not divide would be refused here."""
    found = config.freeze(run_path(f"experiments/stages/{stage}.py")["get_config"]())
    sizes = parse(found.mesh)
    assert sizes["context"] == ranks and math.prod(sizes.values()) == 1024
    assert not problems(mesh="data=8,fsdp=2,context=8,expert=4", train__sequence_length=131_072)


def test_more_devices_than_there_are(on_devices):
    message = on_devices("mistake", mesh="data=4,expert=4")
    assert "data 4 x expert 4 takes 16 devices, and jax has 8 (cpu)" in message
    assert "--xla_force_host_platform_device_count=16" in message
    assert not on_devices("mistake", mesh="data=2,expert=4")
    assert "expert = 3 does not divide" in on_devices("mistake", mesh="expert=3")


MODEL = Model(num_layers=4)


def axes_of(entry) -> tuple[str, ...]:
    """Of one dimension of a `PartitionSpec`."""
    return (entry,) if isinstance(entry, str) else entry or ()


@given(
    sizes=st.fixed_dictionaries({axis: st.sampled_from([1, 2, 4, 8, 3]) for axis in AXES}),
    lora=st.booleans(),
)
def test_every_parameter_has_a_place(sizes, lora):
    """Shards are whole numbers, no axis divides twice, and each divides or keeps copies."""
    declared = functional.declarations(MODEL)
    if lora:
        from zaya_jax import lora as adapters

        targets = config.Lora(rank=8, targets=("q", "v", "experts"))
        declared = adapters.declarations(MODEL, targets)
    sizes = sizes | {"expert": min(sizes["expert"], 8) if sizes["expert"] != 3 else 2}
    for path, found in declared.items():
        where = place(found, sizes)
        used = [axis for entry in where.rest for axis in axes_of(entry)]
        assert len(used) == len(set(used)), path
        assert sorted([*used, *where.copies]) == sorted(a for a in AXES if sizes[a] > 1), path
        for size, entry in zip(found.shape, where.rest, strict=True):
            assert size % math.prod(sizes[axis] for axis in axes_of(entry)) == 0, path
        assert {axis for entry in where.use for axis in axes_of(entry)} <= {"fsdp", "expert"}


def test_what_a_thousand_devices_keep_of_the_8b():
    """ZeRO-1: a 1,024th, and in full what has no dimension that 1,024 divides: the routers'
    hidden layers and the grouped convolutions, 18.8M of 8.84B parameters."""
    sizes = parse("data=1024")
    declared = functional.declarations(Model())
    here = {
        path: math.prod(found.shape) / math.prod(sizes[a] for a in place(found, sizes).once)
        for path, found in declared.items()
    }
    whole = sum(math.prod(found.shape) for found in declared.values())
    assert whole / 1024 <= sum(here.values()) < whole / 1024 + 19e6


def test_experts_are_divided_and_a_routers_classes_are_not():
    model = dataclasses.replace(
        MODEL, attention=Attention(), router=Router(experts=16, skip="none")
    )
    declared = functional.declarations(model)
    sizes = parse("expert=8,data=2")
    assert place(declared["layers.0.experts.gate_up"], sizes).rest == P("expert", "data", None)
    assert place(declared["stacks.0.experts.down"], sizes).experts == 1
    out = place(declared["layers.0.router.out"], sizes)
    assert out.experts is None and out.rest == P(("data", "expert"), None)
