"""The suite that saves on one mesh and restores on another."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax import ShapeDtypeStruct
from jax.sharding import SingleDeviceSharding

from zaya_jax import cli
from zaya_jax.bench import reshape


@given(st.data())
def test_a_part_has_the_numbers_of_the_whole(data):
    """Whichever device makes it, an element is the same; and no two neighbours are."""
    shape = tuple(data.draw(st.lists(st.integers(1, 9), min_size=1, max_size=4)))
    leaf, number = ShapeDtypeStruct(shape, jnp.bfloat16), data.draw(st.integers(0, 300))
    whole = reshape._values(leaf, number, (slice(None),) * len(shape))
    bounds = [sorted(data.draw(st.tuples(*[st.integers(0, n)] * 2))) for n in shape]
    part = tuple(slice(*ends) for ends in bounds)
    np.testing.assert_array_equal(reshape._values(leaf, number, part), whole[part])
    assert whole.shape == shape
    assert all((np.diff(whole, axis=axis) != 0).all() for axis in range(len(shape)))


def test_an_array_that_is_not_what_was_saved_is_counted():
    """In one element, or in a leaf of one number; one that is another leaf's, too."""
    place = SingleDeviceSharding(jax.devices()[0])
    leaves = [ShapeDtypeStruct(shape, jnp.bfloat16, sharding=place) for shape in ((7, 9), (5,), ())]
    arrays = [reshape.made(*leaf) for leaf in enumerate(leaves)]
    assert reshape.differing(arrays) == 0
    assert reshape.differing([arrays[0].at[3, 4].add(1), *arrays[1:]]) == 1
    assert reshape.differing([*arrays[:2], arrays[2] + 1]) == 1
    assert reshape.differing([arrays[0], reshape.made(0, leaves[1]), arrays[2]]) == 1


@pytest.mark.slow
def test_what_was_saved_on_one_mesh_is_restored_on_another(tmp_path, capsys):
    file = tmp_path / "reshape.json"
    assert cli.main(["bench", "--suite=reshape", f"--json={file}"]) == 0
    assert "restore" in capsys.readouterr().out
    save, restore = json.loads(file.read_text())["sides"]
    assert save["mesh"] != restore["mesh"] and save["bytes"] == restore["bytes"] > 2**20
    assert save["wrong"] == restore["wrong"] == 0
    assert all(side["peak"] > side["before"] > 0 < side["seconds"] for side in (save, restore))
