"""Trains what the config says in a run directory, and resumes the run that is there.

Ctrl-C, SIGTERM or SIGHUP saves a checkpoint first; the same command goes on from it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from zaya_jax import options


def define_flags() -> None:
    """See `zaya_jax.options`."""
    options.config()
    options.workdir()
    options.mesh()
    options.json()


def main(argv: Sequence[str]) -> int:
    """Returns 0 when all was done, 128 + the signal's number when one stopped the run."""
    settings, folder = options.require("config"), Path(options.require("workdir"))
    if options.FLAGS.mesh is not None:
        settings.mesh = options.FLAGS.mesh
    from zaya_jax import load  # not above: `--help` needs no jax
    from zaya_jax.train import loop

    experiment = load.experiment(settings)

    result = loop.train(experiment, folder)
    options.write_json(
        {
            "workdir": str(result.folder),
            "step": result.step,
            "seconds": result.seconds,
            "heldout_bits_per_byte": result.bits_per_byte,
        }
    )
    if result.interrupted is not None:
        return 128 + int(result.interrupted)
    print(f"done: {folder}")
    print(f"  python launch.py generate --model={folder} --prompt='def '")
    print(f"  python launch.py report --workdir={folder}")
    print(f"  python launch.py export --model={folder} --out={folder}/hf")
    return 0
