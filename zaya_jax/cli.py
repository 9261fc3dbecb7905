"""`launch.py VERB [--name=value ...]`: finds the verb, parses its options, runs it.

A verb is a module with two functions, imported only when the verb is asked for:

* `define_flags()` declares its options with `absl.flags` (shared ones: `zaya_jax.options`);
* `main(argv) -> int | None` does the work and returns the exit status (None is 0).
"""

from __future__ import annotations

import importlib
import itertools
import os
import sys
import textwrap
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType

from absl import flags

from zaya_jax.errors import UserError, hint

FLAGS = flags.FLAGS

OK, WRONG_USE, INTERRUPTED, OUTPUT_CLOSED = 0, 2, 130, 141
HELP = ("help", "--help", "-h", "-help", "--helpfull")


@dataclass(frozen=True)
class Verb:
    """Where a verb lives (`module`), what it does in one line, and two ways to call it."""

    module: str
    summary: str
    examples: tuple[str, ...]


VERBS: Mapping[str, Verb] = {
    "demo": Verb(
        "zaya_jax.demo",
        "train a tiny ZAYA on this machine, sample from it and export it, in minutes",
        ("demo", "demo --workdir=runs/demo"),
    ),
    "train": Verb(
        "zaya_jax.train.cli",
        "train: pretraining, midtraining, supervised fine-tuning",
        (
            "train --config=experiments/zaya1_tiny.py --workdir=runs/tiny",
            "train --config=experiments/zaya1_tiny.py --config.train.steps=200 --workdir=runs/t",
        ),
    ),
    "demo-rl": Verb(
        "zaya_jax.demo_rl",
        "teach a tiny ZAYA sums by demonstrations, then by RL; score it with and without RSA",
        ("demo-rl", "demo-rl --workdir=runs/sums"),
    ),
    "rl": Verb(
        "zaya_jax.rl.cli",
        "reinforcement learning: rollouts, rewards and updates of the policy",
        (
            "rl --config=experiments/stages/rl_warmup.py --config.train.init_from=runs/sft_131k "
            "--workdir=runs/rl_warmup",
        ),
    ),
    "cascade": Verb(
        "zaya_jax.cascade",
        "all stages of RL one after the other, scored after each; a tiny one by default",
        ("cascade --workdir=runs/cascade", "cascade --until=warmup --workdir=runs/cascade"),
    ),
    "reward-model": Verb(
        "zaya_jax.rl.preference.cli",
        "train a model of rewards from preference pairs",
        (
            "reward-model --config=experiments/rl/preferences.py --workdir=runs/rewards "
            "--config.preference.pairs=pairs.jsonl",
        ),
    ),
    "sweep": Verb(
        "zaya_jax.sweep.cli",
        "search over config fields, or compare arms, with seeds; local or on a Ray cluster",
        (
            "sweep --config=experiments/sweeps/pid.py --workdir=runs/pid",
            "sweep --config=experiments/sweeps/pid.py --config.trials=48 --workdir=runs/pid",
            "sweep --config=experiments/sweeps/router.py --dry_run",
        ),
    ),
    "data": Verb(
        "zaya_jax.data.cli",
        "prepare data offline, and look at it",
        (
            "data --config=experiments/zaya1_tiny.py --out=prepared/tiny",
            "data --config=experiments/zaya1_tiny.py --row=3",
        ),
    ),
    "generate": Verb(
        "zaya_jax.infer.cli",
        "continue a prompt",
        (
            "generate --model=runs/tiny --prompt='def main():'",
            "generate --model=path/to/ZAYA1-8B --prompt='The answer is' --temperature=0.6",
        ),
    ),
    "solve": Verb(
        "zaya_jax.infer.rsa.cli",
        "answer a problem with Markovian RSA: many rollouts, aggregated over rounds",
        (
            "solve --model=path/to/ZAYA1-8B --prompt_file=problem.txt --trace=runs/problem.jsonl",
            "solve --model=runs/tiny --prompt='2+2?' --population=4 --candidates=2 --tail=32 "
            "--budget=64",
        ),
    ),
    "eval": Verb(
        "zaya_jax.evals.cli",
        "score a served model, or recorded answers, on evaluation sets, with intervals",
        (
            "eval --tasks=humaneval,math:aime.jsonl --server=http://localhost:8000/v1 --samples=4 "
            "--workdir=runs/eval",
            "eval --tasks=ifbench --answers=answers.jsonl --workdir=runs/recorded",
            "eval --compare=runs/eval_sft,runs/eval_rl",
        ),
    ),
    "serve": Verb(
        "zaya_jax.serve.cli",
        "serve a model over HTTP, as the OpenAI API has it, with a page to talk to it",
        (
            "serve --model=runs/tiny",
            "serve --model=path/to/ZAYA1-8B --host=0.0.0.0 --api_keys=keys.txt",
        ),
    ),
    "import": Verb(
        "zaya_jax.hf.cli_import",
        "turn a Hugging Face folder into a checkpoint",
        (
            "import --from=path/to/ZAYA1-8B --out=checkpoints/zaya1_8b",
            "import --from=path/to/ZAYA1-base --out=checkpoints/base --layout=legacy",
        ),
    ),
    "export": Verb(
        "zaya_jax.hf.cli_export",
        "write a Hugging Face folder from a run or a checkpoint",
        (
            "export --model=runs/tiny --out=exports/tiny",
            "export --model=runs/tiny --out=exports/tiny --layout=legacy",
        ),
    ),
    "verify": Verb(
        "zaya_jax.hf.cli_verify",
        "compare our logits and tokens with those of transformers",
        ("verify --model=exports/tiny", "verify --model=exports/tiny --json=verify.json"),
    ),
    "report": Verb(
        "zaya_jax.report.cli",
        "plots, tables and report.html of a run",
        ("report --workdir=runs/tiny", "report --workdir=runs/tiny --json=report.json"),
    ),
    "results": Verb(
        "zaya_jax.results",
        "rerun the studies behind docs/results",
        ("results", "results --only=recall,cca --workdir=runs/results"),
    ),
    "plan": Verb(
        "zaya_jax.plan.cli",
        "does it fit: memory, collectives and time of a step on a cluster that is not here",
        (
            "plan --config=experiments/stages/pretrain_1.py --target=mi300x",
            "plan --config=experiments/zaya1_8b.py --target=h100 --mesh=fsdp=8 --compile",
            "plan --config=experiments/zaya1_74b.py --nodes=8 --search",
        ),
    ),
    "kernels": Verb(
        "zaya_jax.aot.cli",
        "compile every kernel for MI300X and H100, no GPU needed, and count its work",
        ("kernels --target=mi300x,h100", "kernels --target=mi300x --op=attention --form=prefill"),
    ),
    "bench": Verb(
        "zaya_jax.bench.cli",
        "measure prefill, training and decoding side by side with a peer",
        ("bench --against=transformers", "bench --against=transformers --json=bench.json"),
    ),
    "doctor": Verb(
        "zaya_jax.doctor",
        "versions, platform, and a check of every op on the attached device",
        ("doctor", "doctor --json=doctor.json"),
    ),
}


def main(argv: Sequence[str], verbs: Mapping[str, Verb] = VERBS) -> int:
    """Runs `argv` (without the program's name) and returns the exit status.

    0 if the verb did what it says, 1 if a check it makes does not hold, 2 for a mistake in what
    was asked (one line, no traceback; 75 where the same command may succeed later), 130 after
    Ctrl-C, 141 if nobody reads what is printed. Other exceptions pass through.
    """
    format_of_python, warnings.formatwarning = warnings.formatwarning, _one_line
    try:
        status = _run(list(argv), verbs)
        sys.stdout.flush()
        return status
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.status
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # the reader of a pipe has read enough: `launch.py ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OUTPUT_CLOSED
    finally:
        warnings.formatwarning = format_of_python


def _one_line(message, category, filename, lineno, line=None) -> str:
    """A warning as the person at the terminal reads it: where in the code it arose is no help."""
    del category, filename, lineno, line
    return f"warning: {message}\n"


def _run(argv: list[str], verbs: Mapping[str, Verb]) -> int:
    asked = list(itertools.takewhile(lambda arg: arg in HELP, argv))
    if len(asked) == len(argv):
        print(_overview(verbs))
        return OK
    name, *arguments = argv[len(asked) :]
    if name.startswith("-"):
        raise UserError(f"{name}: options follow the verb: python launch.py VERB {name}")
    if name not in verbs:
        raise UserError(f"no verb {name!r}{hint(name, verbs)}")
    wants_help = bool(asked or {*arguments[:1]} & {*HELP} or {"--help", "-h"} & {*arguments})
    module = importlib.import_module(verbs[name].module)
    before = set(FLAGS)
    original_argv = sys.argv
    # ml_collections looks for the overrides of a config in sys.argv, already while declaring.
    sys.argv = [f"launch.py {name}", *_normalize(arguments)]
    try:
        if wants_help:
            sys.argv = sys.argv[:1]
            module.define_flags()
            print(_verb_help(name, verbs[name], module, sorted(set(FLAGS) - before)))
            return OK
        return _call(module, sys.argv, before)
    finally:
        sys.argv = original_argv
        for flag in set(FLAGS) - before:  # so that a process may run several verbs
            delattr(FLAGS, flag)


def _call(module: ModuleType, argv: list[str], before: set[str]) -> int:
    """Parses `argv` with the flags of `module` and calls its `main`."""
    module.define_flags()
    ours = set(FLAGS) - before
    try:
        rest = FLAGS(argv)
    except flags.UnrecognizedFlagError as error:
        unknown = error.flagname
        raise UserError(f"no option --{unknown}{hint(unknown, sorted(ours), '--')}") from None
    except flags.Error as error:
        raise UserError(str(error)) from None
    if rest[1:]:
        raise UserError(f"unexpected argument {rest[1]!r}: options are written --name=value")
    return module.main(rest) or OK


def _normalize(arguments: list[str]) -> list[str]:
    """Writes `--config FILE` as `--config=FILE` and puts it first, where its overrides need it."""
    if "--config" in arguments[:-1]:
        at = arguments.index("--config")
        arguments[at : at + 2] = [f"--config={arguments[at + 1]}"]
    return sorted(arguments, key=lambda arg: not arg.startswith("--config="))


def _overview(verbs: Mapping[str, Verb]) -> str:
    width = max(map(len, verbs), default=0)
    lines = [
        "ZAYA1 in JAX: train it, talk to it, move its weights.",
        "",
        "  python launch.py VERB [--config=experiments/x.py] [--config.any.field=value ...]",
        "",
        *(f"  {name:<{width}}  {verb.summary}" for name, verb in verbs.items()),
        "",
        "The options of a verb: python launch.py help VERB",
    ]
    return "\n".join(lines)


def _verb_help(name: str, verb: Verb, module: ModuleType, names: Sequence[str]) -> str:
    lines = [f"launch.py {name}: {verb.summary}", ""]
    about = (module.__doc__ or "").strip().split("\n\n", 1)[0]
    if about:
        lines += [about, ""]
    for flag in (FLAGS[flag] for flag in names):
        lines.append(f"  --{_spelling(flag)}")
        default = "" if flag.default is None else f" (default: {flag.default})"
        text = " ".join((flag.help or "").split()).split(">: ")[-1] + default
        lines += textwrap.wrap(text, 94, initial_indent=" " * 6, subsequent_indent=" " * 6)
    lines += ["", "Examples:", *(f"  python launch.py {example}" for example in verb.examples)]
    return "\n".join(lines)


def _spelling(flag: flags.Flag) -> str:
    """How to write a flag: `seed=INT`, `layout=native|legacy`, `[no]stream`."""
    if flag.boolean:
        return f"[no]{flag.name}"
    if flag.name == "config":
        return f"{flag.name}=FILE"
    values = getattr(flag.parser, "enum_values", None)
    return f"{flag.name}={'|'.join(values) if values else flag.flag_type().upper()}"
