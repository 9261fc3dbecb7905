"""Where compilers are looked for, what is said where there are none, and stand-ins for ROCm."""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from zaya_jax import aot
from zaya_jax.aot import stand_ins, targets, wheels

ROOT = Path(__file__).parents[2]


def test_missing_wheels_are_named_with_the_command_that_installs_them(tmp_path):
    python = tmp_path / "python"  # an interpreter without any
    python.write_text(f"#!/bin/sh\nexec {sys.executable} -c \"print('jax-rocm7-plugin')\"\n")
    python.chmod(0o755)
    reason = aot.unavailable(targets.MI300X, str(python))
    assert "mi300x needs jax-rocm7-plugin" in reason
    assert "pip install -r requirements-aot.txt" in reason
    with pytest.raises(ValueError, match="requirements-aot.txt"):
        aot.Compiler("mi300x", str(python))


def test_an_interpreter_that_is_not_there_is_told():
    assert "does not run" in aot.unavailable(targets.H100, "/no/such/python")


def test_plugins_must_match_jax(monkeypatch):
    found = {"jax": "0.10.2", "jax-rocm7-plugin": "0.10.1", "jax-rocm7-pjrt": "0.10.2"}
    monkeypatch.setattr(wheels, "version", found.get)
    assert wheels.missing(targets.MI300X) == ["jax-rocm7-plugin==0.10.2 (not 0.10.1)"]


def test_the_interpreter_is_the_users_then_the_environments_then_this_one(tmp_path):
    assert wheels.interpreter({"ZAYA_AOT_PYTHON": "mine"}, tmp_path) == "mine"
    assert wheels.interpreter({}, tmp_path) == sys.executable
    own = tmp_path / ".venv-aot" / "bin" / "python"
    own.parent.mkdir(parents=True)
    own.touch()
    assert wheels.interpreter({}, tmp_path) == str(own)


def test_the_wheels_are_pinned_with_jax():
    pins = dict(
        re.findall(r"^([\w-]+)==(.+)$", (ROOT / "requirements-aot.txt").read_text(), re.MULTILINE)
    )
    [jax_pin] = re.findall(r"^jax==(.+)$", (ROOT / "requirements.txt").read_text(), re.MULTILINE)
    for platform in wheels.PLUGINS:
        assert all(pins[name] == jax_pin for name in wheels.PLUGINS[platform])
        assert all(name in pins for name in wheels.TOOLS[platform])
    assert "triton" in pins


def test_targets_and_the_device_that_xla_is_told_of():
    for target in aot.TARGETS.values():
        text = target.description()
        assert text.count("{") == text.count("}")
        assert f"shared_memory_per_block_optin: {target.shared_per_group} " in text
        assert target.peak_of("bfloat16") > target.peak_of("tf32") == target.peak["vector"]


def test_a_real_rocm_is_never_covered(tmp_path):
    assert not stand_ins.real_rocm({"ROCM_PATH": str(tmp_path)})
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "libamdhip64.so.7").touch()
    assert stand_ins.real_rocm({"ROCM_PATH": str(tmp_path)})


@pytest.mark.skipif(
    not all(map(shutil.which, ("gcc", "nm", "readelf"))), reason="needs gcc and binutils"
)
def test_stand_ins_load_and_answer_that_there_is_no_device(tmp_path):
    plugin = _plugin_that_needs_hip(tmp_path)
    folder = stand_ins.make([plugin], tmp_path / "cache")
    library = ctypes.CDLL(str(folder / "libamdhip64.so.7"))
    assert library.hipInit() == stand_ins.NO_DEVICE
    library.hipGetErrorString.restype = ctypes.c_char_p
    assert b"no ROCm" in library.hipGetErrorString()
    assert not hasattr(library, "strlen_of_ours")
    before = (folder / "libamdhip64.so.7").stat().st_mtime_ns
    assert stand_ins.make([plugin], tmp_path / "cache") == folder
    assert (folder / "libamdhip64.so.7").stat().st_mtime_ns == before


def test_without_a_compiler_stand_ins_name_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RuntimeError, match="gcc, which is not installed"):
        stand_ins.make([], tmp_path / "cache")


def _plugin_that_needs_hip(folder: Path) -> Path:
    """A library that was linked against HIP, as jax's plugin was."""

    def build(source: str, output: str, *options: str) -> Path:
        (folder / "source.c").write_text(source)
        command = ["gcc", "-shared", "-fPIC", "-o", output, "source.c", *options]
        subprocess.run(command, cwd=folder, check=True)
        return folder / output

    real = "int hipInit(void) { return 0; } const char* hipGetErrorString(void) { return 0; }"
    build(real, "libamdhip64.so.7", "-Wl,-soname,libamdhip64.so.7")
    uses = "int hipInit(void); const char* hipGetErrorString(void); "
    body = "int start(void) { return hipInit() + !hipGetErrorString(); }"
    return build(uses + body, "plugin.so", "-L.", "-l:libamdhip64.so.7")
