"""What is found fits, and nothing larger or cheaper would have."""

from __future__ import annotations

import dataclasses

import pytest

from tests.plan.small import experiment
from zaya_jax.config import mesh as line
from zaya_jax.plan import cluster, plan, search


def roomy(share: float, mesh: str = "data=4"):
    """A cluster whose devices hold so many times what the experiment takes under `full`."""
    plain = cluster("mi300x")
    need = plan(experiment(mesh), plain).memory.total
    return dataclasses.replace(plain, memory=share * need / plain.usable + 1)  # not a rounding less


@pytest.mark.parametrize("share", [1.0, 1.7, 4.0])
def test_the_largest_batch_fits_and_one_row_more_does_not(share):
    hardware, these = roomy(share), experiment("data=4")
    found = search.largest_batch(these, hardware)
    assert found is not None and found.fits
    assert found.case.rows >= 4  # the experiment's own
    one_more = plan(search.with_rows(these, found.case.rows + 1), hardware)
    assert not one_more.fits


def test_nothing_fits_into_too_little():
    hardware, these = roomy(0.01), experiment("data=4")
    assert search.largest_batch(these, hardware) is None
    assert search.cheapest(these, hardware) is None
    assert search.best(these, hardware, 4) == []


def test_more_devices_are_asked_for_where_few_do_not_do():
    these = experiment("")
    hardware = roomy(0.3)
    assert not search.best(these, hardware, 2)
    found = search.smallest(these, hardware, 2)
    assert found is not None and found.fits and found.case.devices > 2


def test_the_cheapest_policy_that_fits_is_taken():
    hardware, these = roomy(1.0), experiment("data=4")
    found = search.cheapest(these, hardware)
    assert found is not None and found.case.experiment.model.remat == "full"
    found = search.cheapest(these, roomy(100.0))
    assert found is not None and found.case.experiment.model.remat == "none"


def test_all_meshes_can_be_run_and_none_is_left_out():
    these = experiment("")
    found = set(search.meshes(these, 8))
    assert {"data=8", "fsdp=8", "context=8", "expert=8", "data=2,fsdp=2,expert=2"} <= found
    for mesh in found:
        assert line.devices(mesh) == 8
        assert not list(line.check(dataclasses.replace(these, mesh=mesh)))
    # 16 rows cannot be divided by 32, and 8 experts not by 16.
    found = set(search.meshes(these, 32))
    assert found and not {"data=32", "expert=32", "data=2,expert=16"} & found


def test_meshes_are_ranked_and_cut_into_microbatches_where_they_must():
    told = []
    these = experiment("")
    found = search.best(these, roomy(1.2), 4, lambda done, of: told.append((done, of)))
    assert found and all(one.fits for one in found)
    times = [one.time.seconds for one in found]
    assert times == sorted(times)
    assert told[-1][0] == told[-1][1] == len(list(search.meshes(these, 4)))
    tight = search.best(these, roomy(0.8), 4)
    assert tight and any(one.case.microbatches > 1 for one in tight)
    assert {one.case.tokens_a_step for one in tight} == {16 * 32}
