"""Which files make a folder of weights: all that `export` and `import` write, and nothing else."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

MANIFEST = "zaya.json"  # of an imported folder
ORIGIN = "origin"  # folder in an imported folder: what the source held besides its weights
TOKENIZER = "tokenizer"  # folder in an imported folder
HEADER = ".header"  # in ORIGIN, behind the name of a weight file
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
)
GENERATION, LICENSE = "generation_config.json", "LICENSE"
CONFIG = "config.json"
ADAPTER_CONFIG = "adapter_config.json"  # of PEFT
ORIGIN_FILES = (
    CONFIG,
    GENERATION,
    "model.safetensors.index.json",
    "README.md",
    LICENSE,
)
_NUMBERED = r"(-\d{5}-of-\d{5})?\.safetensors"
_OURS = re.compile(
    "|".join(
        (
            *map(re.escape, (MANIFEST, *ORIGIN_FILES, *TOKENIZER_FILES)),
            re.escape(ADAPTER_CONFIG),
            r"adapter_model\.safetensors",
            rf"(model|weights){_NUMBERED}",
            r"weights\.safetensors\.index\.json",
            *(re.escape(f"{TOKENIZER}/{name}") for name in TOKENIZER_FILES),
            *(re.escape(f"{ORIGIN}/{name}") for name in ORIGIN_FILES),
            rf"{ORIGIN}/[^/]+{re.escape(HEADER)}",
        )
    )
)


def foreign(folder: Path) -> Iterator[str]:
    """What lies below `folder` and neither export nor import wrote, by path in it."""
    for at, folders, files in os.walk(folder):
        # Of folders, those that are empty or linked count: the walk does not look into them.
        closed = [name for name in folders if _is_closed(Path(at, name))]
        for name in sorted([*files, *closed]):
            path = Path(at, name).relative_to(folder).as_posix()
            if not _OURS.fullmatch(path):
                yield path


def _is_closed(folder: Path) -> bool:
    return folder.is_symlink() or not any(folder.iterdir())
