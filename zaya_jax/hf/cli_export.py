"""Writes a Hugging Face folder: weights, config, tokenizer and a model card.

What is exported in the layout it was imported from comes back byte for byte. What `zaya` cannot
express is refused, field by field. A LoRA run is written with its adapters merged; --adapter writes
these alone, for PEFT.
"""

from __future__ import annotations

import importlib
import json
from pathlib import Path

from absl import flags

from zaya_jax import load, options
from zaya_jax.config import from_dict
from zaya_jax.errors import UserError
from zaya_jax.hf.exporter import convert_folder, write_folder
from zaya_jax.hf.folder import open_folder
from zaya_jax.hf.names import LEGACY, NATIVE
from zaya_jax.hf.peft import write_adapter

FLAGS = flags.FLAGS

SCORE = "heldout_bits_per_byte"  # in a run's metrics


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
    flags.DEFINE_bool("adapter", False, "only the adapters of a LoRA run, in PEFT's layout")


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
    if FLAGS.adapter:
        export_adapter(source, out)
        return
    if source.kind == "folder":
        convert_folder(open_folder(source.path), out, layout=FLAGS.layout, **choices)
    else:
        step = step_of(source)
        loaded = load.load(source.path / load.CHECKPOINTS / str(step))
        write_folder(
            loaded.model,
            loaded.params,
            loaded.biases,
            out,
            layout=FLAGS.layout or NATIVE,
            tokenizer_dir=source.path / load.TOKENIZER,
            facts=training_facts(source.path, step),
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


def export_adapter(source: load.Source, out: str) -> None:
    """Writes the adapters of a LoRA run in PEFT's layout, and says how to load them.

    Raises:
      UserError: this is no LoRA run, or other options were given that speak of whole models.
    """
    if source.kind != "run":
        raise UserError(f"--adapter: --model={source.path} is no run, and has no adapters")
    for name, given in (
        ("layout", FLAGS.layout is not None),
        ("dtype", FLAGS.dtype != "source"),
        ("max_shard_gb", FLAGS.max_shard_gb is not None),
    ):
        if given:
            raise UserError(f"--{name} does not go with --adapter")
    # Named, not imported: the room `train` reads folders, so it imports this one.
    weights = importlib.import_module("zaya_jax.train.weights")
    step = step_of(source)
    experiment, adapters, _ = weights.restore_trained(source.path, step=step)
    model, lora, base = experiment.model, experiment.lora, experiment.train.init_from
    if lora.rank == 0:
        raise UserError(f"--adapter: the run {source.path} trained all parameters: lora.rank = 0")
    write_adapter(
        model,
        lora,
        adapters,
        out,
        base=base,
        tokenizer_dir=source.path / load.TOKENIZER,
        overwrite=FLAGS.overwrite,
    )
    record = {
        "model": str(source.path),
        "out": str(out),
        "step": step,
        "base": base,
        "rank": lora.rank,
        "alpha": lora.alpha,
        "targets": list(lora.targets),
        "parameters": sum(value.size for value in adapters.values()),
    }
    print(
        f"{out}: adapters of rank {lora.rank} on {', '.join(lora.targets)}, "
        f"{record['parameters']:,} parameters, for the base {base}"
    )
    print(f"next: peft.PeftModel.from_pretrained(base, {str(out)!r})")
    options.write_json(record)


def step_of(source: load.Source) -> int:
    """The checkpoint that was named, or the newest of the run.

    Where weights are only read, a damaged checkpoint gives way to the one before it; what is handed
    on under the run's name must be the one that its model card speaks of.

    Raises:
      UserError: the run has none.
    """
    if source.step is not None:
        return source.step
    names = [path.name for path in (source.path / load.CHECKPOINTS).iterdir()]
    steps = [int(name) for name in names if name.isdigit()]
    if not steps:
        raise UserError(f"--model={source.path}: no checkpoints yet")
    return max(steps)


def training_facts(run: Path, step: int) -> dict[str, object]:
    """What a run directory says of its training until `step`, for the model card."""
    experiment = from_dict(json.loads((run / load.CONFIG).read_text()))
    train = experiment.train
    facts: dict[str, object] = {
        "run": experiment.name,
        "text": experiment.data.source,
        "training": (
            f"{step:,} steps of {train.batch_size} rows of {train.sequence_length} tokens"
        ),
    }
    if train.init_from is not None:
        facts["started from"] = train.init_from
    if experiment.lora.rank:
        lora = experiment.lora
        facts["trained"] = (
            f"LoRA adapters of rank {lora.rank} on {', '.join(lora.targets)}, merged here"
        )
    metrics = importlib.import_module("zaya_jax.train.metrics")
    scores = [
        record
        for record in metrics.read(run)
        if record["step"] <= step and record.get(SCORE) is not None
    ]
    if scores:
        last = scores[-1]
        when = "" if last["step"] == step else f" after {last['step']:,} steps"
        facts[f"held-out bits per byte{when}"] = f"{last[SCORE]:.3f}"
    return facts
