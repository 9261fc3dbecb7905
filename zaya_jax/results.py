"""Reruns the studies behind docs/results: each is a sweep, and each page is made from its runs.

The studies are the sweeps of experiments/ablations, and the search for PID gains. What is done is
not done again: a call that was stopped goes on, and a page is written as soon as its sweep ends."""

from __future__ import annotations

import dataclasses
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags

from zaya_jax import options
from zaya_jax.data.cache import atomic_path
from zaya_jax.errors import UserError, hint

if TYPE_CHECKING:
    from zaya_jax.report.content import Page

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
    "rl_sft": "experiments/ablations/rl_sft.py",
    "rl": "experiments/ablations/rl.py",
    "rsa_sft": "experiments/ablations/rsa_sft.py",
    "rsa": "experiments/ablations/rsa.py",
}
BEGINS = {"rl": "rl_sft", "rsa": "rsa_sft"}
"""Studies that begin where the runs of another ended: its directory is their file's argument."""
OUTLOOK = {
    "router": """
        Whether the order turns with width and time. A router of width 32 starts nearly flat: three
        small matrices shrink what tells tokens apart, and for the first hundred steps a balancer's
        step outweighs all probabilities. The report's routers are 256 wide, its batches
        8,192 times as large, and its figure begins where this study ends.""",
    "balancers": """
        Which balancer holds even loads for thousands of steps, at a rate tuned for each, and under
        a shift that moves the loads more than this one does.""",
    "recall": """
        How long the full CCA takes on every seed: the mean of q and k ties a query to its own key,
        which this task has to unlearn, and 300 steps are enough for some seeds only.""",
    "cca": """
        The value shift, whose effect is below the noise of these seeds, and whether the gains, here
        ten times those of the paper's 1.5B model, shrink with size as they seem to.""",
    "attention": """
        Whether differences of this size last: the paper's are of 0.01 to 0.035 nats, at a billion
        parameters. MHA has half the heads here, as it must at equal bytes of cache, and so 4% fewer
        operations; its expert cannot make up for that and for parameters at once.""",
    "residual": """
        Whether scaling bounds the norm at the report's 40 layers and hundreds of thousands of
        steps. At the start both arms are the same function; in so few steps scales move little.""",
    "pid": """
        Gains for long runs. A hundred steps reward whatever is fast; an integral gain that is right
        here may swing once routers are sure.""",
    "rl_sft": """
        Nothing: it is where the next study begins.""",
    "rl": """
        Whether what RL finds here, to do what a minority of the demonstrations does, is all that it
        can find; and everything that shows only in thousands of tokens an answer: staleness,
        truncation, length.""",
    "rsa_sft": """
        Nothing: it is where the next study begins.""",
    "rsa": """
        Whether RSA beats a vote where models can read attempts: after 800 steps these models work
        half of the sums out by themselves, but often go on from lines that no attempt has. And
        whether aggregation finds what no attempt has.""",
}
"""What a larger run would settle, by study."""
INDEX = "README.md"
INTRODUCTION = """# Results

What small models on two CPU cores say of the claims made for ZAYA, CCA and RL. Every page has its
command, commit, hardware and cost; `make results` reruns them all (hours; it goes on where it was
stopped), `python launch.py results --only=recall` one of them.

**How to read a verdict.** Arms are compared seed by seed: a seed gives all of them the same batches
and, where shapes agree, the same initial weights. `agrees` and `disagrees` mean that the 95%
interval of the difference lies wholly on one side of zero; everything else is `not settled`, and
says how many seeds would settle a difference of the size seen. These models have a ten-thousandth
of ZAYA1-8B's parameters: a verdict is about them, and a hint about it. Where a commit is `-dirty`,
what differed are the pages of the studies before it."""
LONGEST = 90.0
"""Seconds that a run of a study may take, on a quiet machine,"""
LONG = {"rl_sft": 900.0, "rl": 900.0, "rsa_sft": 900.0, "rsa": 900.0}
"""but for these."""
THREADS = 2
"""Of a run: what compiles it and its steps both use two, and a small machine's two cores may be
two threads of one."""


def define_flags() -> None:
    """See `zaya_jax.options`."""
    flags.DEFINE_list("only", list(STUDIES), "the studies to rerun, of these")
    flags.DEFINE_string("workdir", "runs/results", "where the sweeps' directories are")
    flags.DEFINE_integer("threads", THREADS, "of each run", lower_bound=1)
    options.out("folder of the pages (default: docs/results)")
    options.json()


def main(argv: Sequence[str]) -> int:
    """Returns 0 when all pages are written and no trial failed, 1 when some did, and the exit
    status of a sweep that did not end, as soon as it did not."""
    del argv
    names = FLAGS.only
    for name in names:
        if name not in STUDIES:
            raise UserError(f"--only: no study {name!r}{hint(name, STUDIES)}")
    folder, out = Path(FLAGS.workdir), Path(FLAGS.out or ROOT / "docs" / "results")
    from zaya_jax.report import cli, markdown  # not above: `--help` needs no matplotlib
    from zaya_jax.report.content import Text
    from zaya_jax.sweep import supervise

    status = 0
    for number, name in enumerate(names):
        print(f"--- {name} ({number + 1} of {len(names)}) ---", flush=True)
        config = os.path.relpath(ROOT / STUDIES[name])
        if name in BEGINS:
            config += f":{folder / BEGINS[name]}"
        sweep = ["sweep", f"--config={config}", f"--workdir={folder / name}"]
        sweep.append(f"--threads={FLAGS.threads}")
        done = subprocess.run([*supervise.launcher(), *sweep], check=False)
        if done.returncode not in (0, 1):  # 1: it ended, and a trial failed; its page says which
            return done.returncode
        status = max(status, done.returncode)
        page = cli.of([folder / name])
        outlook = Text("What a larger run would settle: " + " ".join(OUTLOOK[name].split()))
        page = dataclasses.replace(page, opening=[*page.opening, outlook])
        markdown.write(page, out / f"{name}.md")
        update(out / INDEX, name, section(name, page, cost(folder / name, FLAGS.threads)))
    print(f"pages: {out / INDEX}")
    options.write_json({"pages": str(out), "studies": names})
    return status


def update(file: Path, name: str, text: str) -> None:
    """Puts the section of a study into the index, in the place of its last one if there is one."""
    there = file.read_text().split("\n## ")[1:] if file.exists() else []
    found = {part[1:].split("]", 1)[0]: part.strip() for part in there} | {name: text}
    parts = [f"## {found[study]}" for study in STUDIES if study in found]
    with atomic_path(file) as scratch:
        scratch.write_text("\n\n".join([INTRODUCTION, *parts]) + "\n")


def section(name: str, page: Page, cost: str) -> str:
    """What the index says of one study: question, outcome, claims with their verdicts, cost."""
    from zaya_jax.report.content import Badge, Table, Text

    parts = [f"[{name}]({name}.md)"]
    parts += [part.text for part in page.opening if isinstance(part, Text)]
    for found in page.without_gaps():
        tables = [part for part in found.parts if isinstance(part, Table)]
        if found.title == "Claims" and tables:
            rows = (tables[0].head, ["---"] * len(tables[0].head), *tables[0].rows)
            lines = [[x.word if isinstance(x, Badge) else str(x) for x in row] for row in rows]
            parts.append("\n".join("| " + " | ".join(line) + " |" for line in lines))
    return "\n\n".join([*parts, f"_{cost}_"])


def cost(folder: Path, threads: int) -> str:
    """What the runs of a sweep took, and where they ran."""
    from zaya_jax.sweep import measures, record
    from zaya_jax.train import workdir

    runs = sorted(file.parent for file in folder.glob(f"trials/*/*/{workdir.CONFIG}"))
    seconds = [
        measures.seconds(measures.read(run, workdir.read_config(run))) or 0.0 for run in runs
    ]
    starts = [record.read_json(run / workdir.ENVIRONMENT)[-1] for run in runs]
    commits = dict.fromkeys(_short(str(start.get("commit"))) for start in starts)
    places = dict.fromkeys(f"{s.get('processor')}, {s.get('cores')} cores" for s in starts)
    longest = max(seconds, default=0.0)
    limit = LONG.get(folder.name, LONGEST)
    late = f", more than the {limit:.0f} s meant for a quiet machine"
    note = "" if longest <= limit else late
    each = f"{threads} thread" + "s" * (threads > 1)
    return (
        f"{len(runs)} runs of {each}, {sum(seconds) / 60:.0f} minutes together; the "
        f"longest took {longest:.0f} s{note}. Commit {', '.join(commits)}; {'; '.join(places)}."
    )


def _short(commit: str) -> str:
    """Twelve digits of a commit, and whether files differed from it."""
    digits, dirty, _ = commit.partition("-dirty")
    return digits[:12] + dirty
