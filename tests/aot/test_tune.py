"""The search for settings: what it compares, where it walks, what it writes."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import dispatch, tuned
from zaya_jax import aot, cli
from zaya_jax.aot import kernels, roofline, timing, tune
from zaya_jax.aot.targets import H100, MI300X

FINE = tune.Cost(0, 0, 1.0)


def test_a_kernel_that_compiles_beats_one_that_spills_beats_one_that_is_refused():
    assert tune.Cost(0, 0, 9.0).beats(tune.Cost(0, 8, 1.0))
    assert tune.Cost(0, 8, 9.0).beats(tune.Cost(1, 0, 1.0))
    assert tune.Cost(0, 4, 9.0).beats(tune.Cost(0, 8, 1.0))


def test_what_is_hardly_faster_stays_as_it_is():
    assert not tune.Cost(0, 0, 0.99).beats(FINE)
    assert tune.Cost(0, 0, 0.9).beats(FINE)


def test_the_climb_finds_the_best_and_compiles_nothing_twice():
    asked = []

    def cost(choice):
        asked.append(tuple(choice.items()))
        far = abs(choice["rows"] - 64) + 10 * abs(choice["num_warps"] - 2)
        return tune.Cost(0, int(choice["num_stages"] > 2), 1.0 + far)

    start = {"rows": 16, "num_warps": 8, "num_stages": 3}
    best, found, tried = tune.climb(start, cost)
    assert best["rows"] == 64 and best["num_warps"] == 2 and best["num_stages"] <= 2
    assert found == tune.Cost(0, 0, 1.0)
    assert tried == len(asked) == len(set(asked))


def test_a_clock_decides_among_the_best_that_break_nothing():
    def cost(choice):
        return tune.Cost(0, int(choice["rows"] > 32), 1.0 / choice["rows"])

    timed = []

    def clock(choice):
        timed.append(choice["rows"])
        return abs(choice["num_warps"] - 8.0)

    best, found, _ = tune.climb({"rows": 4, "num_warps": 4}, cost, clock)
    assert best["num_warps"] == 8 and found == tune.Cost(0, 0, 0.0)
    assert max(timed) <= 32 and len(timed) <= tune.TIMED


def test_a_program_is_timed_on_what_is_attached():
    x = jax.ShapeDtypeStruct((64, 64), jnp.bfloat16)
    program = aot.Program(lambda x, n: x @ x * n[0], (x, np.array([2], np.int32)))
    assert 0 < timing.seconds_of(program) < 1


def test_time_needs_the_targets_gpu(capsys):
    if dispatch.platform() != "cpu":
        pytest.skip("a GPU is attached")
    assert cli.main(["kernels", "--tune", "--time", "--target=h100"]) == 2
    assert "needs a GPU of cuda, and jax runs on cpu" in capsys.readouterr().err


def test_settings_stay_within_what_compilers_take():
    for choice in tune.neighbours({"rows": 1, "num_warps": 8, "num_stages": 1}):
        assert choice["rows"] >= 1 and choice["num_warps"] <= 8 and choice["num_stages"] >= 1


def test_what_was_found_is_written_in_the_style_of_the_file(tmp_path):
    before = {
        "rocm": {
            "forward": {"rows": 2, "num_warps": 4, "num_stages": 1},
            "backward": {"rows": 4, "num_warps": 4, "num_stages": 1},
        },
        "cuda": {"forward": {"rows": 8, "num_warps": 4, "num_stages": 1}},
    }
    (tmp_path / "op").mkdir()
    path = tmp_path / "op" / "tuned.json"
    path.write_text(json.dumps(before))
    after = {"rows": 16, "num_warps": 8, "num_stages": 1}
    finding = tune.Finding("forward", before["rocm"]["forward"], after, FINE, FINE, 1)
    tune.write("op", "rocm", [finding], tmp_path)
    expected = {**before, "rocm": {**before["rocm"], "forward": after}}
    assert json.loads(path.read_text()) == expected
    assert '    "forward": {"rows": 16, "num_warps": 8, "num_stages": 1},\n' in path.read_text()


@pytest.mark.slow
def test_a_worse_setting_of_a_real_kernel_costs_more(compiler):
    """One row a workgroup, and no two steps, reloads the parameters for every row."""
    platform = compiler.target.platform
    good = tuned.table("residual_norm")[platform]["forward"]
    name = kernels.Name("residual_norm", "prefill", "", "forward")
    costs = [
        tune.cost_of([compiler.compile(name.job({"forward": choice}))], compiler.target)
        for choice in (good, {**good, "rows": 1, "steps": 1, "num_warps": 1})
    ]
    assert costs[0].beats(costs[1])
    # Compiled again, the very same program is measured the same, from the compiler's cache or not.
    again = tune.cost_of([compiler.compile(name.job({"forward": good}))], compiler.target)
    assert again == costs[0]


def kernel(**fields) -> aot.Kernel:
    base = dict(name="k", registers=64, spills=0, scratch=0, shared=0, threads=256, grid=None)
    return aot.Kernel(**{**base, "launches": 1, "matrix": {}, **fields})


def launch(matrix=None, **fields) -> aot.Launch:
    counts = aot.Counts(1e6, 1e6, (1e6,), True, matrix or {}, 1e6, True, 1.0)
    base = dict(name="k", grid=(4096, 1, 1), warps=4, stages=1, times=1, sizes=(10**6, 10**6))
    return aot.Launch(**{**base, "counts": counts, "note": "", "ttir": "", **fields})


@pytest.mark.parametrize(
    ("target", "fields", "groups"),
    [
        (MI300X, {}, 8),  # 32 waves a compute unit, 4 of 64 threads a workgroup
        (MI300X, {"registers": 129}, 3),  # 136 of 512 registers: 3 waves a SIMD
        (MI300X, {"shared": 40_000}, 1),
        (H100, {}, 4),  # 32 warps of 64 registers fill the file
        (H100, {"registers": 255, "threads": 512}, 0),
        (H100, {"registers": 32, "shared": 100_000}, 2),
    ],
)
def test_workgroups_that_fit_onto_a_core(target, fields, groups):
    assert roofline.groups_per_core(kernel(**fields), target) == groups


@pytest.mark.parametrize(
    ("fields", "matrix", "told"),
    [
        ({}, {}, ""),
        ({"matrix": {"mfma": 4}}, {"bfloat16": 1.0}, ""),
        ({"spills": 3}, {}, "3 spills"),
        ({"scratch": 16}, {}, "16 bytes of scratch"),
        ({"shared": 70_000}, {}, "70000 bytes of shared memory, limit 65536"),
        ({"threads": 2048}, {}, "2048 threads, limit 1024"),
        ({}, {"bfloat16": 1.0}, "no matrix instructions for its products of bfloat16"),
        ({"matrix": {"mfma": 4}}, {"tf32": 1.0}, "TF32"),
    ],
)
def test_broken_limits_are_named(fields, matrix, told):
    found = list(roofline.broken_limits(kernel(**fields), launch(matrix), MI300X))
    assert told in "; ".join(found) and bool(found) == bool(told)


def test_full_precision_products_need_no_matrix_unit_where_there_is_none():
    assert not list(roofline.broken_limits(kernel(), launch({"float32": 1.0}), H100))
    assert list(roofline.broken_limits(kernel(), launch({"float32": 1.0}), MI300X))


def test_the_roofline_is_the_longest_of_its_parts():
    peak, bandwidth = H100.peak["bfloat16"], H100.bandwidth
    assert roofline.least_seconds({"bfloat16": peak}, 0, bandwidth / 2, H100) == 1
    assert roofline.least_seconds({"bfloat16": peak / 4}, 0, bandwidth, H100) == 1
    assert roofline.least_seconds({}, 3 * H100.peak["vector"], bandwidth, H100) == 3


def test_the_prediction_is_never_below_the_roofline():
    for target in aot.TARGETS.values():
        one = launch({"bfloat16": 1e12})
        counts = one.counts
        least = roofline.least_seconds(counts.matrix, counts.vector, 2e6, target)
        assert roofline.predicted_seconds(kernel(), one, target) >= least
