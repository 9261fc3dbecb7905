"""From an experiment to what the loop runs on: the data, and a text that says what it is."""

from __future__ import annotations

import math
from pathlib import Path

from zaya_jax import costs, load, lora, optim
from zaya_jax import data as data_lib
from zaya_jax.config import Experiment, Model
from zaya_jax.data import Prepared, Tokenizer
from zaya_jax.data.mistakes import as_user_errors
from zaya_jax.errors import UserError
from zaya_jax.parallel.processes import ALONE, Alone
from zaya_jax.train import agree, workdir


def prepare_data(experiment: Experiment, folder: Path, group: Alone = ALONE) -> Prepared:
    """Reads, tokenises and packs the text; records in the run directory what it was.

    The run's tokenizer is the one in its directory, if there is one; else that of the config; else
    that of `init_from`; else one trained on the text.

    Of several processes, process 0 does the work; the others then find what it has prepared, or
    prepare the same where they cannot see it.

    Raises:
      UserError: there is no such text, it cannot be read, it is not the text that the run began
        with, its tokenizer does not fit the model, or `init_from` has none; or the processes have
        read different texts.
    """
    made: list[Prepared] = []
    group.share(lambda: made.append(_prepare(experiment, folder, records=True)))
    prepared = made[0] if made else _prepare(experiment, folder, records=False)
    agree.check_data(group, _named(experiment), prepared.info.rows_sha256)
    return prepared


def _named(experiment: Experiment) -> str:
    """The text, as the config has it."""
    section = experiment.data
    if section.mixture:
        return f"data.mixture = {section.mixture}"
    return f"data.source = {section.source!r}"


def _prepare(experiment: Experiment, folder: Path, records: bool) -> Prepared:
    section, train = experiment.data, experiment.train
    saved = folder / workdir.TOKENIZER
    given = str(saved) if saved.exists() else load.tokenizer_for(experiment)
    with as_user_errors(_named(experiment), section.cache_dir):
        prepared = data_lib.prepare(
            section,
            vocab_size=experiment.model.vocab_size,
            sequence_length=train.sequence_length,
            batch_size=train.batch_size,
            seed=train.seed,
            tokenizer=given,
        )
    _check_ids(experiment, prepared.tokenizer)
    if not records:
        return prepared
    workdir.check_data(folder, prepared.info.as_json())
    keep_tokenizer(experiment, prepared.tokenizer, folder)
    return prepared


def save_tokenizer(tokenizer: Tokenizer, given: str | None, saved: Path) -> None:
    """Keeps the tokenizer with the run: a folder's files as they are, for they say more than we
    read of them (chat templates, whether text opens with a begin-of-sequence token)."""
    from zaya_jax.hf.folder import TOKENIZER_FILES
    from zaya_jax.hf.importer import copy_files

    if given is not None and Path(given).is_dir():
        copy_files(Path(given), saved, TOKENIZER_FILES)
    else:
        tokenizer.save(saved)


def keep_tokenizer(experiment: Experiment, tokenizer: Tokenizer, folder: Path) -> None:
    """Keeps the tokenizer of the weights that a run starts from, unless it has it already.

    Raises:
      UserError: as `load.tokenizer_for`.
    """
    saved = folder / workdir.TOKENIZER
    if not saved.exists():
        save_tokenizer(tokenizer, load.tokenizer_for(experiment), saved)


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


def describe(experiment: Experiment, prepared: Prepared) -> str:
    """What is about to be trained on what, for a person to check."""
    model, train, info = experiment.model, experiment.train, prepared.info
    cost = costs.of(experiment)
    tokens = train.steps * train.batch_size * train.sequence_length
    skipped = f", {info.corpus.skipped} skipped" if info.corpus.skipped else ""
    table = optim.describe(experiment.optim, lora.trained(experiment))
    lines = [
        f"{experiment.name}: {cost.parameters:,} parameters, {cost.active_parameters:,} active "
        "per token",
        f"  {model_line(model)}",
        f"  a token costs {cost.flops_per_token / 1e6:,.1f} MFLOPs to train on, and "
        f"{cost.kv_bytes_per_token:,} bytes of keys and values to decode",
        f"data: {info.corpus.source}: {info.corpus.documents:,} documents, "
        f"{info.corpus.bytes / 1e6:.1f} MB{skipped}, sha256 {info.corpus.sha256[:12]}",
        f"  train {info.train.tokens:,} tokens, held out {info.heldout.documents} documents, "
        f"{info.heldout.tokens:,} tokens; vocabulary {info.vocab_size:,}",
        f"steps: {train.steps:,} of {train.batch_size} x {train.sequence_length} tokens: "
        f"{tokens:,} tokens, {tokens / info.train.packed:.2f} epochs",
        f"optimizer: {optim_line(experiment)}",
        *(f"  {line}" for line in table.splitlines()),
        f"balance: {balance_line(experiment)}",
    ]
    if experiment.lora.rank:
        size = sum(math.prod(d.shape) for d in lora.trained(experiment).values())
        lines.append(
            f"lora: rank {experiment.lora.rank}, alpha {experiment.lora.alpha:g}, on "
            f"{', '.join(experiment.lora.targets)}: {size:,} parameters over {train.init_from}"
        )
    if train.microbatches > 1:
        lines.append(f"gradients accumulate over {train.microbatches} microbatches a step")
    if model.param_dtype == "bfloat16":
        lines.append(
            "note: model.param_dtype = bfloat16 rounds the optimizer's state and every update to 8 "
            "bits; small updates are lost. model.param_dtype = float32 with model.activation_dtype "
            "= bfloat16 keeps float32 masters and computes in bfloat16."
        )
    return "\n".join(lines)


def model_line(model: Model) -> str:
    """The layers in words."""
    a, r = model.attention, model.router
    grouped = f"query and {a.kv_heads} kv " if a.kind in ("cca", "gqa") else ""
    words = f"{a.heads} {grouped}heads of {a.head_dim}"
    if a.kind == "mla":
        words += f", a latent of {a.kv_rank}"
    if a.kind == "cca":
        widths = " and ".join(map(str, a.conv_kernels))
        words += f", convolutions over {widths}" if widths else ", no convolutions"
        off = (("q-k mean", a.qk_mean), ("value shift", a.value_shift))
        words += "".join(f", no {name}" for name, there in off if not there)
    return (
        f"{model.num_layers} layers ({model.layers}) of {model.hidden_size}: {a.kind} with {words}"
        f"; {r.experts} experts of {model.expert_width} ({r.kind}, top-{r.top_k}, skip {r.skip})"
    )


def balance_line(experiment: Experiment) -> str:
    """The bias controller in words, and the losses that help it."""
    b = experiment.balance
    if experiment.lora.rank:
        return "biases stay as they are under adapters"
    words = b.kind
    if b.kind in ("adamw", "sign"):
        words += f", rate {b.rate:g}"
    if b.kind == "pid":
        words += f", kp {b.kp:g}, ki {b.ki:g}, kd {b.kd:g}"
    losses = (("auxiliary loss", b.aux_loss), ("router's z-loss", b.z_loss))
    return "".join([words, *(f", {name} {weight:g}" for name, weight in losses if weight)])


def optim_line(experiment: Experiment) -> str:
    """The schedule in words."""
    o, z_loss = experiment.optim, experiment.train.z_loss
    end = {
        "cosine": f" to {o.final_fraction:.2g} of it",
        "wsd": f", in the last {o.decay_fraction:.0%} to {o.final_fraction:.2g} of it",
    }
    return (
        f"{o.kind}, learning rate {o.learning_rate:g} after {o.warmup_steps} steps, "
        f"{o.schedule}{end.get(o.schedule, '')}, adamw's betas ({o.b1:g}, {o.b2:g}), "
        f"clip {o.clip_norm:g}{f', z-loss {z_loss:g}' if z_loss else ''}"
    )
