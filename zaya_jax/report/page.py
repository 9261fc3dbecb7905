"""The page of one run, and how any page is written."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from zaya_jax.data.cache import atomic_path
from zaya_jax.report import curves, heatmaps, html, markdown, stage
from zaya_jax.report.content import (
    Code,
    Figure,
    Page,
    Part,
    Section,
    Table,
    Text,
    fields,
    flat,
    plural,
    setting,
    text,
)
from zaya_jax.report.run import Record, Run, changed_fields


def save(page: Page, out: Path) -> Path:
    """Writes a page as HTML, and as Markdown beside it; each whole or not at all.

    Args:
      out: of the HTML; the Markdown has the same name and ends in `.md`.

    Returns:
      `out`.
    """
    with atomic_path(out) as scratch:
        scratch.write_text(html.render(page))
    markdown.write(page, out.with_suffix(".md"))
    return out


def write(run: Run, out: Path, extra: Mapping[str, Mapping[str, Any]] | None = None) -> Path:
    """Writes the page of a run, see `save`.

    Args:
      run: see `zaya_jax.report.run`.
      out: the file.
      extra: further tables, by heading.
    """
    return save(of_run(run, extra or {}), out)


def of_run(run: Run, extra: Mapping[str, Mapping[str, Any]]) -> Page:
    """The page of a run."""
    asks = stage.is_stage(run)
    results = stage.results(run) if asks else run.results
    lead = stage.lead(run) if asks else _lead(run)
    told = stage.sections(run) if asks else [Section("Loss and depth", list(_training(run)))]
    return Page(
        run.name,
        [Text(lead, "lead"), *(Text(problem, "warning") for problem in run.problems)],
        [
            *(Section(title, [fields(rows)]) for title, rows in extra.items()),
            *told,
            Section("Balance of the experts", [*_heatmaps(run), *curves.drawn(run, "balance")]),
            Section("Results and costs", [fields(results)], summary=True),
            Section("Commands, of every start", list(_commands(run.starts))),
            Section("Config, where it is not the default", _settings(changed_fields(run.config))),
            Section("Ran on", place([run])),
            Section("Data", [fields(flat(run.data))] if run.data else []),
            Section("The whole config", [Code(json.dumps(run.config, indent=2))], folded=True),
        ],
        results,
    )


def _lead(run: Run) -> str:
    if not run.evaluations:
        return f"{run.step:,} steps, and no evaluation on held-out text yet."
    first, last = run.evaluations[0], run.evaluations[-1]
    if "heldout_bits_per_byte" not in last:  # a reward model
        return (
            f"{last['heldout_accuracy']:.1%} of the held-out pairs are ordered right after "
            f"{last['step']:,} steps, from {first['heldout_accuracy']:.1%} at step "
            f"{first['step']:,}."
        )
    documents = run.data.get("heldout", {}).get("documents", "?")
    return (
        f"{_bits(last)} bits per byte on {documents} held-out documents after {last['step']:,} "
        f"steps, from {_bits(first)} at step {first['step']:,}."
    )


def _bits(record: Record) -> str:
    value = record["heldout_bits_per_byte"]
    return "no number of" if value is None else f"{value:.3f}"


def _training(run: Run) -> Iterator[Figure]:
    if run.train or run.evaluations:
        yield curves.losses(run)
    yield from curves.drawn(run, "training")


def _heatmaps(run: Run) -> Iterator[Figure]:
    loads, biases = run.loads(), run.biases()
    if loads is not None:
        steps, shares = loads
        even = 1 / shares.shape[-1]
        yield Figure(
            "Load of each expert",
            heatmaps.heatmap("load", shares[-1], "share of tokens", even, lowest=0),
            f"On the held-out text at step {steps[-1]:,}; an even share is {even:.3f}.",
        )
    if biases is not None:
        steps, values = biases
        yield Figure(
            "Balancing biases",
            heatmaps.heatmap("biases", values[-1], "bias", 0.0),
            f"At step {steps[-1]:,}; added to the router's probabilities when experts are chosen, "
            "never when they are weighed.",
        )
    yield from over_time(run)


def over_time(run: Run, of: str = "") -> Iterator[Figure]:
    """Loads and biases of every layer's experts at all evaluations.

    Args:
      of: what run it is, where a page has several.
    """
    loads, biases = run.loads(), run.biases()
    before = f"{of}: " if of else ""
    if loads is not None and len(loads[0]) > 1:
        even = 1 / loads[1].shape[-1]
        yield Figure(
            f"{before}Load of each expert over time",
            heatmaps.over_time(
                f"{before}load over time", *loads, "share of tokens", even, lowest=0, reach=even
            ),
            f"A panel for each layer, a row for each expert, at {len(loads[0])} evaluations on the "
            "held-out text. Clear is an even share, orange more, blue less.",
            wide=True,
        )
    if biases is not None and len(biases[0]) > 1:
        yield Figure(
            f"{before}Balancing biases over time",
            heatmaps.over_time(f"{before}biases over time", *biases, "bias", 0.0),
            "The same for the biases: clear is none, orange favours an expert.",
            wide=True,
        )


def _commands(starts: Sequence[Record]) -> Iterator[Part]:
    if starts:
        yield Code("\n".join(str(start.get("command", "?")) for start in starts))


def _settings(changed: Record) -> list[Part]:
    return [Table([(path, setting(value)) for path, value in changed.items()])] if changed else []


def place(runs: Sequence[Run]) -> list[Part]:
    """What the runs ran on, as their own starts say: every value, with how many runs have it."""
    starts = [[flat(start) for start in run.starts] for run in runs]
    names = dict.fromkeys(name for own in starts for start in own for name in start)
    found: dict[str, Any] = {}
    for name in names:
        if name in ("command", "time"):
            continue
        # A run that was stopped and went on elsewhere has several values, and counts for each.
        own = [dict.fromkeys(text(start.get(name)) for start in run) for run in starts]
        counts = Counter(value for values in own for value in values)
        more = len(counts) > 1
        said = [f"{x} ({plural(n, 'run')})" if more else x for x, n in counts.most_common()]
        found[name] = "; ".join(said)
    times = sorted(str(start["time"]) for own in starts for start in own if start.get("time"))
    if times:
        found["started"] = " to ".join(dict.fromkeys((times[0], times[-1])))
    return [fields(found)] if found else []
