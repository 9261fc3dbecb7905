"""README.md and docs/: what they link to is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
RESULTS = ROOT / "docs" / "results"
LINK = re.compile(r"\]\(([^)\s]+)\)")
CODE = re.compile(r"```.*?```|`[^`\n]*`", re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_relative_links_lead_somewhere(page):
    links = LINK.findall(CODE.sub("", page.read_text(encoding="utf-8")))
    places = [
        (page.parent / link.partition("#")[0]).resolve()
        for link in links
        if "://" not in link and not link.startswith(("#", "mailto:"))
    ]
    missing = [
        place
        for place in places
        if not place.exists() and (RESULTS.exists() or not place.is_relative_to(RESULTS))
    ]
    assert not missing
