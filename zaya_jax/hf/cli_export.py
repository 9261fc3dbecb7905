"""Writes a Hugging Face folder: weights, config, tokenizer and a model card.

What is exported in the layout it was imported from comes back byte for byte. What `zaya` cannot
express is refused, field by field.
"""

from __future__ import annotations

import json
from pathlib import Path

from absl import flags

from zaya_jax import load, options
from zaya_jax.config import from_dict
from zaya_jax.hf.exporter import convert_folder, write_folder
from zaya_jax.hf.folder import open_folder
from zaya_jax.hf.names import LEGACY, NATIVE
from zaya_jax.train import metrics

FLAGS = flags.FLAGS


def define_flags() -> None:
    options.model()
    options.out("new folder to write")
    options.json()
    flags.DEFINE_enum(
        "layout", None, [NATIVE, LEGACY], "names of the tensors; native, or that of the import"
    )
    flags.DEFINE_float(
        "max_shard_gb", None, "largest weight file; 5, or as imported", lower_bound=1e-6
    )
    flags.DEFINE_enum(
        "dtype", "source", ["source", "bfloat16", "float32"], "of the parameters; source keeps it"
    )
    flags.DEFINE_bool("overwrite", False, "replace an earlier export")


def main(argv: list[str]) -> None:
    """Exports, and says where."""
    del argv
    path, out = options.require("model"), options.require("out")
    choices = {
        "dtype": FLAGS.dtype,
        "max_shard_gb": FLAGS.max_shard_gb,
        "overwrite": FLAGS.overwrite,
        "progress": "export",
    }
    source = load.locate(Path(path).expanduser())
    if source.kind == "folder":
        convert_folder(open_folder(source.path), out, layout=FLAGS.layout, **choices)
    else:
        loaded = load.load(path)
        write_folder(
            loaded.model,
            loaded.params,
            loaded.biases,
            out,
            layout=FLAGS.layout or NATIVE,
            tokenizer_dir=source.path / load.TOKENIZER,
            facts=training_facts(source.path),
            **choices,
        )
    written = open_folder(out)
    size = sum(header.data_bytes for header in written.reader.headers.values())
    record = {
        "model": str(path),
        "out": str(out),
        "layout": written.layout,
        "tensors": len(written.reader.entries),
        "files": [file.name for file in written.reader.headers],
        "dtype": written.model.param_dtype,
        "bytes": size,
    }
    print(
        f"{out}: {record['tensors']} tensors in {record['dtype']}, {written.layout} layout, "
        f"{size / 1e9:.3f} GB in {len(written.reader.headers)} files"
    )
    print(f"next: python launch.py verify --model={out}")
    options.write_json(record)


def training_facts(run: Path) -> dict[str, object]:
    """What a run directory says of its training, for the model card."""
    experiment = from_dict(json.loads((run / load.CONFIG).read_text()))
    train = experiment.train
    facts: dict[str, object] = {"run": experiment.name, "text": experiment.data.source}
    records = metrics.read(run)
    if records:
        steps = records[-1]["step"]
        facts["training"] = (
            f"{steps:,} steps of {train.batch_size} rows of {train.sequence_length} tokens"
        )
    scores = [r for r in records if r.get("heldout_bits_per_byte") is not None]
    if scores:
        facts["held-out bits per byte"] = f"{scores[-1]['heldout_bits_per_byte']:.3f}"
    return facts
