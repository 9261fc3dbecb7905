"""Trains a tiny ZAYA on Python's own library, takes it to longer texts and to chats, exports it.

The three stages of the large model in small: pretraining, midtraining with a longer context,
supervised fine-tuning. Takes minutes on two CPU cores. A second call takes up the runs that are
there: what is trained is not trained again."""

from __future__ import annotations

import ast
import dataclasses
import os
import runpy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from zaya_jax import config, options
from zaya_jax.errors import UserError

EXPERIMENTS = Path(__file__).parents[1] / "experiments"
FOLDER = Path("demo")
STAGES = {
    "midtrain": EXPERIMENTS / "stages" / "midtrain_tiny.py",
    "sft": EXPERIMENTS / "stages" / "sft_tiny.py",
}
"""What follows the pretraining: the folder beside it, and the experiment."""
QUESTION = """Write this Python method of the class `Stack`:

def push(self, item)

Add an item to the top of the stack."""
ANSWER_TOKENS = 256
# None ends in white space: the tokenizer puts it at the head of the word that follows.
PROMPTS = ("import os", "from typing import", "class Node(", "def main(", "def __init__(self")
SAMPLES, SAMPLE_TOKENS, TEMPERATURE = 20, 128, 0.6


def define_flags() -> None:
    """See `zaya_jax.options`."""
    options.config(os.path.relpath(EXPERIMENTS / "zaya1_tiny.py"))
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

    trained = [loop.train(experiment, folder)]
    if trained[0].interrupted is not None:
        return 128 + int(trained[0].interrupted)
    print("\nmeasuring what else predicts these files, and sampling ...", flush=True)
    scores = compare(experiment, folder)
    title = "Bits per byte on held-out files"
    show(title, scores)

    samples = sample(folder, options.FLAGS.seed)
    valid = [text for text in samples if is_python(text)]
    print(f"\nSamples that are valid Python: {len(valid)} of {len(samples)}. One of them:\n")
    # The one that says most: a young model likes to repeat itself.
    shown = max(valid, key=lambda text: len(set(text.splitlines()))) if valid else samples[0]
    print("\n".join(f"    {line}" for line in shown.splitlines()[:30]))

    stages: dict[str, float] = {}
    last = folder
    for name, file in STAGES.items():
        print(f"\n--- {name} ---", flush=True)
        stage, start = stage_of(file, last, experiment), last
        last = folder.parent / name
        trained.append(loop.train(stage, last))
        if trained[-1].interrupted is not None:
            return 128 + int(trained[-1].interrupted)
        stages |= before_and_after(f"{name} from {start.name}", last)
    stages_title = "Bits per byte held out, before and after each stage"
    show(stages_title, stages)
    reply = answer(last, QUESTION, options.FLAGS.seed)
    print("\nA question to the model of the last stage:\n")
    for text in (QUESTION, reply):
        print("\n".join(f"    {line}" for line in text.splitlines()[:30]), end="\n\n")

    export(last, out, overwrite=given is None)  # its own earlier export, nobody else's
    report = write_report(
        folder,
        {
            title: scores,
            "Samples": {"samples": len(samples), "valid Python": len(valid)},
            stages_title: stages,
        },
    )
    print(f"runs:          {folder}, {', '.join(str(folder.parent / name) for name in STAGES)}")
    print(f"Hugging Face:  {out}\nreport:        {report}\n\nNext:")
    print(f"  python launch.py generate --model={folder} --prompt='class ' --temperature=0.7")
    print(f"  python launch.py verify --model={out}")
    print("  python launch.py train --config=experiments/zaya1_tiny.py --workdir=runs/mine \\")
    print("      --config.data.source=path/to/text --config.train.steps=2000")
    options.write_json(
        {
            "workdir": str(folder),
            "export": str(out),
            "report": str(report),
            "training_seconds": trained[0].seconds,
            "stage_seconds": {
                name: result.seconds for name, result in zip(STAGES, trained[1:], strict=True)
            },
            "steps": trained[0].step,
            "bits_per_byte": scores,
            "stages": stages,
            "samples": len(samples),
            "valid_python": len(valid),
            "answer": reply,
        }
    )
    return 0


def show(title: str, values: dict[str, float]) -> None:
    """Prints a table of numbers."""
    width = max(map(len, values), default=0)
    print(f"\n{title}:")
    for name, value in values.items():
        print(f"  {name:<{width}} {value:6.3f}")


def stage_of(file: Path, start: Path, first: config.Experiment) -> config.Experiment:
    """The experiment in a file, begun where the run in `start` ended; the cache is the first's."""
    from zaya_jax import load

    settings = runpy.run_path(str(file))["get_config"]()
    settings.train.init_from = str(start)
    stage = load.experiment(settings)
    data = dataclasses.replace(stage.data, cache_dir=first.data.cache_dir)
    return dataclasses.replace(stage, data=data)


def before_and_after(name: str, folder: Path) -> dict[str, float]:
    """The first and the last evaluation of a run."""
    from zaya_jax.train import metrics

    scores = [record["heldout_bits_per_byte"] for record in metrics.evaluations(folder)]
    return {f"{name}: before": scores[0], f"{name}: after": scores[-1]}


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


def answer(folder: Path, question: str, seed: int) -> str:
    """What the model of a run answers a user, its thinking included."""
    from zaya_jax.data import chat
    from zaya_jax.infer import Generator, Request, Sampling
    from zaya_jax.load import TOKENIZER, load

    loaded = load(folder)
    tokenizer = loaded.require_tokenizer()
    template = chat.ChatTemplate.find(None, folder / TOKENIZER)
    ids = chat.prompt([{"role": "user", "content": question}], tokenizer, template)
    capacity = min(len(ids) + ANSWER_TOKENS, loaded.model.context_length)
    sampling = Sampling(TEMPERATURE, top_p=0.95, seed=seed)  # a small model's best guess loops
    request = Request(ids, max_tokens=ANSWER_TOKENS, sampling=sampling)
    (completion,) = Generator(loaded, batch=1, capacity=capacity).generate([request])
    written = [token for token in completion.tokens if token not in loaded.stop_ids]
    return tokenizer.decode(written, keep_special=True)


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
