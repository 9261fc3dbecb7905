"""The search for settings: what it compares, where it walks, what it writes."""

from __future__ import annotations

import json
import math
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import dispatch, tuned
from pallas_kernels.cca_mix import example as cca_mix
from pallas_kernels.shapes import FORMS
from zaya_jax import aot, cli
from zaya_jax.aot import kernels, roofline, timing, tune
from zaya_jax.aot.targets import H100, MI300X
from zaya_jax.errors import UserError

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
    best, seen = tune.climb(start, cost)
    assert best["rows"] == 64 and best["num_warps"] == 2 and best["num_stages"] <= 2
    assert min(seen.values()) == tune.Cost(0, 0, 1.0)
    assert len(seen) == len(asked) == len(set(asked))


def race(start, costs, times):
    """The fastest of settings of so many rows; `costs` and `times` by rows, an exception for one
    that fails. Also returns which were timed, and what was said."""
    timed, said = [], []

    def clock(choice):
        timed.append(choice["rows"])
        if isinstance(times[choice["rows"]], Exception):
            raise times[choice["rows"]]
        return times[choice["rows"]]

    seen = {(("rows", rows),): cost for rows, cost in costs.items()}
    found = tune.race({"rows": start}, seen, clock, said.append)
    return found, timed, said


def predicted(**seconds):
    return {int(rows[1:]): tune.Cost(0, 0, value) for rows, value in seconds.items()}


def test_a_clock_decides_among_the_best_that_break_nothing():
    costs = predicted(r1=9.0, r2=2.0, r4=1.0, r8=3.0) | {16: tune.Cost(0, 5, 0.1)}
    times = {1: 5.0, 2: 3.0, 4: 4.0, 8: 6.0, 16: 0.1}
    (best, before, after), timed, _ = race(1, costs, times)
    assert best == {"rows": 2} and after == tune.Cost(0, 0, 3.0)
    assert before == tune.Cost(0, 0, 5.0), "measured too, not predicted"
    assert 16 not in timed and len(timed) == len(set(timed))


def test_where_one_starts_is_timed_however_it_ranks_and_stays_if_nothing_is_faster():
    costs = {rows: tune.Cost(0, 0, 1.0 / rows) for rows in range(1, 20)}
    times = {rows: 2.0 for rows in costs} | {1: 1.0}
    (best, before, after), timed, _ = race(1, costs, times)
    assert best == {"rows": 1} and before == after == tune.Cost(0, 0, 1.0)
    assert len(timed) == 1 + tune.TIMED


def test_a_clock_has_a_margin_too():
    (best, *_), _, _ = race(1, predicted(r1=2.0, r2=1.0), {1: 1.0, 2: 0.99})
    assert best == {"rows": 1}
    (best, *_), _, _ = race(1, predicted(r1=2.0, r2=1.0), {1: 1.0, 2: 0.9})
    assert best == {"rows": 2}


def test_what_fails_on_the_device_is_told_and_never_chosen():
    broken = RuntimeError("an illegal address")
    costs = predicted(r1=3.0, r2=1.0, r4=2.0)
    (best, *_), _, said = race(1, costs, {1: 2.0, 2: broken, 4: 1.0})
    assert best == {"rows": 4} and "[rows=2] failed on the device: RuntimeError" in said[0]
    (best, before, _), _, _ = race(1, costs, {1: broken, 2: broken, 4: broken})
    assert best == {"rows": 1} and before.seconds == math.inf


def test_a_program_is_timed_on_what_is_attached():
    x = jax.ShapeDtypeStruct((64, 64), jnp.bfloat16)
    program = aot.Program(lambda x, n: x @ x * n[0], (x, np.array([2], np.int32)))
    assert 0 < timing.seconds_of(program) < 1


def test_many_calls_give_what_one_gives():
    def call(x, n):
        return {"y": x * n[0], "n": n}, x > 1

    arguments = jnp.arange(4.0), jnp.array([3], jnp.int32)
    rounds, found = jax.jit(timing.repeated(call, 5))(*arguments)
    assert rounds == 5 * 3  # what each round adds: the first numbers of its results
    jax.tree.map(np.testing.assert_array_equal, found, call(*arguments))


def test_a_mix_is_timed_at_positions_where_it_reads_its_taps():
    """Integers that nobody gives are 0, where a document has no tap."""
    for form in FORMS.values():
        for call in cca_mix.shapes_8b(form).values():
            positions = np.asarray(call.args[7])
            assert positions.shape == (form.rows, form.queries)
            assert (positions[:, -1] == form.keys - 1).all()


def test_time_needs_the_targets_gpu(capsys):
    if dispatch.platform() != "cpu":
        pytest.skip("a GPU is attached")
    assert cli.main(["kernels", "--tune", "--time", "--target=h100"]) == 2
    assert "needs a GPU of cuda, and jax runs on cpu" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("target", "kind", "fits"),
    [
        (H100, "NVIDIA H100 80GB HBM3", True),
        (H100, "NVIDIA H100 PCIe", False),
        (H100, "NVIDIA H200", False),
        (H100, "NVIDIA GeForce RTX 4090", False),
        (MI300X, "AMD Instinct MI300X", True),
        (MI300X, "AMD Instinct MI250X", False),
    ],
)
def test_another_gpu_of_the_same_maker_is_not_the_target(monkeypatch, target, kind, fits):
    monkeypatch.setattr(dispatch, "platform", lambda: target.platform)
    monkeypatch.setattr(jax, "devices", lambda: [types.SimpleNamespace(device_kind=kind)])
    if fits:
        return timing.require_attached(target)
    with pytest.raises(UserError, match=f"needs an {target.title}, and {kind} is attached"):
        timing.require_attached(target)


def test_settings_stay_within_what_compilers_take():
    for choice in tune.neighbours({"rows": 1, "num_warps": 8, "num_stages": 1}):
        assert choice["rows"] >= 1 and choice["num_warps"] <= 8 and choice["num_stages"] >= 1


def test_a_count_of_programs_is_no_block():
    around = list(tune.neighbours({"rows": 1024, "programs": 4096, "num_warps": 4}))
    assert {choice["programs"] for choice in around} == {2048, 4096, 8192}
    assert max(choice["rows"] for choice in around) == 1024


class Pretends:
    """Compiles nothing: a large launch `large` and a small one `small`, each of whose work shrinks
    with `rows` of its own kernel; `small` is of the kernel `small_float32` in calls of float32."""

    target = MI300X

    def compile(self, job):
        settings, launches, compiled = job.arguments["settings"], [], []
        for name, moved in (("large", 1e9), ("small", 1e6)):
            float32 = name == "small" and job.arguments["call"] == "float32"
            own = settings[f"{name}_float32" if float32 else name]
            counts = aot.Counts(0, 0, (moved / own["rows"],), True, {}, 0, True, 1.0)
            launches.append(launch(name=name, warps=own["num_warps"], counts=counts))
            compiled.append(kernel(name=name))
        return aot.Report("mi300x", 1, kernels=tuple(compiled), launches=tuple(launches))


@pytest.fixture
def pretended(monkeypatch):
    """`tune.tune` on an op with the kernels of `Pretends`: findings by kernel, and what it said."""
    own = {"rows": 4, "num_warps": 4}
    table = {"rocm": {"large": own, "small": own, "small_float32": own}}
    monkeypatch.setattr(tuned, "table", lambda op: table)
    said = []

    def run(forms):
        found = tune.tune(Pretends(), "router", forms, said.append)
        return {finding.kernel: finding for finding in found}, said

    return run


def test_a_small_kernel_beside_a_large_one_is_tuned(pretended):
    """Whatever it gains is less than the margin of both together."""
    found, _ = pretended(["decode_8"])
    small = found["small"]
    assert small.after["rows"] > small.before["rows"]
    assert small.cost_after.beats(small.cost_before)


def test_settings_of_float32_are_tuned_at_a_call_in_float32(pretended):
    found, said = pretended(None)
    own = found["small_float32"]
    assert own.after["rows"] > own.before["rows"]
    assert not any("not used" in line for line in said)
    found, said = pretended(["decode_8"])  # which has none, and was asked for
    assert "small_float32" not in found
    assert "router small_float32: not used by these calls" in said


@pytest.fixture
def own_table(tmp_path, monkeypatch):
    """Returns a function that puts a table in place of an op's `tuned.json`, and gives its path."""

    def put(op, table):
        (tmp_path / op).mkdir()
        path = tmp_path / op / "tuned.json"
        path.write_text(json.dumps(table))
        return path

    monkeypatch.setattr(tuned, "FOLDER", tmp_path)
    tuned.table.cache_clear()
    yield put
    tuned.table.cache_clear()


@pytest.mark.slow
def test_the_verb_searches_and_writes(compiler, own_table, monkeypatch, capsys):
    """From settings that no one would choose, to better ones."""
    platform, target = compiler.target.platform, compiler.target.name
    # So many rows are too many for the registers of one warp.
    poor = {"rows": 8 if platform == "rocm" else 4, "steps": 1, "num_warps": 1, "num_stages": 1}
    other = "cuda" if platform == "rocm" else "rocm"
    table = {name: {"forward": poor, "backward": poor} for name in (platform, other)}
    path = own_table("residual_norm", table)
    monkeypatch.setattr(tune, "ROUNDS", 1)
    arguments = ["--tune", "--nosecond", "--op=residual_norm", "--form=prefill"]
    assert cli.main(["kernels", f"--target={target}", *arguments]) == 0
    printed, written = capsys.readouterr().out, json.loads(path.read_text())
    assert "residual_norm backward: not used by these calls" in printed
    assert "predicted, " in printed and "kernels pass" in printed
    assert written[platform]["forward"] != poor and written[platform]["backward"] == poor
    assert written[other] == table[other]


def test_what_was_found_is_written_in_the_style_of_the_file(own_table):
    before = {
        "rocm": {
            "forward": {"rows": 2, "num_warps": 4, "num_stages": 1},
            "backward": {"rows": 4, "num_warps": 4, "num_stages": 1},
        },
        "cuda": {"forward": {"rows": 8, "num_warps": 4, "num_stages": 1}},
    }
    path = own_table("op", before)
    after = {"rows": 16, "num_warps": 8, "num_stages": 1}
    finding = tune.Finding("forward", before["rocm"]["forward"], after, FINE, FINE, 1)
    tune.write("op", "rocm", [finding])
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
    base["operands"] = 1
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
