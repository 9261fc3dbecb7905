"""Names as matplotlib would like to read them."""

import numpy as np
import pytest

from zaya_jax.report import figures
from zaya_jax.report.bands import Band, bands, intervals
from zaya_jax.sweep.statistics import interval

BAND = Band(np.arange(3), np.array([[1.0, 2.0, 3.0]]))


@pytest.mark.parametrize("name", ["cost $5 or $6", "_hidden", "$\\frac{1}$"])
def test_names_of_arms_are_shown_as_they_are(name):
    svg = bands("loss", {name: BAND, "plain": BAND}, "step", "nats")
    shown = svg.replace(f"<title>{name}</title>", "")
    assert f">{name}<" in shown and ">plain<" in shown
    values = {0: 1.0, 1: 2.0}
    rows = intervals("loss", {name: (interval(values.values()), values, [])}, "nats")
    assert f">{name}<" in rows


def test_ticks_of_a_logarithmic_axis_are_plain_numbers():
    values = {"matrix": np.array([1e-3, 1.0, 10.0])}
    svg = figures.groups("norms", [1, 2, 3], values, "norm")
    assert "mathdefault" not in svg and ">1e−03<" in svg
