"""Programs compiled by the real compilers of both targets."""

from __future__ import annotations

import re

from zaya_jax.aot import Job, roofline


def job(name: str, **options) -> Job:
    return Job(f"tests.aot.programs:{name}", **options)


def test_a_kernel_that_keeps_to_the_limits(compiler):
    report = compiler.compile(job("matmul", want_kernels=True))
    assert report.ok, report.error
    kernel, [launch] = report.kernel("matmul"), report.launches
    assert 16 < kernel.registers <= compiler.target.registers_per_thread
    assert (kernel.spills, kernel.scratch) == (0, 0)
    assert kernel.grid == launch.grid == (8, 8, 1)
    assert kernel.threads == launch.warps * compiler.target.warp
    name = "mfma" if compiler.target.platform == "rocm" else "mma"
    assert any(instruction.startswith(name) for instruction in kernel.matrix)
    assert 0 < roofline.occupancy(kernel, compiler.target) <= 1
    assert not list(roofline.broken_limits(kernel, launch, compiler.target))
    assert report.memory.arguments == 2 * 256 * 256 * 2
    assert report.memory.outputs == 256 * 256 * 2
    assert report.versions["jax"] == report.versions["jaxlib"]


def test_large_tiles_use_the_wide_matrix_instruction(compiler):
    report = compiler.compile(job("matmul", arguments={"tile": 64}))
    name = "mfma" if compiler.target.platform == "rocm" else "wgmma"
    assert any(instruction.startswith(name) for instruction in report.kernel("matmul").matrix)


def test_too_much_shared_memory_is_refused_with_the_limit(compiler):
    report = compiler.compile(job("matmul", arguments={"tile": 256}))
    assert not report.ok
    assert f"available: {compiler.target.shared_per_group}" in report.error


def test_float32_at_reduced_precision_is_told(compiler):
    arguments = {"dtype": "float32", "precision": "default"}
    report = compiler.compile(job("matmul", arguments=arguments, want_kernels=True))
    [launch] = report.launches
    problems = list(roofline.broken_limits(report.kernel("matmul"), launch, compiler.target))
    assert any("TF32" in problem for problem in problems)


def test_float32_is_multiplied_as_launch_py_has_it(compiler):
    """At full precision, where nobody asks for another."""
    report = compiler.compile(job("matmul", arguments={"dtype": "float32"}, want_kernels=True))
    [launch] = report.launches
    assert set(launch.counts.matrix) == {"float32"}
    report = compiler.compile(job("product", want_hlo=True))
    assert re.search("operand_precision[^ ]*highest", report.hlo, re.IGNORECASE), report.hlo


def test_what_is_timed_is_done_in_every_round(compiler):
    """XLA neither takes it out of the loop nor drops it, although its arguments never change and
    nobody reads any but the last result."""
    report = compiler.compile(job("repeated", want_hlo=True))
    assert report.ok, report.error
    assert '"known_trip_count":{"n":"8"}' in report.hlo  # the host need not ask in each round
    body, entry = report.hlo.split("\nENTRY ")
    for step in ('="__gpu$xla.gpu.triton"', "while/body/closed_call/dot_general"):
        assert step in body and step not in entry


def test_a_scanned_layer_is_counted_once_and_multiplied(compiler):
    report = compiler.compile(job("scanned", want_kernels=True, want_hlo=True))
    [launch] = report.launches
    assert launch.times == 4
    [body] = [counts for section, counts in report.steps.items() if section.startswith("body")]
    assert body["kCustomKernel"] >= 1 and report.steps["main"]["kWhile"] == 1
    assert "while(" in report.hlo


def test_a_mesh_of_devices_and_its_collectives(compiler):
    report = compiler.compile(job("sharded", mesh={"x": 8}))
    assert report.ok, report.error
    assert report.devices == 8
    assert report.collectives == {"all-reduce": {"count": 1, "bytes": 128 * 128 * 2}}
    assert report.memory.arguments == 2 * 128 * 1024 * 2 // 8


def test_hosts_are_filled_or_refused(compiler):
    assert compiler.compile(job("sharded", mesh={"x": 16})).ok
    report = compiler.compile(job("sharded", mesh={"x": 12}))
    assert "12 devices" in report.error and "hosts of 8" in report.error


def test_donated_arguments_are_aliased(compiler):
    report = compiler.compile(job("donating"))
    assert report.memory.aliased == report.memory.outputs
    assert report.memory.total == report.memory.arguments


def test_mistakes_are_told_by_place_and_the_compiler_lives_on(compiler):
    assert "this program is not one (programs.py:" in compiler.compile(job("raises")).error
    assert "status 7" in compiler.compile(job("falls")).error
    assert "no answer after 2 s" in compiler.compile(job("sleeps"), timeout=2).error
    assert "has no nothing" in compiler.compile(job("nothing")).error
    assert "package.module:name" in compiler.compile(Job("tests.aot.programs.matmul")).error
    assert compiler.compile(job("donating")).ok
