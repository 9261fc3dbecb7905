"""Stands in for launch.py: writes by a formula, in a moment, what a run of minutes would.

It goes on from what is there, saves when it is told to end, and misbehaves as `data.source` says:
`fail`, `killed:N` (its first N starts end in SIGKILL), `orphaned:N` (they kill the process that
started them), `slow:SECONDS` (a step takes so long).
"""

import fcntl
import json
import math
import os
import signal
import sys
import time
from pathlib import Path


def main() -> int:
    options = dict(arg[2:].split("=", 1) for arg in sys.argv[2:])
    if sys.argv[1] == "report":
        Path(options["workdir"], "report.html").touch()
        return int(os.environ.get("FAKE_REPORT_STATUS", "0"))
    config = json.loads(Path(options["config"].split(":", 1)[1]).read_text())
    folder = Path(options["workdir"])
    kind, _, number = config["data"]["source"].partition(":")
    folder.mkdir(parents=True, exist_ok=True)
    lock = (folder / ".lock").open("a")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print(f"error: another process trains in --workdir={folder}")
        return 2
    with (folder / "starts").open("a") as starts:
        starts.write(f"{os.environ.get('NPROC')}\n")
    if kind == "fail":
        print("compiling ...\nerror: data.source = 'fail': no such file\n  give another")
        return 2
    begun = len((folder / "starts").read_text().split())
    if kind in ("killed", "orphaned") and begun <= int(number):
        os.kill(os.getpid() if kind == "killed" else os.getppid(), signal.SIGKILL)
        time.sleep(60)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    return train(config, folder, float(number) if kind == "slow" else 0.0)


def train(config: dict, folder: Path, pause: float) -> int:
    (folder / "config.json").write_text(json.dumps(config))
    file, steps = folder / "metrics.jsonl", config["train"]["steps"]
    done = len(file.read_text().splitlines()) if file.exists() else 0
    balance, seed = config["balance"], config["train"]["seed"]
    worse = abs(math.log10(balance["kp"] + 1e-3) + 1) + abs(math.log10(balance["ki"]) + 2)
    with file.open("a", buffering=1) as out:
        for step in range(done, steps + 1):
            time.sleep(pause)
            bits = 1 + worse * (1 + 0.1 * seed) + 1 / (1 + step)
            line = {"step": step, "seconds": 0.5 * step, "loss": bits, "load_entropy": [0.5, 0.9]}
            line |= {"heldout_bits_per_byte": bits, "heldout_loss": bits}
            out.write(json.dumps(line) + "\n")
    (folder / "checkpoints" / str(steps)).mkdir(parents=True, exist_ok=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
