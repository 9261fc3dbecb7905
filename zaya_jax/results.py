"""Reruns the studies behind docs/results: each is a sweep, and each page is made from its runs.

The studies are the sweeps of experiments/ablations, and the search for PID gains. What is done is
not done again: a call that was stopped goes on, and a page is written as soon as its sweep ends."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from absl import flags

from zaya_jax import options
from zaya_jax.data.cache import atomic_path
from zaya_jax.errors import UserError, hint

FLAGS = flags.FLAGS

ROOT = Path(__file__).parents[1]
STUDIES = {
    "router": "experiments/ablations/router.py",
    "balancers": "experiments/ablations/balancers.py",
    "recall": "experiments/ablations/recall.py",
    "cca": "experiments/ablations/cca.py",
    "attention": "experiments/ablations/attention.py",
    "residual": "experiments/ablations/residual.py",
    "pid": "experiments/sweeps/pid.py",
}
INDEX = "README.md"
INTRODUCTION = """# Results

What small models on two CPU cores say of the claims made for ZAYA and CCA. Every page has its
command, commit, hardware and cost; `make results` reruns them all (hours; it goes on where it was
stopped), `python launch.py results --only=recall` one of them.

**How to read a verdict.** Arms are compared seed by seed: a seed gives all of them the same batches
and, where shapes agree, the same initial weights. `agrees` and `disagrees` mean that the 95%
interval of the difference lies wholly on one side of zero; everything else is `not settled`, and
says how many seeds would settle a difference of the size seen. These models have a ten-thousandth
of ZAYA1-8B's parameters: a verdict is about them, and a hint about it."""
LONGEST = 90.0
"""Seconds that a run of a study may take, on one core of a quiet machine."""


def define_flags() -> None:
    """See `zaya_jax.options`."""
    flags.DEFINE_list("only", list(STUDIES), "the studies to rerun, of these")
    flags.DEFINE_string("workdir", "runs/results", "where the sweeps' directories are")
    options.out("folder of the pages (default: docs/results)")
    options.json()


def main(argv: Sequence[str]) -> int:
    """Returns 0 when all pages are written, else the exit status of the sweep that did not end."""
    del argv
    names = FLAGS.only
    for name in names:
        if name not in STUDIES:
            raise UserError(f"--only: no study {name!r}{hint(name, STUDIES)}")
    folder, out = Path(FLAGS.workdir), Path(FLAGS.out or ROOT / "docs" / "results")
    from zaya_jax.report import cli, markdown  # not above: `--help` needs no matplotlib
    from zaya_jax.sweep import supervise

    for number, name in enumerate(names):
        print(f"--- {name} ({number + 1} of {len(names)}) ---", flush=True)
        sweep = ["sweep", f"--config={STUDIES[name]}", f"--workdir={folder / name}"]
        done = subprocess.run([*supervise.launcher(), *sweep], check=False)
        if done.returncode:
            return done.returncode
        markdown.write(cli.of([folder / name]), out / f"{name}.md")
    made = [name for name in STUDIES if (out / f"{name}.md").exists() and (folder / name).exists()]
    with atomic_path(out / INDEX) as scratch:
        scratch.write_text(index({name: folder / name for name in made}))
    print(f"pages: {out / INDEX}")
    options.write_json({"pages": str(out), "studies": names})
    return 0


def index(folders: Mapping[str, Path]) -> str:
    """The index page as Markdown.

    Args:
      folders: the directories of finished sweeps, by the name of the study.
    """
    studies = [part for name, folder in folders.items() for part in _study(name, folder)]
    return "\n\n".join([INTRODUCTION, *studies]) + "\n"


def _study(name: str, folder: Path) -> Iterator[str]:
    """What the index says of one study: question, claims with their verdicts, cost."""
    from zaya_jax.report import cli
    from zaya_jax.report.content import Badge, Table, Text

    page = cli.of([folder])
    said = [part.text for part in page.opening if isinstance(part, Text) and part.kind != "warning"]
    yield f"## [{name}]({name}.md)"
    yield "\n\n".join(said)
    tables = [
        part
        for section in page.without_gaps()
        for part in section.parts
        if section.title == "Claims" and isinstance(part, Table)
    ]
    for table in tables[:1]:
        yield "\n".join(
            "| " + " | ".join(x.word if isinstance(x, Badge) else str(x) for x in row) + " |"
            for row in (table.head, ["---"] * len(table.head), *table.rows)
        )
    yield f"_{cost(folder)}_"


def cost(folder: Path) -> str:
    """What a sweep took, and where it ran."""
    from zaya_jax.sweep import measures, record
    from zaya_jax.train import workdir

    runs = [
        measures.seconds(measures.read(run.parent, workdir.read_config(run.parent))) or 0.0
        for run in sorted(folder.glob(f"trials/*/*/{workdir.CONFIG}"))
    ]
    start = record.read_json(folder / workdir.ENVIRONMENT)[0]
    longest = max(runs, default=0.0)
    note = "" if longest <= LONGEST else f", more than the {LONGEST:.0f} s meant for a quiet core"
    return (
        f"{len(runs)} runs, {sum(runs) / 60:.0f} core-minutes; the longest took {longest:.0f} s"
        f"{note}. Commit {str(start.get('commit'))[:12]}, {start.get('processor')}, "
        f"{start.get('cores')} cores. `{start.get('command')}`"
    )
