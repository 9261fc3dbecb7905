"""`report.html`: one file without scripts or links, for light and dark, wide and narrow."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zaya_jax.config import to_dict
from zaya_jax.data.cache import atomic_path
from zaya_jax.report import curves, figures
from zaya_jax.report.run import Run, changed_fields

STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 52rem; margin: 0 auto; padding: 1rem;
       color: light-dark(#1b1f24, #d7dde4); background: light-dark(#fff, #14171a); }
h1 { font-size: 1.5rem; margin: .5rem 0; } h2 { font-size: 1.1rem; margin: 2rem 0 .3rem; }
p { margin: .3rem 0 .8rem; } svg { width: 100%; height: auto; display: block; }
.lead { font-size: 1.1rem; }
.table { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; }
td, th { text-align: left; padding: .25rem .6rem .25rem 0; vertical-align: top;
         border-bottom: 1px solid light-dark(#e3e6ea, #2b3036); font-weight: normal; }
td { text-align: right; font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
pre { overflow-x: auto; padding: .7rem; border-radius: .4rem; font-size: .85rem;
      background: light-dark(#f4f5f7, #1e2226); }
.muted { color: light-dark(#59636e, #97a1ab); font-size: .9rem; }
"""


def write(run: Run, out: Path, extra: Mapping[str, Mapping[str, Any]] | None = None) -> Path:
    """Writes the page of a run, whole or not at all.

    Args:
      run: see `zaya_jax.report.run`.
      out: the file.
      extra: further tables, by heading.
    """
    with atomic_path(out) as scratch:
        scratch.write_text(render(run, extra or {}))
    return out


def render(run: Run, extra: Mapping[str, Mapping[str, Any]]) -> str:
    """The page as text."""
    first, last = run.evaluations[0], run.evaluations[-1]
    experts = run.experiment.model.router.experts
    name = html.escape(run.experiment.name)
    heldout = run.data.get("heldout", {})
    parts = [
        f"<h1>{name}</h1>",
        f'<p class="lead">{_bits(last)} bits per byte on '
        f"{heldout.get('documents', '?')} held-out documents after {last['step']:,} steps, from "
        f"{_bits(first)} before training.</p>",
        *(_section(title, _table(rows)) for title, rows in extra.items()),
        _section("Loss", figures.losses(*_losses(run))),
    ]
    parts += [_section(*section) for section in curves.sections(run)]
    parts += [
        _section(
            "Load of each expert",
            figures.heatmap("load", run.load, "share of tokens", 1 / experts, lowest=0),
            f"On the held-out text, at the last evaluation; an even share is {1 / experts:.3f}.",
        ),
        _section(
            "Balancing biases",
            figures.heatmap("biases", run.biases, "bias", 0.0),
            "Added to the router's probabilities when experts are chosen, never when they are "
            "weighed.",
        ),
        _section("Results", _table(run.results)),
        _section("Config, where it is not the default", _table(changed_fields(run.experiment))),
        _section("Data", _table(_flat(run.data))),
        *_starts(run),
        "<details><summary>The whole config</summary><pre>"
        + html.escape(json.dumps(to_dict(run.experiment), indent=2))
        + "</pre></details>",
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{name}</title><style>{STYLE}</style></head><body>\n"
        + "\n".join(parts)
        + "\n</body></html>\n"
    )


def _bits(record: Mapping[str, Any]) -> str:
    value = record["heldout_bits_per_byte"]
    return "no number of" if value is None else f"{value:.3f}"


def _losses(run: Run) -> tuple[tuple[list, list], tuple[list, list]]:
    train = [r["step"] for r in run.train], [r["loss"] for r in run.train]
    heldout = [r["step"] for r in run.evaluations], [r["heldout_loss"] for r in run.evaluations]
    return train, heldout


def _section(title: str, body: str, note: str = "") -> str:
    note = f'<p class="muted">{html.escape(note)}</p>' if note else ""
    return f"<h2>{html.escape(title)}</h2>{note}{body}"


def _table(rows: Mapping[str, Any]) -> str:
    cells = []
    for name, value in rows.items():
        cells.append(f"<tr><th>{html.escape(name)}</th><td>{html.escape(text(value))}</td></tr>")
    return f'<div class="table"><table>{"".join(cells)}</table></div>'


def text(value: Any) -> str:
    """A value as a person reads it: thousands apart, four digits of a fraction."""
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.4g}" if abs(value) < 1e4 else f"{value:,.0f}"
    if isinstance(value, list | tuple):
        return ", ".join(map(text, value))
    return "none" if value is None else str(value)


def _flat(node: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in node.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{prefix}{name}.")
        else:
            found[prefix + name] = value
    return found


def _starts(run: Run) -> list[str]:
    if not run.starts:
        return []
    commands = "\n".join(start["command"] for start in run.starts)
    place = {name: value for name, value in run.starts[-1].items() if name != "command"}
    return [
        _section("Command", f"<pre>{html.escape(commands)}</pre>"),
        _section("Ran on", _table(_flat(place))),
    ]
