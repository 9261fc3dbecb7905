"""Whole steps of the 8B (fewer layers), compiled for both targets."""

from __future__ import annotations

import pytest

from zaya_jax import aot
from zaya_jax.aot import Job, kernels
from zaya_jax.aot.steps import launches_per_layer
from zaya_jax.config import Model

pytestmark = pytest.mark.slow

# No other axis of the 8B is as long as this many tokens.
TOKENS, VOCABULARY = 2816, 262_272
TRAINS = {
    "cca_mix_forward", "cca_mix_normalise", "cca_mix_latents", "cca_mix_correlate",
    "attention_forward", "attention_backward_rows", "attention_backward_keys",
    "router_forward", "router_backward",
    "experts_gate_up", "experts_down",
    "experts_backward_glu", "experts_backward_rows", "experts_backward_weights",
    "residual_norm_forward", "residual_norm_backward",
    "cross_entropy_forward", "cross_entropy_backward",
}  # fmt: skip
MUON = {"newton_schulz_gram", "newton_schulz_factor", "newton_schulz_apply"}
DECODES = {
    "projections",
    "cca_mix",
    "decode_attention",
    "router",
    "grouped_matmul",
    "residual_norm",
}


def step(name: str, **arguments) -> Job:
    return Job(f"zaya_jax.aot.steps:{name}", arguments, want_hlo=True, want_kernels=True)


def has_kernel(report: aot.Report, op: str) -> bool:
    """Kernels are named after their op."""
    names = {
        "decode_attention": "decode_split",
        "grouped_matmul": ("grouped", "experts"),
        "projections": "project",
    }
    return any(launch.name.startswith(names.get(op, op)) for launch in report.launches)


def test_a_training_step_holds_the_kernels_and_no_square_buffer(compiler):
    report = compiler.compile(step("training", tokens=TOKENS, model={"num_layers": 2}))
    assert report.ok, report.error
    assert report.memory.total < compiler.target.memory
    assert {launch.name for launch in report.launches} == TRAINS
    assert not dense(report)
    shapes = {shape for _, shape in aot.buffers_of(report.hlo)}
    assert not [s for s in shapes if s.count(TOKENS) > 1], "a buffer of S x S"
    assert not [s for s in shapes if TOKENS in s and VOCABULARY in s], "a buffer of T x V"


def dense(report: aot.Report) -> list[tuple[int, ...]]:
    """Results of matrix products outside of our kernels that are as wide as an expert's gate and
    its up-projection together, which no other matrix of the 8B is."""
    return [shape for shape in aot.matmuls_of(report.hlo) if 2 * Model().expert_width in shape]


def test_dense_experts_would_be_found(compiler):
    """Plain XLA's: what the other tests say is not there."""
    ops = {"grouped_matmul": "xla"}
    model = {"num_layers": 2, "vocab_size": 4352, "ops": ops}
    report = compiler.compile(step("training", tokens=TOKENS, model=model))
    assert report.ok, report.error
    assert dense(report)


def test_a_step_with_muon_holds_its_kernels(compiler):
    job = step("training", tokens=512, model={"num_layers": 2}, optim={"kind": "muon"})
    report = compiler.compile(job)
    assert report.ok, report.error
    assert {launch.name for launch in report.launches} == TRAINS | MUON


def test_a_decoding_step_holds_the_kernels(compiler):
    """And every layer launches them again: two merges of the residual stream each."""
    launches = []
    for layers in (2, 3):
        report = compiler.compile(step("decoding", rows=8, model={"num_layers": layers}))
        assert report.ok, report.error
        assert not dense(report)
        for op in DECODES & set(kernels.ops_with_kernels()):
            assert has_kernel(report, op), op
        launches.append(sum(launch.name.startswith("residual_norm") for launch in report.launches))
    assert launches == [4, 6]


@pytest.mark.parametrize("rows", [1, 8])
def test_a_layer_more_is_ten_launches_more_to_decode_a_token(compiler, rows):
    ours = launches_per_layer(compiler, rows=rows)
    assert sum(ours.values()) <= 10, ours


def test_without_our_kernels_a_layer_is_many_more_launches(compiler):
    plain = launches_per_layer(compiler, model={"ops": dict.fromkeys(DECODES, "xla")})
    assert sum(plain.values()) >= 30, plain
