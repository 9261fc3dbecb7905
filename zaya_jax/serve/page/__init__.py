"""The page at `/`: one document without anything from elsewhere, and the rules that keep it so."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).parent
SCRIPTS = ("core.js", "chat.js", "rsa.js", "page.js")


class Document(NamedTuple):
    """html: the page. headers: to send with it."""

    html: str
    headers: Mapping[str, str]


def document() -> Document:
    """The page, its style and script within it.

    Only they may run: the browser is told their hashes, and to load nothing else. What a model
    writes is set as text by the script, never as HTML.
    """
    css, html = _read("page.css"), _read("page.html")
    js = "\n".join(map(_read, SCRIPTS))
    html = html.replace("/* page.css */", css).replace("/* scripts */", js)
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


def _read(name: str) -> str:
    return (HERE / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return f"'sha256-{digest}'"
