"""Writes `report.html` of a run: loss, balance of the experts, config, command, results."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from zaya_jax import options


def define_flags() -> None:
    """See `zaya_jax.options`."""
    options.workdir()
    options.out("file to write; report.html in the run directory by default")
    options.json()


def main(argv: Sequence[str]) -> None:
    """Prints the results and where the page is."""
    del argv
    folder = Path(options.require("workdir"))
    out = Path(options.FLAGS.out or folder / "report.html")
    from zaya_jax.report import page, run  # not above: `--help` needs no matplotlib

    found = run.read(folder)
    page.write(found, out)
    for name, value in found.results.items():
        print(f"{name:<40} {page.text(value)}")
    print(f"report: {out}")
    options.write_json({"report": str(out), **found.results})
