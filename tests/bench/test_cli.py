"""What `launch.py bench` refuses before it measures."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--batches=1,x"], "--batches=1,x"),
        (["--suite=serving", "--clients=0"], "--clients=0"),
        (["--suite=serving", "--plot=figure.pdf"], "--plot=figure.pdf"),
        (["--what=prefil"], "--what=prefil"),
        (["--config.model.param_dtype=bfloat16"], "model.param_dtype = bfloat16"),
    ],
)
def test_a_bad_option_is_named(options, named):
    pytest.importorskip("transformers")
    command = [sys.executable, "launch.py", "bench", *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert named in done.stderr and "Traceback" not in done.stderr
