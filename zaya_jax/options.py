"""The options that several verbs share, each declared here once: same name, same meaning.

A verb's `define_flags()` calls what it needs; the values are then read from `absl.flags.FLAGS`
(`FLAGS.workdir`; `FLAGS["from"].value`, `from` being a keyword). `zaya_jax.cli` parses them.
"""

from __future__ import annotations

import json as json_lib
import os
import runpy
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import config_flags

from zaya_jax.errors import UserError, hint

FLAGS = flags.FLAGS


def config(default: str | None = None) -> None:
    """`--config=FILE` and its overrides `--config.a.b=value`, which keep the field's type.

    Raises:
      UserError: no such file, or an override names a field that the config does not have.
    """
    _check_config(sys.argv[1:], default)
    config_flags.DEFINE_config_file(
        "config",
        default,
        "experiment file with a get_config(); --config.FIELD=VALUE overrides any field of it",
    )


def workdir(default: str | None = None) -> None:
    flags.DEFINE_string("workdir", default, "run directory: config, metrics, checkpoints, report")


def model() -> None:
    flags.DEFINE_string("model", None, "a run directory, a checkpoint, or a Hugging Face folder")


def from_(meaning: str) -> None:
    flags.DEFINE_string("from", None, meaning)


def out(meaning: str) -> None:
    flags.DEFINE_string("out", None, meaning)


def seed(default: int = 0) -> None:
    flags.DEFINE_integer("seed", default, "seed of everything drawn at random")


def mesh() -> None:
    flags.DEFINE_string("mesh", None, "devices by axis, e.g. data=4,expert=2 (docs/scale.md)")


def quantize() -> None:
    """`--quantize` and what goes with it; `zaya_jax.infer.quantize.of_flags` reads them."""
    flags.DEFINE_string("quantize", None, "weights as int8, int4, fp8 or fp4; as they are else")
    flags.DEFINE_string("quantize_what", "experts", "which weights: experts, or all matrices")
    flags.DEFINE_integer("quantize_group", None, "rows with one scale: int4 128, fp4 32, else all")


def json() -> None:
    flags.DEFINE_string("json", None, "also write what is printed to this file, as JSON")


def write_json(record: Mapping[str, Any] | Sequence[Any]) -> None:
    """Writes `record` to the file of `--json`, if given, whole or not at all.

    Raises:
      UserError: the file cannot be written.
    """
    if FLAGS.json is None:
        return
    target = Path(FLAGS.json)
    partial = target.with_name(target.name + ".partial")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(json_lib.dumps(record, indent=2, sort_keys=False) + "\n")
        os.replace(partial, target)
    except OSError as error:
        raise UserError(f"--json={target}: cannot write there: {error.strerror}") from error


def require(name: str) -> Any:
    """The value of flag `name`.

    Raises:
      UserError: it was not given.
    """
    value = FLAGS[name].value
    if value is None:
        choice = f"; there are: {', '.join(_experiments())}" if name == "config" else ""
        raise UserError(f"--{name} is missing: {FLAGS[name].help}{choice}")
    return value


def _check_config(argv: Sequence[str], default: str | None) -> None:
    """Checks what absl would report by a traceback: the file, and the names of its overrides."""
    path = default
    for arg in argv:
        if arg.startswith("--config="):
            path = arg.removeprefix("--config=")
    overrides = [arg.removeprefix("--config.") for arg in argv if arg.startswith("--config.")]
    if path is None:
        if overrides:
            raise UserError(f"--config.{overrides[0]} overrides a field of --config, not given")
        return
    file, colon, argument = path.partition(":")  # what follows the colon goes to get_config
    if not Path(file).is_file():
        raise UserError(f"--config={path}: no such file{hint(file, _experiments())}")
    values = runpy.run_path(file)["get_config"](*([argument] if colon else []))
    for override in overrides:
        _check_field(values, override.split("=", 1)[0])


def _check_field(values: Any, field: str) -> None:
    """Walks the dotted `field`; the error names the first part that is not there."""
    walked = "config"
    for name in field.split("."):
        if not hasattr(values, "keys"):
            raise UserError(f"no field {walked}.{name}: {walked} is a value, not a group of fields")
        if name not in values:
            raise UserError(f"no field {walked}.{name}{hint(name, values, f'{walked}.')}")
        walked, values = f"{walked}.{name}", values[name]


def _experiments() -> list[str]:
    """The experiment files, as one would type them from the repository's root."""
    return sorted(map(str, Path("experiments").rglob("*.py")))
