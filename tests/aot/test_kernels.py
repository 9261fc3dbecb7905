"""Our own kernels at the shapes of the 8B: what `launch.py kernels` compiles, and it passes."""

from __future__ import annotations

import dataclasses
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import triton as plgpu

from pallas_kernels import dispatch, tuned
from pallas_kernels.shapes import FORMS, ZAYA1_8B
from zaya_jax import aot, cli
from zaya_jax.aot import cli as verb
from zaya_jax.aot import kernels, launches, roofline
from zaya_jax.aot.program import arrays_only
from zaya_jax.aot.second_opinion import SecondOpinion
from zaya_jax.config import Model


def test_the_shapes_are_those_of_the_model():
    model = Model()
    assert ZAYA1_8B.hidden == model.hidden_size
    assert ZAYA1_8B.layers == model.num_layers
    assert ZAYA1_8B.vocabulary == model.vocab_size
    assert ZAYA1_8B.norm_eps == model.norm_eps
    assert ZAYA1_8B.expert_width == model.expert_width
    attention, router = model.attention, model.router
    assert (ZAYA1_8B.heads, ZAYA1_8B.kv_heads) == (attention.heads, attention.kv_heads)
    assert ZAYA1_8B.channels == attention.head_dim
    assert ZAYA1_8B.rotary == attention.head_dim * attention.rope_fraction
    assert ZAYA1_8B.conv_kernels == attention.conv_kernels
    assert (ZAYA1_8B.experts, ZAYA1_8B.top_k) == (router.experts, router.top_k)
    assert ZAYA1_8B.router_width == router.width


@pytest.mark.parametrize("op", kernels.ops_with_kernels())
def test_every_op_with_a_kernel_tells_its_calls(op):
    names = list(kernels.names(op, list(FORMS)))
    assert names, "shapes_8b gives no call in any form"
    for name in names:
        assert name.direction == "forward" or FORMS[name.form].trains


@dataclasses.dataclass(frozen=True)
class Told(plgpu.CompilerParams):
    """And the shared memory that a kernel of these settings is taken to need."""

    needed: int = 0


@pytest.fixture
def told_shared(monkeypatch):
    """Returns a function: the bytes of shared memory that `tuned` takes each launch of a call to
    need, in order."""
    found = []
    least, params = tuned.least_shared, tuned.compiler_params

    def least_shared(*args, **options):
        found.append(least(*args, **options))
        return found[-1]

    def compiler_params(*args, **options):
        made = params(*args, **options)
        return Told(made.num_warps, made.num_stages, found[-1])

    monkeypatch.setattr(tuned, "least_shared", least_shared)
    monkeypatch.setattr(tuned, "compiler_params", compiler_params)

    def told(name: kernels.Name, platform: str, settings=None) -> list[int]:
        with dispatch.compiling_for(platform):
            call, arrays = arrays_only(kernels.build(**name._asdict(), settings=settings or {}))
            structs = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), arrays)
            jaxpr = jax.make_jaxpr(call)(*structs)
        nothing = [None] * len(jaxpr.jaxpr.invars)
        _, calls = launches.follow(jaxpr.jaxpr, jaxpr.consts, nothing)
        return [call.equation.params["compiler_params"].needed for call in calls]

    return told


@pytest.mark.parametrize("form", ["train_4k", "decode_8"])
@pytest.mark.parametrize("op", kernels.ops_with_kernels())
def test_every_kernel_compiles_within_the_limits(compiler, told_shared, op, form):
    for name in kernels.names(op, [form]):
        report = compiler.compile(name.job())
        # A refusal in words must not hit what compiles.
        told = told_shared(name, compiler.target.platform)
        for launch, needed in zip(report.launches, told, strict=True):
            assert needed <= report.kernel(launch.name).shared, launch.name
        rows = list(verb.rows_of(name, report, compiler.target, None))
        assert rows
        for row in rows:
            assert not row.problems, f"{name}: {row.name}: {row.problems}"


@pytest.mark.parametrize("op", ["cca_mix", "residual_norm", "router"])
def test_what_memory_bounds_moves_little_more_than_it_must(compiler, op):
    """And the check would find it if it moved more: no argument may stay in a cache by itself."""
    target = compiler.target
    report = compiler.compile(next(kernels.names(op, ["train_4k"])).job())
    [launch] = report.launches
    least = launch.least_bytes
    assert launch.traffic(target.l2_bytes, target.l2s) <= 1.15 * least
    assert not list(roofline.too_many_bytes(op, launch, target))
    twice = dataclasses.replace(launch.counts, stores=launch.counts.stores + 0.2 * least)
    more = dataclasses.replace(launch, counts=twice)
    [told] = roofline.too_many_bytes(op, more, target)
    assert "x the least bytes, limit 1.15" in told


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"num_stages": 8}, "KiB of shared memory, and a workgroup of .* fewer stages or smaller"),
        ({"num_warps": 64}, "threads, and a workgroup of .* has at most 1024"),
        ({"num_warps": 3}, "num_warps is a power of two"),
    ],
)
def test_settings_over_a_devices_limits_are_refused_in_words(compiler, changes, told):
    """At lowering, with the limit and what to change; the compiler's own words would be fewer."""
    name = next(kernels.names("cross_entropy", ["train_4k"]))
    settings = dict(tuned.table("cross_entropy")[compiler.target.platform]["forward"])
    report = compiler.compile(name.job({"forward": settings | changes}))
    assert not report.ok and re.search(told, report.error), report.error
    assert "tuned.json (rows=" in report.error


# A block far too large for one kernel of each kind.
TOO_LARGE = [
    ("attention", "forward", "train_4k", "forward", {"rows": 2048}),
    ("attention", "backward_keys", "train_4k", "backward", {"rows": 2048}),
    ("cca_mix", "latents", "train_4k", "backward", {"tokens": 2048, "chunk": 128}),
    ("cca_mix", "correlate", "train_4k", "backward", {"tokens": 1024}),
    ("cross_entropy", "forward", "train_4k", "forward", {"depth": 2048}),
    ("decode_attention", "split", "decode_8", "forward", {"keys": 1024}),
    ("grouped_matmul", "gate_up", "train_4k", "forward", {"depth": 2048}),
    ("grouped_matmul", "backward_weights", "train_4k", "backward", {"rows": 2048, "columns": 2048}),
    ("grouped_matmul", "decode_gate_up", "decode_8", "forward", {"depth": 2048}),
    ("newton_schulz", "gram_float32", "train_4k", "forward", {"depth": 1024}),
    ("newton_schulz", "apply_float32", "train_4k", "forward", {"depth": 1024}),
    ("projections", "project", "decode_8", "forward", {"depth": 2048, "columns": 128}),
    ("router", "forward", "train_4k", "forward", {"block": 2048}),
]


@pytest.mark.parametrize("platform", list(tuned.LIMITS))
@pytest.mark.parametrize(("op", "kernel", "form", "direction", "changes"), TOO_LARGE)
def test_blocks_over_the_shared_memory_are_refused_in_words(
    platform, op, kernel, form, direction, changes
):
    """In one stage too, which is what nearly all settings of MI300X have."""
    settings = {**tuned.table(op)[platform][kernel], **changes}
    [name] = [n for n in kernels.names(op, [form]) if n.direction == direction][:1]
    with dispatch.compiling_for(platform):
        program = kernels.build(**name._asdict(), settings={kernel: settings})
        call, arrays = arrays_only(program)
        with pytest.raises(ValueError, match="KiB of shared memory, and a workgroup of"):
            jax.make_jaxpr(call)(*arrays)


# Stages of one call of each loop; those of 3 and 4 are where one holds less than it seems to.
PIPELINED = [
    ("attention", "train_4k", "", 4),
    ("cross_entropy", "train_4k", "", 2),
    ("cross_entropy", "train_4k", "float32", 3),
    ("decode_attention", "decode_8", "", 4),
    ("decode_attention", "decode_8", "paged", 3),
    ("decode_attention", "decode_64", "int8", 2),
    ("grouped_matmul", "train_4k", "", 2),
    ("grouped_matmul", "decode_8", "", 2),
    ("newton_schulz", "train_4k", "experts", 3),
    ("projections", "decode_8", "", 2),
]


@pytest.mark.parametrize(("op", "form", "call", "stages"), PIPELINED)
def test_what_a_pipelined_loop_stages_is_what_xla_allocates(
    compiler, told_shared, op, form, call, stages
):
    """At most, so that the refusals above hit nothing that compiles."""
    platform, target = compiler.target.platform, compiler.target
    limits = tuned.LIMITS[platform]
    assert limits.shared == target.shared_per_group and limits.warp == target.warp
    assert limits.threads == target.threads_per_group
    table = tuned.table(op)[platform]
    settings = {kernel: {**own, "num_stages": stages} for kernel, own in table.items()}
    if op == "attention":  # whose blocks are as large as they can be in two stages
        settings = {k: {**own, "rows": 64, "keys": 64} for k, own in settings.items()}
    name = kernels.Name(op, form, call, "forward")
    report = compiler.compile(name.job(settings))
    assert report.ok, report.error
    told = told_shared(name, platform, settings)
    for launch, needed in zip(report.launches, told, strict=True):
        assert needed <= report.kernel(launch.name).shared, launch.name


def test_one_expert_of_sixteen_is_all_that_has_to_be_read():
    [name] = [n for n in kernels.names("grouped_matmul", ["decode_1"]) if not n.call]
    call, arrays = arrays_only(kernels.build(**name._asdict(), settings={}))
    known = [None if isinstance(x, jax.ShapeDtypeStruct) else x for x in jax.tree.leaves(arrays)]
    structs = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), arrays)
    jaxpr = jax.make_jaxpr(call)(*structs)
    _, calls = launches.follow(jaxpr.jaxpr, jaxpr.consts, known)
    for own in (launches.counted(call, "rocm") for call in calls):
        experts = ZAYA1_8B.experts
        assert own.least_bytes == pytest.approx(sum(own.sizes) / experts, rel=0.1), own.name


def test_the_backward_pass_knows_what_the_forward_was_given():
    """Values of integers reach the backward's kernels through its residuals."""
    lengths = np.array([3, 5], np.int32)

    @jax.custom_vjp
    def scale(x, lengths):
        return x * lengths[:, None]

    scale.defvjp(
        lambda x, lengths: (scale(x, lengths), lengths + 1),
        lambda lengths, ct: (ct * lengths[:, None], None),
    )
    x = jax.ShapeDtypeStruct((2, 4), jnp.float32)
    backward = kernels.backward_of(aot.Program(scale, (x, lengths)))
    known = [leaf for leaf in jax.tree.leaves(backward.args) if isinstance(leaf, np.ndarray)]
    [value] = known
    np.testing.assert_array_equal(value, lengths + 1)
    out = jax.eval_shape(backward.function, *backward.args)
    assert [leaf.shape for leaf in jax.tree.leaves(out)] == [(2, 4)]


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_settings_that_are_tried_reach_the_kernel(direction):
    """Those of a backward pass too, which builds its kernels later."""
    tried = {"rows": 2, "steps": 1, "num_warps": 2, "num_stages": 3}
    program = kernels.build("residual_norm", "train_4k", "", direction, {direction: tried})
    call, arrays = arrays_only(program)
    text = str(jax.make_jaxpr(call)(*arrays))
    assert "num_warps=2" in text and "num_stages=3" in text


def test_a_second_opinion(compiler):
    report = compiler.compile(aot.Job("tests.aot.programs:matmul", want_kernels=True))
    [launch] = report.launches
    with SecondOpinion(compiler.target, compiler.python) as second:
        kernel = second.of(launch)
        if "No module named 'triton'" in str(kernel):
            pytest.skip("the triton wheel is not installed: requirements-aot.txt")
        assert isinstance(kernel, aot.Kernel), kernel
        assert kernel.registers > 16 and kernel.matrix
        assert (kernel.spills, kernel.scratch) == (0, 0)
        assert kernel.threads == launch.warps * compiler.target.warp


class Refuses:
    """A compiler that takes nothing."""

    def __init__(self, target):
        self.target, self.python = target, "python"

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        pass

    def compile(self, job):
        return aot.Report(self.target.name, 1, error="RESOURCE_EXHAUSTED")


def test_a_kernel_that_fails_gives_status_1(monkeypatch, capsys):
    monkeypatch.setattr(verb, "Compiler", Refuses)
    arguments = ["--op=residual_norm", "--form=decode_1", "--target=mi300x"]
    assert cli.main(["kernels", "--nosecond", *arguments]) == 1
    printed = capsys.readouterr().out
    assert "RESOURCE_EXHAUSTED" in printed and "1 kernels, 1 failed" in printed


def test_a_second_opinion_that_is_stopped_begins_nothing():
    with SecondOpinion(aot.target_of("h100"), python="/there/is/none") as second:
        second.stop()
        assert second.of(None) == "stopped"


def test_the_verb_prints_and_writes_what_it_found(compiler, tmp_path, capsys):
    target = compiler.target.name
    arguments = ["--op=residual_norm", "--form=decode_1", f"--json={tmp_path}/kernels.json"]
    assert cli.main(["kernels", f"--target={target}", "--nosecond", *arguments]) == 0
    printed = capsys.readouterr().out
    assert compiler.target.title in printed and "kernels pass" in printed
    written = json.loads((tmp_path / "kernels.json").read_text())
    assert written["ok"] and written["versions"][target]["jaxlib"]
    [row] = written["kernels"]
    assert row["call"]["op"] == "residual_norm" and row["kernel"]["registers"] > 0


@pytest.mark.parametrize(
    ("option", "told"),
    [
        ("--target=mi300", "did you mean mi300x"),
        ("--form=train_4096", "did you mean train_4k"),
        ("--op=residual", "did you mean residual_norm"),
        ("--target=", "there are: mi300x, h100"),
        ("--form=", "there are: train_4k"),
        ("--op=", "there are: cca_mix"),
    ],
)
def test_unknown_names_are_refused_and_so_are_none(option, told, capsys):
    assert cli.main(["kernels", option]) == 2
    assert told in capsys.readouterr().err


@pytest.mark.parametrize(
    ("op", "form", "there"),
    [
        ("newton_schulz", "decode_1", "newton_schulz: train_4k, train_32k, train_131k"),
        ("attention", "decode_8", "attention: train_4k"),
    ],
)
def test_nothing_to_compile_is_no_success(op, form, there, capsys):
    assert cli.main(["kernels", f"--op={op}", f"--form={form}"]) == 2
    told = capsys.readouterr().err
    assert f"no call of --op={op}" in told and there in told
