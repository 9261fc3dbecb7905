"""How figures are drawn: SVG text that takes its ink and its colours from the page it stands on.

Matplotlib draws with the colours of a light page; in the HTML page they become `currentColor` and
the variables of `STYLE`, so that one figure serves light and dark. In a file of its own a figure
keeps them, on white: nobody can know the page it will be shown on.
"""

from __future__ import annotations

import html
import io
import re
from collections.abc import Callable
from typing import Any

import matplotlib
from cycler import cycler

matplotlib.use("svg")

from matplotlib import pyplot as plt  # noqa: E402
from matplotlib.artist import Artist  # noqa: E402
from matplotlib.axes import Axes  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402

INK = "#1b1f24"
PAPER = "#fffffe"  # no figure has it by chance
# On a light page, and on a dark one.
LINES = {
    "#2563eb": "#60a5fa",
    "#d9580a": "#fb923c",
    "#059669": "#34d399",
    "#9333ea": "#c084fc",
    "#dc2627": "#f87171",
    "#a16207": "#facc15",
    "#0e7490": "#22d3ee",
    "#db2777": "#f472b6",
}
COLOURS = tuple(LINES)
# From the worst to the best.
SCALE = {
    "#c3c8cf": "#41474e",
    "#a9b8cf": "#4a5a73",
    "#84a3d8": "#4f78b0",
    "#5285e4": "#5a97e6",
    "#1d4fd8": "#93c5fe",
}
STEPS = tuple(SCALE)
_VARIABLES = {
    light: (f"--z{number}", dark)
    for number, (light, dark) in enumerate(({PAPER: "#14171a"} | LINES | SCALE).items())
}
STYLE = "".join(
    f"{name}: light-dark({light}, {dark}); " for light, (name, dark) in _VARIABLES.items()
)
"""CSS declarations of the colours, for the root of the page."""

WIDTH, WIDE = 5.2, 10.4
"""Inches, of figures that stand two in a row and of those that have a row for themselves."""

_RC: dict[Any, Any] = {
    "svg.fonttype": "none",  # letters stay letters: small, and in the page's own font
    "text.parse_math": False,  # a $ in a name is a $
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 9,
    "axes.linewidth": 0.7,
    "lines.linewidth": 1.4,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "legend.handlelength": 1.4,
    "axes.prop_cycle": cycler(color=COLOURS),
}
_TIP = "tip:"


def figure(
    name: str, draw: Callable[[Axes], object], height: float = 3.1, width: float = WIDTH
) -> str:
    """An `<svg>` element with one pair of axes; see `canvas`."""
    return canvas(name, lambda whole: draw(whole.subplots()), height, width)


def canvas(
    name: str, draw: Callable[[Figure], object], height: float = 3.1, width: float = WIDTH
) -> str:
    """An `<svg>` element.

    Args:
      name: what it shows, for those who cannot see it; makes ids inside the SVG differ from those
        of other figures on the page.
      draw: draws on the figure it is given.
      height, width: in inches.
    """
    with plt.rc_context({**_RC, "svg.hashsalt": name}):
        whole = plt.figure(figsize=(width, height), layout="constrained")
        draw(whole)
        text = io.StringIO()
        whole.savefig(text, format="svg", transparent=True, metadata={"Date": None})
        plt.close(whole)
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    # Matplotlib numbers its groups from 1 in every figure: ids that nothing refers to.
    svg = re.sub(r' id="[A-Za-z0-9.]+_\d+"', "", svg)
    svg = re.sub(rf"""<g id=(["']){_TIP}(.*?)\1>""", r"<g><title>\2</title>", svg, flags=re.DOTALL)
    # Sized by the page: the width and height in points give way to the viewBox.
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    label = rf'\1 role="img" aria-label="{html.escape(name)}"'
    return re.sub(r'(<svg[^>]*?) height="[^"]*"', label, svg, count=1)


def tip(artist: Artist, text: str) -> None:
    """Shows `text` where the pointer rests on the artist."""
    artist.set_gid(_TIP + text)


def on_page(svg: str) -> str:
    """The figure in the colours of the page around it."""
    svg = svg.replace(INK, "currentColor")
    for light, (variable, _) in _VARIABLES.items():
        svg = svg.replace(light, f"var({variable})")
    return svg


def standalone(svg: str) -> str:
    """The figure as a file of its own."""
    return '<?xml version="1.0" encoding="utf-8"?>\n' + re.sub(
        "(<svg[^>]*)>", r'\1 style="background: #fff">', svg, count=1
    )
