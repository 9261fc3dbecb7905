"""The page at `/`: one document without anything from elsewhere, and the rules that keep it so."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).parent


class Document(NamedTuple):
    """html: the page. headers: to send with it."""

    html: str
    headers: Mapping[str, str]


def document() -> Document:
    """The page, its style and script within it.

    Only they may run: the browser is told their hashes, and to load nothing else. What a model
    writes is set as text by the script, never as HTML.
    """
    style, script = (HERE / name for name in ("page.css", "page.js"))
    css, js = style.read_text(encoding="utf-8"), script.read_text(encoding="utf-8")
    html = (HERE / "page.html").read_text(encoding="utf-8")
    html = html.replace("/* page.css */", css).replace("/* page.js */", js)
    policy = (
        f"default-src 'none'; style-src {_hash(css)}; script-src {_hash(js)}; "
        "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    )
    headers = {
        "Content-Security-Policy": policy,
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-cache",
    }
    return Document(html, headers)


def _hash(text: str) -> str:
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return f"'sha256-{digest}'"
