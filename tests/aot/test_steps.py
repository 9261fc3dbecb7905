"""Whole steps of the 8B (fewer layers), compiled for both targets."""

from __future__ import annotations

import math

import pytest

from zaya_jax import aot
from zaya_jax.aot import Job, kernels
from zaya_jax.aot.steps import launches_per_layer

pytestmark = pytest.mark.slow

# Sizes by which a buffer is known: only tokens are multiples of 11, only the vocabulary of 683,
# only the experts' width of 7.
TOKENS, VOCABULARY, WIDTH = 11 * 256, 262_272, 7 * 256
MODEL = {"num_layers": 2, "expert_width": WIDTH}
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
    report = compiler.compile(step("training", tokens=TOKENS, model=MODEL))
    assert report.ok, report.error
    assert report.memory.total < compiler.target.memory
    assert {launch.name for launch in report.launches} == TRAINS
    assert not dense(report)
    assert not products(report, TOKENS, TOKENS), "a buffer of S x S"
    assert not products(report, TOKENS, VOCABULARY), "a buffer of T x V"


def products(report: aot.Report, *sizes: int) -> list[tuple[int, ...]]:
    """Buffers of so many elements times a whole number, however their axes are cut or joined."""
    least = math.prod(sizes)
    shapes = {shape for _, shape in aot.buffers_of(report.hlo)}
    return [shape for shape in shapes if math.prod(shape) and math.prod(shape) % least == 0]


def dense(report: aot.Report) -> list[tuple[int, ...]]:
    """Operands and results of matrix products outside of our kernels that have the experts' width,
    joined with other axes or not."""
    shapes = aot.matmuls_of(report.hlo)
    return [shape for shape in shapes if any(size and size % WIDTH == 0 for size in shape)]


def test_what_must_not_be_there_would_be_found(compiler):
    """In the step of plain definitions: experts of XLA, attention and loss as they are written."""
    ops = {"grouped_matmul": "xla", "attention": "reference", "cross_entropy": "reference"}
    report = compiler.compile(step("training", tokens=TOKENS, model={**MODEL, "ops": ops}))
    assert report.ok, report.error
    assert products(report, TOKENS, TOKENS)
    assert products(report, TOKENS, VOCABULARY)
    # The down-projection by itself, too: it has F and not 2F.
    widths = [{size // WIDTH for size in shape if size % WIDTH == 0} for shape in dense(report)]
    assert {1} in widths and any(2 in own for own in widths)


def test_a_step_with_muon_holds_its_kernels(compiler):
    job = step("training", tokens=512, model={"num_layers": 2}, optim={"kind": "muon"})
    report = compiler.compile(job)
    assert report.ok, report.error
    assert {launch.name for launch in report.launches} == TRAINS | MUON


def test_a_decoding_step_holds_the_kernels(compiler):
    """And every layer launches them again: two merges of the residual stream each."""
    launches = []
    for layers in (2, 3):
        model = {**MODEL, "num_layers": layers}
        report = compiler.compile(step("decoding", rows=8, model=model))
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
