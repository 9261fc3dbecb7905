"""What is read from a compiler's report: bytes beside the predicted, and what is amiss."""

from __future__ import annotations

import dataclasses
import sys

import pytest

from tests.plan.small import experiment, planned
from zaya_jax import cli
from zaya_jax.aot.report import Memory, Report
from zaya_jax.config import rl
from zaya_jax.plan import case_of, compiled, words
from zaya_jax.plan.memory import optimizer

MESH = "data=2,expert=4"
OVER_EXPERT, OVER_DATA = "replica_groups=[2,4]<=[8]", "replica_groups=[4,2]<=[2,4]T(1,0)"


def report(*lines: str, **changes) -> Report:
    """Of a program that holds these instructions, the last of them 2 times a step."""
    *once, loop = lines or ("",)
    hlo = "\n".join([
        "%body (t: (f32[4])) -> (f32[4]) {", loop, "}", "",
        "ENTRY %main (p: f32[4]) -> f32[4] {", *once,
        '  %w = (f32[4]) while(%t), body=%body, backend_config={"known_trip_count":{"n":"2"}}', "}",
    ])  # fmt: skip
    memory = Memory(arguments=1000, outputs=900, temporaries=500, aliased=800)
    plain = Report("mi300x", 8, seconds=1.0, memory=memory, hlo=hlo, versions={"jax": "0"})
    return dataclasses.replace(plain, **changes)


def read(*lines: str, **changes) -> compiled.Compiled:
    found = planned(MESH)
    return compiled.read(found.case, report(*lines, **changes), list(found.messages))


def test_collectives_are_summed_by_kind_and_axes():
    found = read(
        f"  %a = f32[8,4]{{1,0}} all-gather(%p), {OVER_EXPERT}",
        f"  %b = bf16[8,4]{{1,0}} all-gather(%p), {OVER_EXPERT}",
        f"  %c = f32[4]{{0}} reduce-scatter(%p), {OVER_DATA}",
    )
    assert found.groups == (
        compiled.Group("all-gather", ("expert",), 2, 8 * 4 * (4 + 2), True),
        compiled.Group("reduce-scatter", ("data",), 2, 2 * 2 * 4 * 4, True),
    )
    assert (found.arguments, found.temporaries, found.total) == (1000, 600, 1600)
    assert not found.warnings


def test_gathered_experts_are_told():
    found = read(f"  %a = f32[8,32,32]{{2,1,0}} all-gather(%p), {OVER_EXPERT}")
    assert ["experts' matrices are gathered over expert: [8, 32, 32]"] == list(found.warnings)


@pytest.mark.parametrize(
    ("shape", "over", "fine"),
    [
        ((96, 2048), OVER_DATA, False),  # a row of activations is not as wide
        ((16, 2, 4096, 32), OVER_DATA, False),
        ((4096, 96), OVER_EXPERT, False),
        ((2, 32, 32), OVER_DATA, True),  # of a layer's experts
        ((96, 32), "replica_groups=[1,8]<=[8]", True),  # the embedding
    ],
)
def test_gathered_activations_are_told(shape, over, fine):
    text = ",".join(map(str, shape))
    found = read(f"  %a = f32[{text}] all-gather(%p), {over}")
    told = [line for line in found.warnings if "of no parameter's shape" in line]
    assert bool(told) != fine
    assert fine or told[0].startswith(f"{list(shape)} is gathered over ")


def test_a_gather_that_no_formula_has_is_told():
    """All-gathers over data and expert are planned; one over groups that are no axis is not."""
    many = ", ".join(["f32[96,32]"] * 100)
    fine = read(f"  %a = ({many}) all-gather(%p), replica_groups=[1,8]<=[8]")
    odd = read(f"  %a = ({many}) all-gather(%p), replica_groups={{{{0,3}},{{1,2}}}}")
    assert not fine.warnings
    [told] = odd.warnings
    assert "2,457,600 bytes are gathered over devices that are no axis" in told


def test_forced_rematerialisation_is_told():
    line = "Involuntary full rematerialization of %x"
    assert read(warnings=(line, "some spill")).warnings == (line,)


def test_the_optimizers_state_lies_beside_a_microbatch_of_rl():
    section = rl.RL(tasks=(("x.jsonl", 1.0),), microbatch_rows=8, microbatch_tokens=64)
    case = case_of(dataclasses.replace(experiment(MESH), rl=section))
    found = compiled.read(case, report(), [])
    assert optimizer(case) > 0 and found.total == 1600 + optimizer(case)


def test_a_refusal_is_in_the_compilers_words():
    plan = planned(MESH)
    refused = Report("mi300x", 8, error="RESOURCE_EXHAUSTED: too much")
    found = compiled.read(plan.case, refused, [])
    assert "DOES NOT COMPILE: RESOURCE_EXHAUSTED: too much" in "\n".join(words.beside(plan, found))


def test_both_stand_side_by_side():
    plan = planned(MESH)
    lines = "\n".join(words.beside(plan, read(f"  %a = f32[{2**20}] all-gather(%p), {OVER_DATA}")))
    for part in ("arguments", "temporaries", "1000 B", "all-gather           data", "8.0 MiB"):
        assert part in lines


def test_the_job_is_the_step_that_trains():
    plan = planned(MESH)
    job = compiled.job(plan.case)
    assert job.function == "zaya_jax.aot.sharded:training" and job.devices == 8
    assert job.arguments["experiment"]["mesh"] == MESH
    assert compiled.job(planned("").case).mesh is None


def test_without_a_compiler_it_is_said_how_to_get_one(monkeypatch, capsys):
    monkeypatch.setenv("ZAYA_AOT_PYTHON", sys.executable)
    pytest.importorskip("jax")
    from zaya_jax.aot import target_of, unavailable

    if unavailable(target_of("mi300x"), sys.executable) is None:
        pytest.skip("this interpreter has the compilers")
    status = cli.main(["plan", "--config=experiments/zaya1_tiny.py", "--mesh=data=8", "--compile"])
    told = capsys.readouterr().err
    assert status == 2 and "requirements-aot.txt" in told
