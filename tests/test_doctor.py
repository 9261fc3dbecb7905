"""doctor: finds what does not match, and does not call a wrong op well."""

import json
import sys
import types

import jax.numpy as jnp
import pytest

from pallas_kernels import dispatch
from zaya_jax import cli, doctor


@pytest.fixture
def fake_op(monkeypatch):
    """Registers `kernels.<name>` with the given implementations and a draw of one array."""

    def register(name, implementations):
        package = types.ModuleType(f"kernels.{name}")
        package.IMPLEMENTATIONS = implementations
        example = types.ModuleType(f"kernels.{name}.example")
        example.draw = lambda key, dtype: ((jnp.arange(1, 5).astype(dtype),), {"power": 2})
        monkeypatch.setitem(sys.modules, "kernels", types.ModuleType("kernels"))
        monkeypatch.setitem(sys.modules, package.__name__, package)
        monkeypatch.setitem(sys.modules, example.__name__, example)
        return list(doctor.check_ops([name], kernels="kernels"))

    return register


def power(x, power):
    assert isinstance(power, int)  # only arrays may be traced
    return {"y": x**power}


def test_a_right_implementation_passes_in_both_dtypes(fake_op):
    checks = fake_op("square", {"xla": lambda x, power: {"y": x * x}, "reference": power})
    assert [(check.implementation, check.dtype) for check in checks] == [
        ("xla", "float32"),
        ("xla", "bfloat16"),
    ]
    assert all(check.ok and check.chosen for check in checks)


def test_an_implementation_off_by_a_tenth_fails(fake_op):
    checks = fake_op("square", {"xla": lambda x, power: {"y": 1.1 * x * x}, "reference": power})
    assert [check.ok for check in checks] == [False, False]
    assert all(check.error == pytest.approx(0.1, rel=0.1) for check in checks)


def test_one_that_raises_is_told_and_hides_nothing(fake_op):
    def broken(x, power):
        raise NotImplementedError("no such tile")

    table = {"fused": broken, "xla": lambda x, power: {"y": x * x}, "reference": power}
    checks = fake_op("square", table)
    assert [check.ok for check in checks] == [False, True, False, True]
    assert "no such tile" in checks[0].note


def test_a_gpu_kernel_is_not_tried_without_a_gpu(fake_op, monkeypatch):
    def kernel(x, power):
        raise AssertionError("called")

    monkeypatch.delenv(dispatch.interpret.VARIABLE, raising=False)
    monkeypatch.setattr(dispatch, "platform", lambda: "cpu")
    checks = fake_op("square", {"triton": kernel, "xla": power, "reference": power})
    assert all(check.implementation == "xla" for check in checks)


def test_a_missing_op_fails():
    (check,) = doctor.check_ops(["no_such_op"])
    assert not check.ok and "no_such_op" in check.note


@pytest.mark.parametrize(
    "actual",
    [
        {"y": jnp.ones(3)},  # shape
        {"y": jnp.ones(2, jnp.bfloat16)},  # dtype
        {"z": jnp.ones(2)},  # structure
        {"y": jnp.array([1.0, jnp.nan])},
    ],
)
def test_what_is_not_comparable_is_infinitely_wrong(actual):
    assert doctor.relative_error(actual, {"y": jnp.ones(2)}) == float("inf")


def test_integers_must_be_equal():
    assert doctor.relative_error(jnp.arange(3), jnp.arange(3)) == 0
    assert doctor.relative_error(jnp.arange(3), jnp.array([0, 1, 1])) == float("inf")


def test_versions_that_do_not_match_are_problems():
    found = {"jax": "0.10.2", "jaxlib": "0.10.2", "jax-rocm7-plugin": "0.10.0"}
    assert doctor.mismatches(found) == [
        "jax-rocm7-plugin 0.10.0 does not match jax 0.10.2; pip install jax-rocm7-plugin==0.10.2"
    ]
    assert not doctor.mismatches({**found, "jax-rocm7-plugin": "0.10.2.post1"})
    assert doctor.mismatches({"jax": "0.10.2", "flax": None})


def test_a_platform_that_is_not_there_is_told_and_no_traceback(monkeypatch, capsys, tmp_path):
    import jax

    def fail():
        raise RuntimeError("Unable to initialize backend 'rocm'")

    monkeypatch.setattr(jax, "default_backend", fail)
    monkeypatch.setenv("JAX_PLATFORMS", "rocm")
    record = tmp_path / "doctor.json"
    assert cli.main(["doctor", f"--json={record}"]) == 1
    told = "jax finds no device with JAX_PLATFORMS=rocm: RuntimeError: Unable to initialize"
    assert f"PROBLEM: {told}" in capsys.readouterr().out
    assert told in json.loads(record.read_text())["problems"][0]


def test_this_machine_is_well(tmp_path, capsys):
    record = tmp_path / "deep" / "doctor.json"
    assert cli.main(["doctor", f"--json={record}"]) == 0, capsys.readouterr().out
    written = json.loads(record.read_text())
    assert written["ok"]
    assert {check["op"] for check in written["checks"]} == set(dispatch.OPS)
    printed = capsys.readouterr().out
    assert all(op in printed for op in dispatch.OPS)
