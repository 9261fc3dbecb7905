"""The pages in a browser: alone, without errors, on a phone and a desk, in light and in dark."""

import os
import re
import shutil

import pytest

from zaya_jax.report import cli, page

sync_api = pytest.importorskip("playwright.sync_api")

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
ARGUMENTS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
HEADINGS = {
    "run": ("Loss and depth", "Balance of the experts", "Results and costs"),
    "arms": ("Claims", "The arms", "Costs", "Commands"),
    "search": ("The best trials", "All trials with a value", "What the fields do"),
}
MEASURE = """() => {
  const root = document.documentElement;
  const small = [...document.querySelectorAll('svg')].filter(svg => {
    const box = svg.getBoundingClientRect();
    return box.width < 200 || box.height < 60;
  });
  const colour = element => getComputedStyle(element).color;
  const kinds = ['body', '.note', 'figcaption p', '.good', '.bad', '.open', '.warning', 'svg text'];
  const there = kinds.map(kind => [kind, document.querySelector(kind)]).filter(([, e]) => e);
  return {
    wide: root.scrollWidth - root.clientWidth,
    small: small.map(svg => svg.getAttribute('aria-label')),
    figures: document.querySelectorAll('svg').length,
    paper: getComputedStyle(document.body).backgroundColor,
    inks: Object.fromEntries(there.map(([kind, e]) => [kind, colour(e)])),
    lines: [...new Set([...document.querySelectorAll('svg path')]
        .map(e => getComputedStyle(e).stroke).filter(s => s.startsWith('rgb(')))],
    headings: [...document.querySelectorAll('h2')].filter(e => e.getBoundingClientRect().height > 0)
        .map(e => e.textContent),
  };
}"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    found = os.environ.get("CHROME") or next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.skip(f"no browser: none of {', '.join(BROWSERS)} is installed, CHROME is not set")
    with sync_api.sync_playwright() as playwright:
        launched = playwright.chromium.launch_persistent_context(
            tmp_path_factory.mktemp("profile"), executable_path=found, args=list(ARGUMENTS)
        )
        yield launched
        launched.close()


def luminance(colour):
    """Relative luminance (WCAG 2.2) of an `rgb(r, g, b)`."""
    parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
    linear = [x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in parts]
    return sum(w * x for w, x in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(a, b):
    high, low = sorted((luminance(a), luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("kind", HEADINGS)
def test_a_page_can_be_read_anywhere_and_asks_for_nothing(kind, browser, request, tmp_path):
    out = page.save(cli.of([request.getfixturevalue(f"{kind}_folder")]), tmp_path / "page.html")
    tab = browser.new_page()
    asked, errors = [], []
    tab.on("request", lambda r: asked.append(r.url) if not r.url.startswith("data:") else None)
    tab.on("console", lambda m: errors.append(m.text) if m.type in ("error", "warning") else None)
    tab.on("pageerror", lambda error: errors.append(str(error)))
    tab.goto(out.as_uri())
    papers = set()
    for scheme in ("light", "dark"):
        tab.emulate_media(color_scheme=scheme)
        for width in (360, 1280):
            tab.set_viewport_size({"width": width, "height": 900})
            seen = tab.evaluate(MEASURE)
            where = f"{kind}, {scheme}, {width} pixels"
            assert seen["wide"] <= 0, f"{where}: scrolls sideways"
            assert not seen["small"] and seen["figures"] >= 8, where
            assert set(HEADINGS[kind]) <= set(seen["headings"]), where
            papers.add(seen["paper"])
            for part, ink in seen["inks"].items():
                assert contrast(ink, seen["paper"]) >= 4.5, f"{where}: {part} is {ink}"
        faint = [line for line in seen["lines"] if contrast(line, seen["paper"]) < 1.5]
        assert not faint, f"{kind}, {scheme}: lines of {faint} cannot be seen"
    assert len(papers) == 2, "light and dark look the same"
    assert asked == [out.as_uri()]
    assert not errors
    tab.close()
