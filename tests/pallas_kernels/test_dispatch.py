"""Which implementation a call gets, and what is said when it is not the one hoped for."""

from __future__ import annotations

import logging

import pytest

from pallas_kernels import dispatch, interpret

TABLE = {name: lambda x, name=name: (name, x) for name in ("triton", "xla", "reference")}
SUPPORTS = {"triton": lambda x: None if x < 10 else f"x below 10, not {x}"}


@pytest.fixture(autouse=True)
def no_interpreter(monkeypatch):
    monkeypatch.delenv(interpret.VARIABLE, raising=False)


def test_auto_takes_the_kernel_on_a_gpu_and_xla_elsewhere():
    for platform, expected in (("rocm", "triton"), ("cuda", "triton"), ("cpu", "xla")):
        with dispatch.compiling_for(platform):
            assert dispatch.call("op", TABLE, SUPPORTS, "auto", 1) == (expected, 1)


def test_auto_passes_over_what_a_kernel_does_not_support_and_says_so_once(caplog):
    dispatch._say_once.cache_clear()
    with dispatch.compiling_for("rocm"), caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert dispatch.call("op", TABLE, SUPPORTS, "auto", 12) == ("xla", 12)
    assert [record.getMessage() for record in caplog.records] == [
        "op: xla instead of triton: x below 10, not 12"
    ]


def test_an_explicit_choice_that_does_not_support_the_call_raises_with_the_reason():
    with dispatch.compiling_for("cuda"):
        assert dispatch.call("op", TABLE, SUPPORTS, "triton", 1) == ("triton", 1)
        with pytest.raises(ValueError, match="op: 'triton' does not take .* x below 10, not 12"):
            dispatch.call("op", TABLE, SUPPORTS, "triton", 12)


def test_a_kernel_asked_for_without_a_gpu_is_refused_unless_it_is_interpreted(monkeypatch):
    with dispatch.compiling_for("cpu"):
        with pytest.raises(ValueError, match="needs an AMD or NVIDIA GPU.*accepted: auto, xla"):
            dispatch.resolve("op", TABLE, "triton")
        monkeypatch.setenv(interpret.VARIABLE, "1")
        assert dispatch.resolve("op", TABLE, "triton") == "triton"
        assert dispatch.resolve("op", TABLE) == "xla"  # a debugging flag changes no choice


@pytest.mark.parametrize("op", dispatch.OPS)
def test_unknown_implementation_names_the_accepted_ones(op):
    table = dispatch.load(op).IMPLEMENTATIONS
    with pytest.raises(ValueError, match=f"{op}.*'fastest'.*auto.*reference"):
        dispatch.resolve(op, table, "fastest")
