"""A network that cannot be is refused when the config is frozen, and no other."""

from __future__ import annotations

import dataclasses

import pytest

from zaya_jax.config import Model, check_model


def mistakes(**sections):
    """Messages about the default model with the fields of its sections replaced."""
    model = Model()
    for name, fields in sections.items():
        part = dataclasses.replace(getattr(model, name), **fields)
        model = dataclasses.replace(model, **{name: part})
    return list(check_model(model))


@pytest.mark.parametrize(
    ("attention", "message"),
    [
        (dict(heads=7), "heads = 7: not a multiple of kv_heads = 2"),
        (dict(kind="gqa", heads=7), "heads = 7: not a multiple of kv_heads = 2"),
        (dict(kv_heads=1, head_dim=5, rope_fraction=0.4), "kv_heads * head_dim must be even"),
        (dict(conv_kernels=(2, 2, 2)), "expected at most two widths"),
        (dict(conv_kernels=(0,)), "expected at most two widths of at least 1"),
        (dict(kind="mla", rope_fraction=1.0), "rope_fraction = 1.0: mla makes the other channels"),
        (dict(kind="mla", rope_fraction=0.0), "rope_fraction = 0.0"),
        (dict(kind="mla", kv_rank=0), "kv_rank = 0: expected a positive number"),
        (dict(kind="mla", q_rank=-1), "q_rank = -1: expected a width, or 0"),
    ],
)
def test_contradictions_of_attention_are_named(attention, message):
    (found,) = mistakes(attention=attention)
    assert message in found and found.startswith("model.attention.")


@pytest.mark.parametrize(
    ("router", "message"),
    [
        (dict(depth=-1), "model.router.depth = -1: expected a number of hidden layers"),
        (dict(top_k=17), "model.router.top_k = 17: more than model.router.experts = 16"),
        (dict(top_k=0), "model.router.top_k = 0: expected a positive number"),
    ],
)
def test_contradictions_of_the_router_are_named(router, message):
    (found,) = mistakes(router=router)
    assert message in found


@pytest.mark.parametrize(
    "attention",
    [
        dict(kind="mha", heads=7),
        dict(kind="mla", heads=7),
        dict(kind="gqa", kv_heads=1, head_dim=5, rope_fraction=0.4),
        dict(conv_kernels=()),
        dict(conv_kernels=(3,), qk_mean=False, value_shift=False),
        dict(rope_fraction=1.0),
    ],
    ids=str,
)
def test_what_a_kind_does_not_ask_for_is_no_mistake(attention):
    assert mistakes(attention=attention) == []


def test_every_depth_of_the_router_is_accepted():
    assert all(mistakes(router=dict(depth=depth)) == [] for depth in range(4))
