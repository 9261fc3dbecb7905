"""A page as GitHub Markdown, its figures as SVG files in a folder beside it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from typing import Any

from zaya_jax.data.cache import atomic_path
from zaya_jax.report import draw
from zaya_jax.report.content import Badge, Code, Figure, Page, Part, Section, Table, Text, text


def write(page: Page, out: Path) -> None:
    """Writes `out` and the folder `<stem>_files` with its figures, which go first.

    Files of figures that an earlier page had and this one has not are removed.
    """
    folder = out.with_name(f"{out.stem}_files")
    figures: dict[str, str] = {}
    words = "\n\n".join(_page(page, folder.name, figures)) + "\n"
    for name, svg in figures.items():
        with atomic_path(folder / name) as scratch:
            scratch.write_text(draw.standalone(svg))
    with atomic_path(out) as scratch:
        scratch.write_text(words)
    for file in folder.glob("*.svg"):
        if file.name not in figures:
            file.unlink()


def _page(page: Page, folder: str, figures: dict[str, str]) -> Iterator[str]:
    yield f"# {_plain(page.title)}"
    yield from _parts(page.opening, folder, figures)
    for section in page.without_gaps():
        yield from _section(section, folder, figures)


def _section(section: Section, folder: str, figures: dict[str, str]) -> Iterator[str]:
    if section.folded:
        yield f"<details><summary>{escape(section.title)}</summary>"
        yield from _parts(section.parts, folder, figures)
        yield "</details>"
    else:
        yield f"## {_plain(section.title)}"
        yield from _parts(section.parts, folder, figures)


def _parts(parts: Sequence[Part], folder: str, figures: dict[str, str]) -> Iterator[str]:
    for part in parts:
        match part:
            case Text(words, kind):
                mark = {"warning": "> ", "note": "_"}.get(kind, "")
                yield f"{mark}{_plain(words)}{mark if kind == 'note' else ''}"
            case Code(lines):
                yield f"```\n{lines}\n```"
            case Table(rows, head):
                yield _table(rows, head)
            case Figure(title, svg, note):
                name = _free(title, figures)
                figures[name] = svg
                yield f"### {_plain(title)}"
                if note:
                    yield f"_{_plain(note)}_"
                yield f"![{_plain(title)}]({folder}/{name})"


def _free(title: str, taken: dict[str, str]) -> str:
    """A file name made of a title that no other figure has."""
    stem = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-") or "figure"
    names = (f"{stem}{f'-{n}' if n else ''}.svg" for n in range(len(taken) + 1))
    return next(name for name in names if name not in taken)


def _table(rows: Sequence[Sequence[Any]], head: Sequence[str]) -> str:
    columns = max(map(len, [head, *rows]))
    lines = [_line(list(head) or [""] * columns), "|" + "---|" * columns]
    return "\n".join([*lines, *map(_line, rows)])


def _line(row: Sequence[Any]) -> str:
    return "| " + " | ".join(map(_cell, row)) + " |"


def _cell(value: Any) -> str:
    if isinstance(value, Badge):
        return f"**{value.word}**"
    return _plain(text(value)).replace("|", r"\|").replace("\n", "<br>")


def _plain(words: str) -> str:
    """Words that Markdown would take for marks, as they are."""
    return re.sub(r"([\\`*_<\[\]])", r"\\\1", words)
