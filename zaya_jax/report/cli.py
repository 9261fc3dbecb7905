"""Writes the page of a run, of several runs beside each other, of a sweep, or of evaluations."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from zaya_jax import options
from zaya_jax.errors import UserError

if TYPE_CHECKING:
    from zaya_jax.report.content import Page


def define_flags() -> None:
    """See `zaya_jax.options`."""
    options.workdir()
    options.out(
        "page to write, with its Markdown beside it; by default report.html in the directory of "
        "the run or sweep, or in the folder that several runs share"
    )
    options.json()


def main(argv: Sequence[str]) -> None:
    """Prints the results and where the page is."""
    del argv
    folders = [Path(name) for name in options.require("workdir").split(",") if name]
    if not folders:
        raise UserError("--workdir= is empty: expected a run, several (A,B,C), or a sweep")
    from zaya_jax.report import content, page  # not above: `--help` needs no matplotlib

    found = of(folders)
    out = Path(options.FLAGS.out) if options.FLAGS.out else _shared(folders) / "report.html"
    try:
        page.save(found, out)
    except OSError as error:
        raise UserError(f"{out}: cannot write there: {error.strerror}") from error
    print(content.as_lines(found))
    print(f"report: {out}")
    options.write_json({"report": str(out), **found.results})


def of(folders: Sequence[Path]) -> Page:
    """The page of what the directories hold.

    Raises:
      UserError: one is no run, sweep or evaluation, or a sweep is among several.
    """
    from zaya_jax.report import compare, evaluations, page, run, search, study

    evaluated = [folder for folder in folders if evaluations.is_evaluation(folder)]
    if evaluated and len(evaluated) == len(folders):
        return evaluations.of(folders)
    sweeps = [folder for folder in folders if study.is_sweep(folder)]
    if sweeps and len(folders) > 1:
        raise UserError(
            f"--workdir has the sweep {sweeps[0]} among several: a sweep has a page of its own; "
            "to compare runs of sweeps, name their directories (SWEEP/trials/000/seed-0)"
        )
    if sweeps:
        found = study.read(folders[0])
        made_by = compare if found.settings["search"] == "arms" else search
        return made_by.of_study(found)
    if len(folders) > 1:
        return compare.of_runs(folders)
    return page.of_run(run.read(folders[0]), {})


def _shared(folders: Sequence[Path]) -> Path:
    if len(folders) == 1:
        return folders[0]
    return Path(os.path.commonpath([folder.absolute().parent for folder in folders]))
