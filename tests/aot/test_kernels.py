"""Our own kernels at the shapes of the 8B: what `launch.py kernels` compiles, and it passes."""

from __future__ import annotations

import dataclasses
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import tuned
from pallas_kernels.shapes import FORMS, ZAYA1_8B
from zaya_jax import aot, cli
from zaya_jax.aot import cli as verb
from zaya_jax.aot import kernels, roofline
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


@pytest.mark.parametrize("form", ["train_4k", "decode_8"])
@pytest.mark.parametrize("op", kernels.ops_with_kernels())
def test_every_kernel_compiles_within_the_limits(compiler, op, form):
    for name in kernels.names(op, [form]):
        report = compiler.compile(name.job())
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
    least = sum(launch.sizes)
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


def test_what_a_pipelined_loop_stages_is_what_xla_allocates(compiler):
    """So the refusal above has the right number, whatever the device."""
    platform, target = compiler.target.platform, compiler.target
    limits = tuned.LIMITS[platform]
    assert limits.shared == target.shared_per_group and limits.warp == target.warp
    assert limits.threads == target.threads_per_group
    name = next(kernels.names("cross_entropy", ["train_4k"]))
    settings = dict(tuned.table("cross_entropy")[platform]["forward"]) | {"num_stages": 2}
    report = compiler.compile(name.job({"forward": settings}))
    staged = (settings["rows"] + settings["columns"]) * settings["depth"] * 2
    assert report.kernel("cross_entropy_forward").shared >= (2 - limits.in_registers) * staged


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
    ],
)
def test_unknown_names_are_refused(option, told, capsys):
    assert cli.main(["kernels", option]) == 2
    assert told in capsys.readouterr().err
