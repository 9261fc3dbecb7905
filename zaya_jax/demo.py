"""Trains a tiny ZAYA on Python's own library, samples Python from it, and exports it.

Takes minutes on two CPU cores. A second call takes up the run that is there: what is trained is
not trained again."""

from __future__ import annotations

import ast
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from zaya_jax import config, options
from zaya_jax.errors import UserError

FOLDER = Path("demo")
# None ends in white space: the tokenizer puts it at the head of the word that follows.
PROMPTS = ("import os", "from typing import", "class Node(", "def main(", "def __init__(self")
SAMPLES, SAMPLE_TOKENS, TEMPERATURE = 20, 128, 0.6


def define_flags() -> None:
    """See `zaya_jax.options`."""
    experiment = Path(__file__).parents[1] / "experiments" / "zaya1_tiny.py"
    options.config(os.path.relpath(experiment))
    options.workdir(str(FOLDER / "run"))
    options.out("Hugging Face folder to write; hf beside the run directory by default")
    options.seed()
    options.json()


def main(argv: Sequence[str]) -> int:
    """Returns 0 when all of it was done, 128 + the signal's number when one stopped training."""
    del argv
    experiment = config.freeze(options.require("config"))
    folder = Path(options.require("workdir"))
    given = options.FLAGS.out
    out = Path(given or folder.parent / "hf")
    if given is not None and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--out={given}: not an empty folder, and nothing in it is overwritten")
    from zaya_jax.train import loop  # not above: `--help` needs no jax

    result = loop.train(experiment, folder)
    if result.interrupted is not None:
        return 128 + int(result.interrupted)
    print("\nmeasuring what else predicts these files, and sampling ...", flush=True)
    scores = compare(experiment, folder)
    title = "Bits per byte on held-out files"
    print(f"\n{title}:")
    for name, value in scores.items():
        print(f"  {name:<24} {value:6.3f}")

    samples = sample(folder, options.FLAGS.seed)
    valid = [text for text in samples if is_python(text)]
    print(f"\nSamples that are valid Python: {len(valid)} of {len(samples)}. One of them:\n")
    shown = max(valid, key=len) if valid else samples[0]
    print("\n".join(f"    {line}" for line in shown.splitlines()[:30]))

    export(folder, out, overwrite=given is None)  # its own earlier export, nobody else's
    report = write_report(
        folder,
        {title: scores, "Samples": {"samples": len(samples), "valid Python": len(valid)}},
    )
    print(f"\nrun:           {folder}\nHugging Face:  {out}\nreport:        {report}\n\nNext:")
    print(f"  python launch.py generate --model={folder} --prompt='class ' --temperature=0.7")
    print(f"  python launch.py verify --model={out}")
    print("  python launch.py train --config=experiments/zaya1_tiny.py --workdir=runs/mine \\")
    print("      --config.data.source=path/to/text --config.train.steps=2000")
    options.write_json(
        {
            "workdir": str(folder),
            "export": str(out),
            "report": str(report),
            "training_seconds": result.seconds,
            "steps": result.step,
            "bits_per_byte": scores,
            "samples": len(samples),
            "valid_python": len(valid),
        }
    )
    return 0


def compare(experiment: config.Experiment, folder: Path) -> dict[str, float]:
    """The model before and after training, and what else could be done on the same files."""
    from zaya_jax.data.baselines import baselines
    from zaya_jax.train import metrics, setup

    scores = [record["heldout_bits_per_byte"] for record in metrics.evaluations(folder)]
    others = baselines(setup.prepare_data(experiment, folder))
    return {"ZAYA, before training": scores[0], **others, "ZAYA, trained": scores[-1]}


def sample(folder: Path, seed: int) -> list[str]:
    """Beginnings of Python files as the model continues `PROMPTS`."""
    from zaya_jax.infer import Generator, Request, Sampling
    from zaya_jax.load import load

    loaded = load(folder)
    prompts = [PROMPTS[i % len(PROMPTS)] for i in range(SAMPLES)]
    requests = [
        Request(
            prompt,
            max_tokens=SAMPLE_TOKENS,
            sampling=Sampling(TEMPERATURE, top_p=0.95, seed=seed + i),
        )
        for i, prompt in enumerate(prompts)
    ]
    capacity = min(SAMPLE_TOKENS + 32, loaded.model.context_length)
    completions = Generator(loaded, batch=SAMPLES, capacity=capacity).generate(requests)
    texts = [prompt + done.text for prompt, done in zip(prompts, completions, strict=True)]
    return [
        text if done.finish == "eos" else whole_statements(text)
        for text, done in zip(texts, completions, strict=True)
    ]


def whole_statements(text: str) -> str:
    """Leaves out the end of a text that was cut off at a length, which is nobody's mistake.

    Keeps what comes before the last line that begins a top-level statement; where there is only
    one statement, its whole lines.
    """
    lines = text.splitlines(keepends=True)
    kept = lines[:-1]
    for i in range(len(lines) - 1, 0, -1):
        if lines[i][0] not in " \t\r\n)]}":
            kept = lines[:i]
            break
    return "".join(kept)


def is_python(text: str) -> bool:
    """Whether `ast.parse` accepts the text, and there is something in it."""
    try:
        return bool(ast.parse(text).body)
    except (SyntaxError, ValueError):
        return False


def export(folder: Path, out: Path, overwrite: bool) -> None:
    """Writes the trained weights in the layout of transformers; may replace an earlier export."""
    from zaya_jax import hf
    from zaya_jax.load import TOKENIZER, load

    loaded = load(folder)
    hf.write_folder(
        loaded.model,
        loaded.params,
        loaded.biases,
        out,
        tokenizer_dir=folder / TOKENIZER,
        overwrite=overwrite,
    )


def write_report(folder: Path, tables: dict[str, dict[str, Any]]) -> Path:
    """The page of the run, with what the demo found out beside it."""
    from zaya_jax.report import page, run

    return page.write(run.read(folder), folder / "report.html", tables)
