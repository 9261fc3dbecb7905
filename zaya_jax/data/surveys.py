"""Surveys that are kept, of sources that take long to read.

What is derived from the standard library has to be parsed out of it, which takes seconds, at every
start of a run. The modules themselves are read in a moment: where they are the same, and the code
that looks at them is, what was found the last time is true. Of other sources a survey costs no more
than to find out that nothing changed.
"""

from __future__ import annotations

import hashlib
import json
import sys
import warnings
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np

from zaya_jax.data import readers, sources, split, stdlib_chat, stdlib_docs
from zaya_jax.data.cache import atomic_path
from zaya_jax.data.readers import Rules
from zaya_jax.data.sources import CorpusInfo, Survey, fingerprint, survey

_DERIVED = {"stdlib-chat": stdlib_chat, "stdlib-docs": stdlib_docs}
"""Sources made of `stdlib`, and what makes them."""
_CODE = (readers, sources, split)
"""What else a survey goes through."""


def cached_survey(
    source: str, rules: Rules, folder: Path, advance: Callable[[int], object] = lambda size: None
) -> Survey:
    """`survey`, or what it found the last time if nothing has changed since.

    Args:
        source: as of `sources.read`.
        rules: as of `sources.read`.
        folder: where surveys are kept. One that cannot be read is made again, with a warning.
        advance: as of `survey`; is not called for what was kept.
    """
    if source not in _DERIVED:
        return survey(source, rules, advance)
    digest = hashlib.sha256(f"{sys.version} {rules}".encode())
    for module in (_DERIVED[source], *_CODE):
        digest.update(Path(str(module.__file__)).read_bytes())
    digest.update(fingerprint(sources.read("stdlib", rules)).encode())
    file = folder / f"survey-{source}-{digest.hexdigest()[:24]}.npz"
    if file.exists():
        try:
            return _load(file)
        except Exception as error:  # what a damaged archive raises is not documented
            warnings.warn(f"surveying again: {file} is damaged: {error}", stacklevel=2)
    found = survey(source, rules, advance)
    with atomic_path(file) as scratch:
        info = np.array(json.dumps(asdict(found.info)))
        np.savez(scratch, info=info, places=found.places, sizes=found.sizes)
    return found


def _load(file: Path) -> Survey:
    with np.load(file, allow_pickle=False) as arrays:
        info = CorpusInfo(**json.loads(str(arrays["info"])))
        return Survey(info, arrays["places"], arrays["sizes"])
