"""A page as one HTML file without scripts or links, for light and dark, wide and narrow."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from itertools import groupby
from typing import Any

from zaya_jax.report import draw
from zaya_jax.report.content import Badge, Code, Figure, Page, Part, Section, Table, Text, text

STYLE = (
    ":root { color-scheme: light dark; " + draw.STYLE + "}\n"
    """
* { box-sizing: border-box; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 68rem; margin: 0 auto;
       padding: 1rem 1rem 4rem; overflow-wrap: break-word;
       color: light-dark(#1b1f24, #d7dde4); background: light-dark(#fff, #14171a); }
h1 { font-size: 1.6rem; line-height: 1.25; margin: .6rem 0; }
h2 { font-size: 1.2rem; margin: 2.6rem 0 .5rem; padding-top: .5rem;
     border-top: 1px solid light-dark(#e3e6ea, #2b3036); }
h3 { font-size: 1rem; margin: 0; }
p { margin: .4rem 0 .8rem; max-width: 46rem; }
.lead { font-size: 1.1rem; }
.note, figcaption p { color: light-dark(#59636e, #97a1ab); font-size: .875rem; line-height: 1.4; }
.warning { padding: .5rem .8rem; border-left: .25rem solid light-dark(#b45309, #fbbf24);
           background: light-dark(#fff7e8, #2a2416); }
.grid { display: grid; gap: 1.6rem 2rem; align-items: start; grid-auto-flow: dense;
        grid-template-columns: repeat(auto-fill, minmax(min(100%, 25rem), 1fr)); }
figure { margin: 0; min-width: 0; display: flex; flex-direction: column; max-width: 40rem; }
figure.wide { grid-column: 1 / -1; max-width: none; }
figcaption p { margin: .1rem 0 .4rem; }
svg { width: 100%; height: auto; display: block; }
.box { overflow-x: auto; }
.wide svg { min-width: 40rem; }
table { border-collapse: collapse; margin: .3rem 0 .8rem; font-variant-numeric: tabular-nums; }
td, th { text-align: left; padding: .28rem 1.2rem .28rem 0; vertical-align: top;
         border-bottom: 1px solid light-dark(#e3e6ea, #2b3036); font-weight: normal; }
thead th { font-weight: 600; vertical-align: bottom; font-size: .875rem; line-height: 1.3; }
.rows td, .rows th { white-space: nowrap; }
.rows td.long, .rows th.long { white-space: normal; min-width: 16rem; }
.rows thead th { white-space: normal; max-width: 12rem; min-width: 4rem; }
.names td { overflow-wrap: anywhere; }
.names th { width: 18rem; max-width: 45vw; overflow-wrap: anywhere; }
pre { overflow-x: auto; padding: .7rem; border-radius: .4rem; font-size: .85rem; margin: .4rem 0;
      background: light-dark(#f4f5f7, #1e2226); }
.badge { font-weight: 600; white-space: nowrap; }
.good { color: light-dark(#047857, #34d399); } .bad { color: light-dark(#b91c1c, #f87171); }
.open { color: light-dark(#92560a, #fbbf24); }
summary { cursor: pointer; } summary h2 { display: inline; border: 0; }
details { border-top: 1px solid light-dark(#e3e6ea, #2b3036); margin-top: 1.6rem;
          padding-top: .8rem; }
"""
)
_LONG = 44  # letters of a cell that may be wrapped


def render(page: Page) -> str:
    """The page as text."""
    title = escape(page.title)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>{STYLE}</style></head><body>\n"
        f"<h1>{title}</h1>\n{_parts(page.opening)}\n"
        + "\n".join(map(_section, page.without_gaps()))
        + "\n</body></html>\n"
    )


def _section(section: Section) -> str:
    heading, body = f"<h2>{escape(section.title)}</h2>", _parts(section.parts)
    if section.folded:
        return f"<details><summary>{heading}</summary>{body}</details>"
    return f"<section>{heading}{body}</section>"


def _parts(parts: Sequence[Part]) -> str:
    """The parts in order; figures that follow each other share a grid."""
    written = []
    for drawn, group in groupby(parts, lambda part: isinstance(part, Figure)):
        inside = "\n".join(map(_part, group))
        written.append(f'<div class="grid">{inside}</div>' if drawn else inside)
    return "\n".join(written)


def _part(part: Part) -> str:
    match part:
        case Text(words, kind):
            return f'<p class="{kind}">{escape(words)}</p>'
        case Code(lines):
            return f"<pre>{escape(lines)}</pre>"
        case Table():
            return _table(part)
        case Figure(title, svg, note, wide):
            below = f"<p>{escape(note)}</p>" if note else ""
            return (
                f"<figure{' class=wide' if wide else ''}>"
                f"<figcaption><h3>{escape(title)}</h3>{below}</figcaption>"
                f'<div class="box">{draw.on_page(svg)}</div></figure>'
            )


def _table(table: Table) -> str:
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in table.head)
    body = "".join(f"<tr>{''.join(_row(row))}</tr>" for row in table.rows)
    return (
        f'<div class="box"><table class="{"rows" if table.head else "names"}">'
        f"{f'<thead><tr>{head}</tr></thead>' if head else ''}<tbody>{body}</tbody></table></div>"
    )


def _row(row: Sequence[Any]) -> Iterator[str]:
    for position, value in enumerate(row):
        if isinstance(value, Badge):
            yield f'<td><span class="badge {value.tone}">{escape(value.word)}</span></td>'
            continue
        words = text(value)
        tag = "td" if position else 'th scope="row"'
        long = ' class="long"' if len(words) > _LONG else ""
        yield f"<{tag}{long}>{escape(words)}</{tag[:2]}>"
