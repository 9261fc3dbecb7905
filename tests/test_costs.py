"""What a config costs, against counts by hand."""

from __future__ import annotations

import dataclasses

import pytest

from tests.train.conftest import MODEL
from zaya_jax import costs
from zaya_jax.config import Experiment, Lora, Train
from zaya_jax.costs import Costs
from zaya_jax.model.attention.gqa import GQA

S = 8  # tokens of a row; a query sees (S + 1) / 2 of them on average


def experiment(router=None, lora=None, **attention) -> Experiment:
    """Two layers of 32 channels, 2 query heads of 16, 4 experts of width 32 (see `MODEL`)."""
    model = dataclasses.replace(
        MODEL,
        num_layers=2,
        attention=dataclasses.replace(MODEL.attention, **attention),
        router=dataclasses.replace(MODEL.router, **(router or {"kind": "linear"})),
    )
    return Experiment(model=model, train=Train(sequence_length=S), lora=lora or Lora())


# Weights of attention in one layer: 32 x 32 for queries and output, and what makes keys and values.
OUTER = 2 * 32 * 32
ATTENTION = {
    "cca": OUTER + 2 * 32 * 16 + (2 * 48 + 48) + (2 * 3 * 16 * 16 + 48) + 1,
    "gqa": OUTER + 2 * 32 * 16,
    "mha": OUTER + 2 * 32 * 32,
    "mla": OUTER + 32 * 24 + 24 + 32 * 8 + 24 * 2 * 8 + 24 * 2 * 16,
}
# Beside it: two norms, two merges of four vectors, a linear router; then 4 experts, of which 1 is
# active. Outside the layers: the embedding, its scale and bias, the last norm.
REST, EXPERT, OUTSIDE = 2 * 32 + 8 * 32 + 32 * 5, 32 * 64 + 32 * 32, 300 * 32 + 3 * 32


@pytest.mark.parametrize("kind", ATTENTION)
def test_parameters_and_flops_are_those_counted_by_hand(kind):
    found = costs.of(experiment(kind=kind, kv_rank=24))
    layer = ATTENTION[kind] + REST
    assert found.parameters == 2 * (layer + 4 * EXPERT) + OUTSIDE
    active = 2 * (layer + EXPERT) + OUTSIDE
    assert found.active_parameters == active
    scores_and_values = 2 * (2 * 2 * 32) * (S + 1) / 2  # layers, q k and p v, heads * channels
    assert found.flops_per_token == 3 * (2 * active + scores_and_values)


class Summed(GQA):
    """Says that it sees no keys, but a state of its own."""

    @staticmethod
    def score_flops(model, keys):
        return 7.0


def test_a_kind_of_ones_own_may_count_its_scores_itself():
    summed = costs.of(experiment(kind=f"{__name__}:Summed")).flops_per_token
    grouped = costs.of(experiment(kind="gqa")).flops_per_token
    assert summed - 3 * 2 * 7 == grouped - 3 * 2 * (2 * 2 * 32) * (S + 1) / 2


@pytest.mark.parametrize(
    ("attention", "numbers"),
    [
        (dict(kind="cca"), 2 * 16),  # keys and values of one kv head
        (dict(kind="cca", conv_kernels=(), value_shift=False), 2 * 16),  # the state does not grow
        (dict(kind="gqa"), 2 * 16),
        (dict(kind="gqa", kv_heads=2), 4 * 16),
        (dict(kind="mha"), 4 * 16),
        (dict(kind="mla", kv_rank=24), 24 + 8),  # the latent and one rotary key
        (dict(kind="mla", kv_rank=24, rope_fraction=0.25), 24 + 4),
    ],
    ids=str,
)
def test_kv_bytes_are_those_counted_by_hand(attention, numbers):
    one = experiment(**attention)
    assert costs.of(one).kv_bytes_per_token == 2 * numbers * 4
    half = dataclasses.replace(one.model, activation_dtype="bfloat16")
    assert costs.kv_bytes_per_token(half) == 2 * numbers * 2


def test_a_window_and_adapters_save_flops():
    full = costs.flops_per_token(experiment(kind="gqa"))
    sliding = experiment(kind="gqa", pattern=("full", "sliding"), window=4)
    # Of 8 queries the last five see 4 keys, the first three 1, 2 and 3: 3.25 on average, not 4.5.
    assert full - costs.flops_per_token(sliding) == 3 * (2 * 2 * 32) * (4.5 - 3.25)
    active = costs.of(experiment(kind="gqa")).active_parameters
    assert full - costs.flops_per_token(experiment(kind="gqa", lora=Lora(rank=2))) == 2 * active


def test_a_token_pays_for_the_experts_it_takes_and_for_the_routers_depth():
    one, two = (
        costs.of(experiment({"kind": "mlp", "top_k": k, "depth": 2})).active_parameters
        for k in (1, 2)
    )
    assert two - one == 2 * EXPERT
    deeper = costs.of(experiment({"kind": "mlp", "depth": 5})).active_parameters
    assert deeper - one == 2 * 3 * (16 * 16 + 16)


def arm(**changes) -> Costs:
    return dataclasses.replace(Costs(1000, 500, 3e6, 256), **changes)


def test_arms_within_two_percent_are_matched():
    assert not list(costs.mismatches({}))
    assert not list(costs.mismatches({"a": arm(), "b": arm(parameters=1020), "c": arm()}))


def test_each_cost_that_differs_is_named_with_both_ends():
    arms = {
        "linear": arm(parameters=1000, kv_bytes_per_token=256),
        "mlp": arm(parameters=1021, kv_bytes_per_token=384),
        "mlp_eda": arm(parameters=1010, kv_bytes_per_token=512),
    }
    assert list(costs.mismatches(arms)) == [
        "arms are not matched in parameters: linear has 1,000, mlp 1,021 (2.1% more)",
        "arms are not matched in kv bytes per token: linear has 256, mlp_eda 512 (100.0% more)",
    ]
    assert len(list(costs.mismatches(arms, tolerance=0.05))) == 1
