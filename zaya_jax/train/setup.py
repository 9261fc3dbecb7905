"""From an experiment to what the loop runs on: data, first state, and a text that says so."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from zaya_jax import data as data_lib
from zaya_jax import optim
from zaya_jax.config import Experiment
from zaya_jax.data import Prepared, Tokenizer
from zaya_jax.errors import UserError
from zaya_jax.model import functional
from zaya_jax.train import state as train_state
from zaya_jax.train import workdir
from zaya_jax.train.state import TrainState


def prepare_data(experiment: Experiment, folder: Path) -> Prepared:
    """Reads, tokenises and packs the text; records in the run directory what it was.

    The run's tokenizer is the one in its directory, if there is one; else that of `init_from`; else
    that of the config.

    Raises:
      UserError: there is no such text, it cannot be read, it is not the text that the run began
        with, or its tokenizer does not fit the model.
    """
    section, train = experiment.data, experiment.train
    saved = folder / workdir.TOKENIZER
    if not saved.exists() and section.tokenizer is None and train.init_from is not None:
        _loaded(experiment).tokenizer.save(saved)
    try:
        prepared = data_lib.prepare(
            source=section.source,
            tokenizer=str(saved) if saved.exists() else section.tokenizer,
            vocab_size=experiment.model.vocab_size,
            sequence_length=train.sequence_length,
            batch_size=train.batch_size,
            seed=train.seed,
            heldout_fraction=section.heldout_fraction,
            heldout_max_bytes=section.heldout_max_bytes,
            text_field=section.text_field,
            on_bad_text=section.on_bad_text,
            cache_dir=Path(section.cache_dir),
        )
    except (ValueError, FileNotFoundError) as error:
        raise UserError(f"data.source = {section.source!r}: {error}") from error
    _check_ids(experiment, prepared.tokenizer)
    workdir.check_data(folder, prepared.info.as_json())
    if not saved.exists():
        prepared.tokenizer.save(saved)
    return prepared


def _check_ids(experiment: Experiment, tokenizer: Tokenizer) -> None:
    """The ids that generation and export go by must be those that training sees."""
    wrong = [
        f"  model.{name} = {getattr(experiment.model, name)}, the tokenizer's is {value}"
        for name in ("eos_id", "bos_id", "pad_id")
        if (value := getattr(tokenizer, name)) is not None
        and value != getattr(experiment.model, name)
    ]
    if wrong:
        raise UserError("the model's special ids are not the tokenizer's:\n" + "\n".join(wrong))


def first_state(experiment: Experiment) -> TrainState:
    """The state at step 0: drawn from the seed, or with the weights of `train.init_from`.

    Raises:
      UserError: those weights are of another shape; the message lists the tensors.
    """
    if experiment.train.init_from is None:
        return train_state.init(experiment)
    loaded = _loaded(experiment)
    problems = []
    for wanted, found in (
        (functional.declarations(experiment.model), loaded.params),
        (functional.bias_declarations(experiment.model), loaded.biases),
    ):
        for path in dict.fromkeys([*wanted, *found]):
            left = wanted[path].shape if path in wanted else "none"
            right = tuple(found[path].shape) if path in found else "none"
            if left != right:
                problems.append(f"  {path}: {left} in the config, {right} there")
    if problems:
        raise UserError(
            f"train.init_from = {experiment.train.init_from}: not the model of the config:\n"
            + "\n".join(problems)
        )
    params = {
        path: loaded.params[path].astype(declaration.dtype)
        for path, declaration in functional.declarations(experiment.model).items()
    }
    biases = {
        path: loaded.biases[path].astype(declaration.dtype)
        for path, declaration in functional.bias_declarations(experiment.model).items()
    }
    return train_state.from_weights(experiment, params, biases)


def _loaded(experiment: Experiment):
    from zaya_jax import load

    assert experiment.train.init_from is not None
    return load.load(experiment.train.init_from, layers=experiment.model.layers)


def describe(experiment: Experiment, prepared: Prepared) -> str:
    """What is about to be trained on what, for a person to check."""
    model, train, info = experiment.model, experiment.train, prepared.info
    a, r = model.attention, model.router
    tokens = train.steps * train.batch_size * train.sequence_length
    skipped = f", {info.corpus.skipped} skipped" if info.corpus.skipped else ""
    lines = [
        f"{experiment.name}: {functional.parameter_count(model):,} parameters, "
        f"{functional.active_parameter_count(model):,} active per token",
        f"  {model.num_layers} layers ({model.layers}) of {model.hidden_size}: {a.kind} with "
        f"{a.heads} query and {a.kv_heads} kv heads of {a.head_dim}, {r.experts} experts of "
        f"{model.expert_width} ({r.kind}, top-{r.top_k}, skip {r.skip})",
        f"data: {info.corpus.source}: {info.corpus.documents:,} documents, "
        f"{info.corpus.bytes / 1e6:.1f} MB{skipped}, sha256 {info.corpus.sha256[:12]}",
        f"  train {info.train.tokens:,} tokens, held out {info.heldout.documents} documents, "
        f"{info.heldout.tokens:,} tokens; vocabulary {info.vocab_size:,}",
        f"steps: {train.steps:,} of {train.batch_size} x {train.sequence_length} tokens: "
        f"{tokens:,} tokens, {tokens / info.train.tokens:.2f} epochs",
        f"optimizer: {optim_line(experiment)}",
        *(f"  {line}" for line in optim.describe(experiment).splitlines()),
        f"balance: {experiment.balance.kind}, rate {experiment.balance.rate:g}",
    ]
    if model.param_dtype == "bfloat16":
        lines.append(
            "note: model.param_dtype = bfloat16 rounds the optimizer's state and every update to 8 "
            "bits; small updates are lost. Train with float32 parameters."
        )
    return "\n".join(lines)


def optim_line(experiment: Experiment) -> str:
    """The schedule in words."""
    o = dataclasses.asdict(experiment.optim)
    end = f" to {o['final_fraction']:.2g} of it" if o["schedule"] == "cosine" else ""
    return (
        f"adamw ({o['b1']:g}, {o['b2']:g}), learning rate {o['learning_rate']:g} after "
        f"{o['warmup_steps']} steps, {o['schedule']}{end}, clip {o['clip_norm']:g}"
    )
