"""Which experiments can be run: impossible and contradictory values, found before compilation."""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Iterable
from typing import Any

from pallas_kernels import dispatch
from zaya_jax.config import mesh
from zaya_jax.config.kinds import ATTENTION_KINDS, BALANCERS, ROUTER_KINDS, check_kind
from zaya_jax.config.rl import ADVANTAGES, CENTRES, ROLLOUTS, RULES, TRUNCATIONS
from zaya_jax.config.schema import (
    ALL_TO_ALL,
    BAD_RECORDS,
    BAD_TEXT,
    DTYPES,
    FORMATS,
    LAYER_FORMS,
    LORA_TARGETS,
    NUMERICS,
    OPTIMIZERS,
    PACKINGS,
    REMAT,
    SCHEDULES,
    SKIP_RULES,
    SPANS,
    Balance,
    Data,
    Experiment,
    Faults,
    Model,
    Ops,
    Optim,
    Train,
)
from zaya_jax.errors import hint

MOST_RATIO = 10_000
"""Of the weights of two sources: a run looks through so many rows to find where a switch stands."""


def check(experiment: Experiment) -> typing.Iterator[str]:
    """Yields one message for each mistake in a well-typed experiment."""
    yield from check_model(experiment.model)
    attention, train = experiment.model.attention, experiment.train
    if attention.window is not None and "sliding" not in attention.pattern:
        yield (
            f"model.attention.window = {attention.window}: no layer of model.attention.pattern is "
            "sliding"
        )
    if train.sequence_length > experiment.model.context_length:
        yield (
            f"train.sequence_length = {train.sequence_length}: longer than "
            f"model.context_length = {experiment.model.context_length}"
        )
    if not 0 <= experiment.optim.warmup_steps < max(train.steps, 1):
        yield (
            f"optim.warmup_steps = {experiment.optim.warmup_steps}: expected less than "
            f"train.steps = {train.steps}"
        )
    busy = experiment.optim.warmup_steps + experiment.optim.decay_fraction * train.steps
    if experiment.optim.schedule == "wsd" and busy > train.steps:
        yield (
            f"optim.decay_fraction = {experiment.optim.decay_fraction}: with "
            f"optim.warmup_steps = {experiment.optim.warmup_steps}, more than "
            f"train.steps = {train.steps}"
        )
    yield from _check_data(experiment.data)
    yield from _check_train(train, only_scored=bool(experiment.rl.tasks) and train.steps == 0)
    yield from _check_optim(experiment.optim)
    yield from _check_balance(experiment.balance)
    yield from _check_faults(experiment.faults)
    yield from _check_lora(experiment)
    yield from mesh.check(experiment)
    yield from _among("parallel.all_to_all", experiment.parallel.all_to_all, ALL_TO_ALL)
    yield from _positive("parallel", experiment.parallel, "room")
    yield from _check_rl(experiment)


def _check_rl(experiment: Experiment) -> typing.Iterator[str]:
    if experiment.train.z_loss and (experiment.rl.tasks or experiment.preference.pairs):
        yield (
            f"train.z_loss = {experiment.train.z_loss}: of pretraining and fine-tuning; neither RL "
            "nor a reward model has it"
        )
    section = experiment.rl
    counts = "prompts max_prompt max_tokens concurrent swap_every buffer"
    counts += " microbatch_tokens microbatch_rows verifier_seconds verifier_processes"
    counts += " workers pool_gb"
    yield from _positive("rl", section, counts)
    if section.group < 2:
        yield f"rl.group = {section.group}: expected at least 2: a rollout is judged by the others"
    for name in ("heldout", "staleness"):
        if getattr(section, name) < 0:
            yield f"rl.{name} = {getattr(section, name)}: expected at least 0"
    if not 0 <= section.min_p <= 1:
        yield f"rl.min_p = {section.min_p}: expected a share from 0 to 1"
    if not 0 < experiment.preference.heldout_fraction < 1:
        fraction = experiment.preference.heldout_fraction
        yield f"preference.heldout_fraction = {fraction}: expected a share between 0 and 1"
    if section.reward_model is not None and section.loss.advantage != "grpo":
        yield (
            f"rl.loss.advantage = {section.loss.advantage!r}: a reward model's scores have no "
            "solve rate; take 'grpo'"
        )
    behind = section.swap_every if section.overlap else section.swap_every - 1
    if section.tasks and behind > section.staleness:
        yield (
            f"rl.swap_every = {section.swap_every}: what is sampled before a swap is {behind} "
            f"updates old when it is learnt from, and rl.staleness = {section.staleness}"
        )
    if section.tasks and experiment.mesh:
        yield f"mesh = {experiment.mesh!r}: a stage of RL trains on one device so far"
    if section.length.coefficient and section.loss.advantage != "maxrl":
        yield (
            f"rl.length.coefficient = {section.length.coefficient}: the length reward is part of "
            "rl.loss.advantage = 'maxrl' alone"
        )
    yield from _among("rl.rollout", section.rollout, ROLLOUTS)
    if section.rollout == "inline" and section.workers > 1:
        yield f"rl.workers = {section.workers}: with rl.rollout = 'inline' there is one"
    yield from _among("rl.loss.advantage", section.loss.advantage, ADVANTAGES)
    yield from _among("rl.loss.truncation", section.loss.truncation, TRUNCATIONS)
    yield from _among("rl.loss.centre", section.loss.centre, CENTRES)
    yield from _positive("rl.loss", section.loss, "ratio_cap")
    for name in ("low", "high"):
        if not 0 <= getattr(section.loss, name) <= 1:
            yield f"rl.loss.{name} = {getattr(section.loss, name)}: expected 0 to 1"
    if not 0 <= section.length.coefficient <= 1:
        yield f"rl.length.coefficient = {section.length.coefficient}: expected 0 to 1"
    yield from _among("rl.curriculum.rule", section.curriculum.rule, RULES)
    for name in ("start", "rounds"):
        if (given := getattr(section.curriculum, name)) < 0:
            yield f"rl.curriculum.{name} = {given}: expected at least 0"
    scoring = section.scoring
    for name, least in (("population", 0), ("candidates", 1), ("rounds", 0), ("budget", 0)):
        if getattr(scoring, name) < least:
            yield f"rl.scoring.{name} = {getattr(scoring, name)}: expected at least {least}"
    yield from _positive("rl.scoring", scoring, "tail")
    if scoring.rounds and scoring.candidates > scoring.population:
        yield (
            f"rl.scoring.candidates = {scoring.candidates}: more than rl.scoring.population = "
            f"{scoring.population}, of which they are drawn"
        )
    if section.tasks and section.loss.replay and experiment.model.router.top_k > 1:
        yield "rl.loss.replay: routes of model.router.top_k = 1 can be replayed, no others"
    longest = section.max_prompt + section.max_tokens - 1
    if section.tasks and longest > section.microbatch_tokens:
        yield (
            f"rl.microbatch_tokens = {section.microbatch_tokens}: a prompt of rl.max_prompt and a "
            f"rollout of rl.max_tokens take {longest}"
        )


def _check_data(data: Data) -> typing.Iterator[str]:
    if data.heldout_max_bytes is not None and data.heldout_max_bytes < 1:
        yield f"data.heldout_max_bytes = {data.heldout_max_bytes}: expected at least 1, or none"
    yield from _among("data.format", data.format, FORMATS)
    yield from _among("data.packing", data.packing, PACKINGS)
    yield from _among("data.on_bad_text", data.on_bad_text, BAD_TEXT)
    yield from _among("data.on_bad_record", data.on_bad_record, BAD_RECORDS)
    if not 0 < data.heldout_fraction < 1:
        yield f"data.heldout_fraction = {data.heldout_fraction}: expected a share between 0 and 1"
    yield from check_mixture(data)


def check_mixture(data: Data) -> typing.Iterator[str]:
    """Yields one message for each mistake in the mixture of sources and its schedule."""
    problems = list(_check_weights(data))
    yield from problems
    if problems or not data.mixture_schedule:
        return
    if not data.mixture:
        yield "data.mixture_schedule: there is no data.mixture whose weights could change"
        return
    before = 0
    for entry in data.mixture_schedule:
        if not _is_weights_at_a_step(entry):
            yield f"data.mixture_schedule has {entry!r}: expected (step, (weight, ...))"
            return
        step, weights = entry
        where = f"data.mixture_schedule, step {step}"
        if step <= before:
            yield f"{where}: expected steps from 1 on, each later than the one before"
        before = step
        if len(weights) != len(data.mixture):
            yield f"{where}: {len(weights)} weights for the {len(data.mixture)} of data.mixture"
            return
        if wrong := [weight for weight in weights if not 0 <= weight < math.inf]:
            yield f"{where} has weight {wrong[0]}: expected 0 or more"
        elif not any(weights):
            yield f"{where}: all weights are 0: no source would give rows"
        else:
            yield from check_ratio(where, weights)
    for number, (source, weight) in enumerate(data.mixture):
        if not weight and not any(weights[number] for _, weights in data.mixture_schedule):
            yield f"data.mixture: {source!r} has weight 0 from beginning to end"


def _check_weights(data: Data) -> typing.Iterator[str]:
    """Of the mixture. A source may begin with weight 0 if a schedule can bring it in."""
    seen = set()
    for entry in data.mixture:
        pair = isinstance(entry, tuple) and len(entry) == 2
        if not pair or not isinstance(entry[0], str) or not _is_number(entry[1]):
            yield f"data.mixture has {entry!r}: expected pairs (source, weight)"
            return
        source, weight = entry
        if not 0 < weight < math.inf and not (weight == 0 and data.mixture_schedule):
            yield f"data.mixture: {source!r} has weight {weight}: expected more than 0"
        if source in seen:
            yield f"data.mixture: {source!r} is there twice"
        seen.add(source)
    weights = [weight for _, weight in data.mixture]
    if data.mixture and not any(weights):
        yield "data.mixture: all weights are 0: no source would give rows"
    yield from check_ratio("data.mixture", weights)


def check_ratio(where: str, weights: Iterable[float]) -> typing.Iterator[str]:
    """Yields a message if the weights of two sources that give rows are too far apart."""
    given = [weight for weight in weights if weight > 0]
    if given and max(given) > MOST_RATIO * min(given) * (1 + 1e-6):  # shares may be rounded
        yield (
            f"{where} has weights {max(given):g} and {min(given):g}: expected at most "
            f"{MOST_RATIO:,} to 1; give the smaller one 0 or leave it out"
        )


def _is_weights_at_a_step(entry: Any) -> bool:
    if not isinstance(entry, tuple) or len(entry) != 2:
        return False
    step, weights = entry
    whole = isinstance(step, int) and not isinstance(step, bool)
    return whole and isinstance(weights, tuple) and all(map(_is_number, weights))


def _check_train(train: Train, only_scored: bool) -> typing.Iterator[str]:
    """only_scored: a stage of no update, which scores what it starts from."""
    if not only_scored:
        yield from _positive("train", train, "steps")
    yield from _positive("train", train, "batch_size sequence_length log_every eval_every")
    yield from _positive("train", train, "checkpoint_every keep_checkpoints microbatches")
    if train.seed < 0:
        yield f"train.seed = {train.seed}: expected 0 or more"
    if not 0 <= train.z_loss < math.inf:
        yield f"train.z_loss = {train.z_loss}: expected 0 or more"
    if train.microbatches > 0 and train.batch_size % train.microbatches:
        yield (
            f"train.microbatches = {train.microbatches}: does not divide "
            f"train.batch_size = {train.batch_size}"
        )
    if train.peak_tflops is not None:
        yield from _positive("train", train, "peak_tflops")


def _check_optim(optim: Optim) -> typing.Iterator[str]:
    yield from _positive("optim", optim, "learning_rate eps clip_norm")
    yield from _positive("optim.muon", optim.muon, "iterations rms")
    yield from _among("optim.kind", optim.kind, OPTIMIZERS)
    yield from _among("optim.schedule", optim.schedule, SCHEDULES)
    yield from _shares("optim", optim, "b1 b2")
    yield from _shares("optim.muon", optim.muon, "momentum")
    accepted = ("auto", *dispatch.load("newton_schulz").IMPLEMENTATIONS)
    yield from _among("optim.muon.implementation", optim.muon.implementation, accepted)
    if not 0 <= optim.weight_decay < math.inf:
        yield f"optim.weight_decay = {optim.weight_decay}: expected 0 or more"
    for name in ("final_fraction", "decay_fraction"):
        if not 0 <= getattr(optim, name) <= 1:
            yield f"optim.{name} = {getattr(optim, name)}: expected a share from 0 to 1"
    for field in dataclasses.fields(optim.factors):
        value = getattr(optim.factors, field.name)
        if not 0 <= value < math.inf:
            yield f"optim.factors.{field.name} = {value}: expected 0 or more"
    if not any(dataclasses.astuple(optim.factors)):
        yield "optim.factors are all 0: nothing would be trained"


def _check_balance(balance: Balance) -> typing.Iterator[str]:
    yield from check_kind("balance.kind", balance.kind, BALANCERS)
    yield from _positive("balance", balance, "eps integral_limit")
    yield from _shares("balance", balance, "b1 b2 derivative_decay")
    if balance.kind in ("adamw", "sign"):
        yield from _positive("balance", balance, "rate")
    for name in ("kp", "ki", "kd", "aux_loss", "z_loss"):
        if not 0 <= getattr(balance, name) < math.inf:
            yield f"balance.{name} = {getattr(balance, name)}: expected 0 or more"
    if balance.kind == "pid" and balance.kp == balance.ki == balance.kd == 0:
        yield "balance.kp, ki and kd are all 0: expected a gain, or balance.kind = none"


def _check_faults(faults: Faults) -> typing.Iterator[str]:
    yield from _positive("faults", faults, "window limit")
    if faults.spike != 0 and not 1 < faults.spike < math.inf:
        yield f"faults.spike = {faults.spike}: expected more than 1, or 0 to accept any finite step"
    if faults.rollbacks < 0:
        yield f"faults.rollbacks = {faults.rollbacks}: expected 0 or more"


def _check_lora(experiment: Experiment) -> typing.Iterator[str]:
    lora = experiment.lora
    if lora.rank < 0:
        yield f"lora.rank = {lora.rank}: expected a rank, or 0 to train all parameters"
    if lora.rank <= 0:
        return
    yield from _positive("lora", lora, "alpha")
    if experiment.optim.factors.matrix == 0:
        yield "optim.factors.matrix = 0: adapters are in this group; nothing would be trained"
    if not lora.targets:
        yield "lora.targets is empty: expected names among " + ", ".join(LORA_TARGETS)
    for target in lora.targets:
        yield from _among("lora.targets", target, LORA_TARGETS)
    if experiment.train.init_from is None:
        yield f"lora.rank = {lora.rank}: adapters stand on trained weights; set train.init_from"


def check_model(model: Model) -> typing.Iterator[str]:
    """Yields one message for each mistake in a well-typed model section."""
    a, r = model.attention, model.router
    yield from _positive("model", model, "vocab_size hidden_size num_layers expert_width")
    yield from _positive("model", model, "context_length norm_eps init_std")
    yield from _positive("model.attention", a, "heads kv_heads head_dim")
    yield from _positive("model.attention", a, "rope_theta window_rope_theta")
    yield from _positive("model.router", r, "experts top_k width")
    yield from check_kind("model.attention.kind", a.kind, ATTENTION_KINDS)
    yield from check_kind("model.router.kind", r.kind, ROUTER_KINDS)
    yield from _among("model.router.skip", r.skip, SKIP_RULES)
    yield from _among("model.numerics", model.numerics, NUMERICS)
    yield from _among("model.param_dtype", model.param_dtype, DTYPES)
    yield from _among("model.activation_dtype", model.activation_dtype, DTYPES)
    yield from _among("model.layers", model.layers, LAYER_FORMS)
    yield from _among("model.remat", model.remat, REMAT)
    if a.kind in ("cca", "gqa") and a.kv_heads > 0 and a.heads % a.kv_heads:
        yield f"model.attention.heads = {a.heads}: not a multiple of kv_heads = {a.kv_heads}"
    if a.kind == "cca" and (a.kv_heads * a.head_dim) % 2:
        yield (
            f"model.attention.head_dim = {a.head_dim} with kv_heads = {a.kv_heads}: the value is "
            "half current, half delayed, so kv_heads * head_dim must be even"
        )
    rotary = a.head_dim * a.rope_fraction
    if not 0 < a.rope_fraction <= 1 or rotary != int(rotary) or int(rotary) % 2:
        yield (
            f"model.attention.rope_fraction = {a.rope_fraction}: head_dim * rope_fraction must be "
            f"an even whole number of channels (head_dim = {a.head_dim})"
        )
    elif a.kind == "mla" and rotary == a.head_dim:
        yield (
            f"model.attention.rope_fraction = {a.rope_fraction}: mla makes the other channels of a "
            "head from its latent, so at least 1 must be left"
        )
    if len(a.conv_kernels) > 2 or any(not isinstance(k, int) or k < 1 for k in a.conv_kernels):
        yield (
            f"model.attention.conv_kernels = {a.conv_kernels}: expected at most two widths of at "
            "least 1: (depthwise, head-wise), (depthwise,) or ()"
        )
    if a.kind == "mla":
        yield from _positive("model.attention", a, "kv_rank")
        if a.q_rank < 0:
            yield f"model.attention.q_rank = {a.q_rank}: expected a width, or 0 for no latent"
    if r.depth < 0:
        yield f"model.router.depth = {r.depth}: expected a number of hidden layers, 0 or more"
    if not a.pattern:
        yield "model.attention.pattern is empty: expected names among " + ", ".join(SPANS)
    for span in a.pattern:
        yield from _among("model.attention.pattern", span, SPANS)
    if model.num_layers > 0 and a.pattern and model.num_layers % len(a.pattern):
        yield (
            f"model.num_layers = {model.num_layers}: not a multiple of the {len(a.pattern)} "
            "entries of model.attention.pattern"
        )
    if "sliding" in a.pattern and (a.window is None or a.window < 1):
        yield f"model.attention.window = {a.window}: sliding layers need a span of at least 1"
    if not math.isfinite(r.skip_bias):
        yield f"model.router.skip_bias = {r.skip_bias}: expected a finite number"
    for field in dataclasses.fields(Ops):
        accepted = ("auto", *dispatch.load(field.name).IMPLEMENTATIONS)
        yield from _among(f"model.ops.{field.name}", getattr(model.ops, field.name), accepted)
    if r.top_k > r.experts:
        yield f"model.router.top_k = {r.top_k}: more than model.router.experts = {r.experts}"
    if (model.param_dtype == "float64") != (model.activation_dtype == "float64"):
        yield "model.param_dtype and model.activation_dtype: float64 must be chosen for both"
    for name in ("pad_id", "bos_id", "eos_id"):
        if not 0 <= getattr(model, name) < max(model.vocab_size, 1):
            value = getattr(model, name)
            yield f"model.{name} = {value}: outside the vocabulary of {model.vocab_size}"


def _among(field: str, value: Any, accepted: tuple[str, ...]) -> typing.Iterator[str]:
    if not isinstance(value, str):
        yield f"{field} = {value!r}: expected one of {', '.join(accepted)}"
    elif value not in accepted:
        yield f"{field} = {value!r}{hint(value, accepted)}"


def _positive(section: str, node: Any, names: str) -> typing.Iterator[str]:
    for name in names.split():
        if not 0 < getattr(node, name) < math.inf:
            yield f"{section}.{name} = {getattr(node, name)}: expected a positive number"


def _shares(section: str, node: Any, names: str) -> typing.Iterator[str]:
    for name in names.split():
        value = getattr(node, name)
        if not 0 <= value < 1:
            yield f"{section}.{name} = {value}: expected 0 <= {name} < 1"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
