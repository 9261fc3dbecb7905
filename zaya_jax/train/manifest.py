"""Sizes and checksums of the files of a folder, to find damage before it is read as numbers."""

from __future__ import annotations

import json
import os
import zlib
from pathlib import Path

from zaya_jax.data.cache import atomic_path

MANIFEST = "manifest.json"


def write(folder: Path) -> None:
    """Records size and CRC-32 of every file under `folder` in its `manifest.json`."""
    found = {}
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        if file != folder / MANIFEST:
            found[file.relative_to(folder).as_posix()] = [file.stat().st_size, _crc(file)]
    with atomic_path(folder / MANIFEST) as scratch, scratch.open("w") as stream:
        json.dump(found, stream)
        stream.flush()
        os.fsync(stream.fileno())  # or a power cut may leave an empty file under the final name


def damage(folder: Path, part: str = "") -> str | None:
    """What is wrong with the files whose relative path starts with `part`; None if nothing is."""
    try:
        listed = json.loads((folder / MANIFEST).read_text())
    except FileNotFoundError:
        return f"{MANIFEST} is missing"
    except ValueError:  # no JSON, or no text at all
        return f"{MANIFEST} is not JSON"
    for name, (size, crc) in listed.items():
        file = folder / name
        if not name.startswith(part):
            continue
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != size:
            return f"{name} has {file.stat().st_size} bytes, not {size}"
        if _crc(file) != crc:
            return f"{name} has other contents than were written"
    return None


def _crc(file: Path) -> int:
    value = 0
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            value = zlib.crc32(block, value)
    return value
