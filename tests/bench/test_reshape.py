"""The suite that saves on one mesh and restores on another."""

from __future__ import annotations

import json

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax import ShapeDtypeStruct

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


@pytest.mark.slow
def test_what_was_saved_on_one_mesh_is_restored_on_another(tmp_path, capsys):
    file = tmp_path / "reshape.json"
    assert cli.main(["bench", "--suite=reshape", f"--json={file}"]) == 0
    assert "restore" in capsys.readouterr().out
    save, restore = json.loads(file.read_text())["sides"]
    assert save["mesh"] != restore["mesh"] and save["bytes"] == restore["bytes"] > 2**20
    assert save["wrong"] == restore["wrong"] == 0
    assert all(side["peak"] > side["before"] > 0 < side["seconds"] for side in (save, restore))
