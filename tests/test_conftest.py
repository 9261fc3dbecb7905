"""What the tests' own configuration promises."""

import sys

import pytest


def test_a_missing_oracle_skips_a_test_unless_it_is_required(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delenv("ZAYA_REQUIRE_ORACLES", raising=False)
    with pytest.raises(pytest.skip.Exception):
        pytest.importorskip("torch")
    monkeypatch.setenv("ZAYA_REQUIRE_ORACLES", "1")
    with pytest.raises(ImportError):
        pytest.importorskip("torch")
    with pytest.raises(pytest.skip.Exception):
        pytest.importorskip("no_such_module_of_ours")
