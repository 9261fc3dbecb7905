"""Weights of full width go through in memory that does not grow with the number of layers."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zlib
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from zaya_jax.config import Model
from zaya_jax.hf import config_map
from zaya_jax.hf.names import NATIVE, places
from zaya_jax.hf.safetensors_io import Reader, find_files
from zaya_jax.hf.weights import write_weights

ROOT = Path(__file__).parents[2]
LIMIT = 2.5 * 2**30

# Runs in a process of its own and prints the peak of its anonymous memory, in bytes, per stage.
# Pages of mapped files are not counted: the kernel takes them back whenever it wants.
MEASURE = """
import json, re, sys, threading, time
from pathlib import Path
from zaya_jax.hf import convert_folder, import_folder, open_folder

folder, peak, stop = Path(sys.argv[1]), 0, False

def sample():
    global peak
    while not stop:
        status = Path("/proc/self/status").read_text()
        peak = max(peak, 1024 * int(re.search(r"RssAnon:\\s+(\\d+)", status)[1]))
        time.sleep(0.002)

thread = threading.Thread(target=sample)
thread.start()
peaks = {}
for stage, run in {
    "import": lambda: import_folder(folder / "source", folder / "imported"),
    "export": lambda: convert_folder(open_folder(folder / "imported"), folder / "native"),
    "legacy": lambda: convert_folder(
        open_folder(folder / "imported"), folder / "legacy", layout="legacy"
    ),
}.items():
    peak, start = 0, time.monotonic()
    run()
    peaks[stage] = {"peak": peak, "seconds": round(time.monotonic() - start, 1)}
stop = True
thread.join()
print(json.dumps(peaks))
"""


class Random:
    """A `Source` of drawn bfloat16 weights that holds one piece at a time."""

    def __init__(self, model: Model):
        self.model = model

    def dtype(self, name: str) -> np.dtype:
        return np.dtype(ml_dtypes.bfloat16)

    def part(self, name: str, index: int) -> np.ndarray:
        place = places(self.model, NATIVE)[name]
        shape = place.address.shape[1:] if place.stacked else place.address.shape
        random = np.random.default_rng([zlib.crc32(name.encode()), index])
        # Bit patterns below 0x3F80 are the finite numbers from 0 to 1.
        return random.integers(0x3F80, size=shape, dtype=np.uint16).view(ml_dtypes.bfloat16)


def make_slice(folder: Path, layers: int) -> None:
    """A native folder of ZAYA1-8B's width."""
    model = Model(num_layers=layers, layers="unroll")
    source = folder / "source"
    source.mkdir()
    write_weights(Random(model), source, NATIVE)
    (source / "config.json").write_text(json.dumps(config_map.write(model, NATIVE, "bfloat16")))


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's /proc")
def test_full_width_slices_stream(tmp_path):
    if shutil.disk_usage(tmp_path).free < 30e9:
        pytest.skip("needs 30 GB of disk for a while")
    peaks = {}
    for layers in (4, 8):
        folder = tmp_path / str(layers)
        folder.mkdir()
        make_slice(folder, layers)
        done = subprocess.run(
            [sys.executable, "-c", MEASURE, str(folder)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
        peaks[layers] = json.loads(done.stdout)
        print(layers, "layers:", peaks[layers])

        for file in sorted((folder / "source").iterdir()):
            same = subprocess.run(["cmp", file, folder / "native" / file.name], check=False)
            assert same.returncode == 0, file.name
        native = Reader(find_files(folder / "native", "model"))
        legacy = Reader(find_files(folder / "legacy", "model"))
        assert len(native.entries) == 32 * layers + 3
        for name, place in places(Model(num_layers=layers), "legacy").items():
            ours = native.read(name).view(np.uint16)
            for i, old in enumerate(place.names):
                assert legacy.entries[old].dtype == native.entries[name].dtype
                expected = ours[i] if place.apart else ours
                assert np.array_equal(legacy.read(old).view(np.uint16), expected), old
        shutil.rmtree(folder)
    for stage, four in peaks[4].items():
        eight = peaks[8][stage]
        assert eight["peak"] <= LIMIT, (stage, eight)
        assert abs(eight["peak"] - four["peak"]) <= 0.1 * four["peak"], (stage, four, eight)
