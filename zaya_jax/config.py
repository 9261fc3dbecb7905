"""The typed schema of an experiment.

An experiment is an `ml_collections.ConfigDict` in `experiments/`, overridden by flags;
`freeze` turns it into the dataclasses below, once, at the boundary. Everything behind the
boundary reads typed, validated, immutable fields. All mistakes are reported together, each with its
field, its value and what would be accepted, before anything is compiled.
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from typing import Any

import ml_collections
from ml_collections import config_dict

from pallas_kernels import dispatch
from zaya_jax.errors import UserError, hint

ATTENTION_KINDS = ("cca", "gqa")
ROUTER_KINDS = ("mlp_eda", "mlp", "linear")
SKIP_RULES = ("zero", "passthrough", "none")
NUMERICS = ("training", "reference")
DTYPES = ("float32", "bfloat16", "float64")
LAYER_FORMS = ("scan", "unroll")
REMAT = ("none", "dots", "full")
SPANS = ("full", "sliding")
SCHEDULES = ("cosine", "constant")
BALANCERS = ("adamw", "none")
BAD_TEXT = ("strict", "skip", "replace")


class ConfigError(UserError):
    """An experiment that cannot be run; the message lists every mistake."""


@dataclasses.dataclass(frozen=True)
class Attention:
    """Compressed convolutional attention (arXiv 2510.04476) or plain GQA."""

    kind: str = "cca"
    heads: int = 8
    kv_heads: int = 2
    head_dim: int = 128
    conv_kernels: tuple[int, ...] = (2, 2)  # (depthwise K0, head-wise K1); (1, 1) mixes no time
    rope_fraction: float = 0.5  # share of each head that is rotated
    rope_theta: float = 5e6
    pattern: tuple[str, ...] = ("full",)  # repeated over the layers: full | sliding
    window: int | None = None  # keys a sliding layer sees, its own included
    window_rope_theta: float = 1e4


@dataclasses.dataclass(frozen=True)
class Router:
    """The ZAYA1 router: down-projection, depth averaging, MLP, biased top-k."""

    kind: str = "mlp_eda"
    experts: int = 16
    top_k: int = 1
    width: int = 256
    skip: str = "zero"  # what the skip class does: zero | passthrough | none (no such class)
    skip_bias: float = -1.0  # its fixed balancing bias; it stays outside the balancer


@dataclasses.dataclass(frozen=True)
class Ops:
    """Implementation of each op, by name; `auto` takes the fastest of the platform."""

    cca_mix: str = "auto"
    attention: str = "auto"
    decode_attention: str = "auto"
    router: str = "auto"
    grouped_matmul: str = "auto"
    residual_norm: str = "auto"
    cross_entropy: str = "auto"


@dataclasses.dataclass(frozen=True)
class Model:
    """The network; the defaults are ZAYA1-8B."""

    vocab_size: int = 262_272
    hidden_size: int = 2048
    num_layers: int = 40
    expert_width: int = 2048
    context_length: int = 131_072  # longest prompt plus answer
    norm_eps: float = 1e-5
    residual_scaling: bool = True
    residual_in_fp32: bool = True
    init_std: float = 0.02
    pad_id: int = 0
    bos_id: int = 2
    eos_id: int = 106
    attention: Attention = Attention()
    router: Router = Router()
    # How it is computed; none of these changes what is computed beyond rounding.
    numerics: str = "training"  # training | reference (the dtype flow of transformers)
    param_dtype: str = "float32"
    activation_dtype: str = "float32"
    layers: str = "scan"  # scan | unroll
    remat: str = "none"  # none | dots | full
    ops: Ops = Ops()


@dataclasses.dataclass(frozen=True)
class Data:
    """Where text comes from; see `zaya_jax.data`."""

    source: str = "stdlib"  # stdlib | a folder, text, JSONL or Parquet file
    text_field: str = "text"
    tokenizer: str | None = None  # a tokenizer.json; None trains a BPE of model.vocab_size
    heldout_fraction: float = 0.02
    heldout_max_bytes: int | None = None
    on_bad_text: str = "strict"
    cache_dir: str = ".cache/data"


@dataclasses.dataclass(frozen=True)
class Train:
    """The loop."""

    steps: int = 1000
    batch_size: int = 16
    sequence_length: int = 512
    seed: int = 0
    log_every: int = 10
    eval_every: int = 250
    checkpoint_every: int = 250
    keep_checkpoints: int = 2
    init_from: str | None = None  # a run, checkpoint or Hugging Face folder to start from


@dataclasses.dataclass(frozen=True)
class Optim:
    """AdamW with decoupled weight decay on matrices only."""

    learning_rate: float = 6e-4
    final_fraction: float = 1 / 3  # of the peak, at the last step (6e-4 -> 2e-4 in the report)
    schedule: str = "cosine"
    warmup_steps: int = 100
    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.1
    clip_norm: float = 1.0


@dataclasses.dataclass(frozen=True)
class Balance:
    """Bias control of the experts' loads (report eq 4 and 5)."""

    kind: str = "adamw"
    rate: float = 1e-3
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8


@dataclasses.dataclass(frozen=True)
class Experiment:
    """One run that a person would name."""

    name: str = "zaya1"
    model: Model = Model()
    data: Data = Data()
    train: Train = Train()
    optim: Optim = Optim()
    balance: Balance = Balance()


# --- The boundary: dataclasses <-> ConfigDict ---


def _accepted_types(annotation: Any) -> tuple[type, ...]:
    if isinstance(annotation, types.UnionType):
        return tuple(typing.get_origin(a) or a for a in typing.get_args(annotation))
    return (typing.get_origin(annotation) or annotation,)


def to_config_dict(experiment: Experiment) -> ml_collections.ConfigDict:
    """The ConfigDict form of an experiment: what `get_config` returns and what flags override."""

    def convert(node: Any) -> ml_collections.ConfigDict:
        config = ml_collections.ConfigDict()
        hints = typing.get_type_hints(type(node))
        for field in dataclasses.fields(node):
            value = getattr(node, field.name)
            if dataclasses.is_dataclass(value):
                config[field.name] = convert(value)
            elif value is None:
                kind = next(t for t in _accepted_types(hints[field.name]) if t is not type(None))
                config[field.name] = config_dict.placeholder(kind)
            else:
                config[field.name] = value
        return config

    return convert(experiment)


def to_dict(experiment: Experiment) -> dict[str, Any]:
    """Plain nested data, e.g. for `config.json`."""
    return dataclasses.asdict(experiment)


def _build(cls: type, data: Any, path: str, problems: list[str]) -> Any:
    if not isinstance(data, Mapping):
        problems.append(f"{path or 'config'} = {data!r}: expected a section with fields")
        return cls()
    hints = typing.get_type_hints(cls)
    names = [field.name for field in dataclasses.fields(cls)]
    values: dict[str, Any] = {}
    for name, value in data.items():
        where = f"{path}.{name}" if path else name
        if name not in names:
            problems.append(f"no field {where!r}{hint(name, names)}")
            continue
        if dataclasses.is_dataclass(hints[name]):
            values[name] = _build(hints[name], value, where, problems)
            continue
        accepted = _accepted_types(hints[name])
        if tuple in accepted and isinstance(value, list):
            value = tuple(value)
        if float in accepted and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if not isinstance(value, accepted) or (isinstance(value, bool) and bool not in accepted):
            kinds = " or ".join("none" if t is type(None) else t.__name__ for t in accepted)
            problems.append(f"{where} = {value!r}: expected {kinds}")
            continue
        values[name] = value
    return cls(**values)


def from_dict(data: Mapping[str, Any]) -> Experiment:
    """Builds and validates an experiment from nested data (a ConfigDict, or a `config.json`).

    Raises:
      ConfigError: unknown fields, wrong types, impossible or contradictory values, all at once.
    """
    problems: list[str] = []
    experiment = _build(Experiment, data, "", problems)
    if not problems:
        problems = list(check(experiment))
    if problems:
        raise ConfigError("the experiment cannot be run:\n  - " + "\n  - ".join(problems))
    return experiment


def freeze(config: ml_collections.ConfigDict) -> Experiment:
    """The typed, validated form of a ConfigDict (see `from_dict`)."""
    return from_dict(config.to_dict())


# --- What can be run ---


def check(experiment: Experiment) -> typing.Iterator[str]:
    """Yields one message for each mistake in a well-typed experiment."""
    yield from check_model(experiment.model)
    train, data, optim = experiment.train, experiment.data, experiment.optim
    attention = experiment.model.attention
    if attention.window is not None and "sliding" not in attention.pattern:
        yield (
            f"model.attention.window = {attention.window}: no layer of model.attention.pattern is "
            "sliding"
        )
    yield from _positive("train", train, "steps batch_size sequence_length log_every eval_every")
    yield from _positive("train", train, "checkpoint_every keep_checkpoints")
    yield from _positive("optim", optim, "learning_rate eps clip_norm")
    yield from _positive("balance", experiment.balance, "eps")
    if train.seed < 0:
        yield f"train.seed = {train.seed}: expected 0 or more"
    if not 0 <= optim.weight_decay < math.inf:
        yield f"optim.weight_decay = {optim.weight_decay}: expected 0 or more"
    if data.heldout_max_bytes is not None and data.heldout_max_bytes < 1:
        yield f"data.heldout_max_bytes = {data.heldout_max_bytes}: expected at least 1, or none"
    yield from _among("optim.schedule", optim.schedule, SCHEDULES)
    yield from _among("balance.kind", experiment.balance.kind, BALANCERS)
    yield from _among("data.on_bad_text", data.on_bad_text, BAD_TEXT)
    if train.sequence_length > experiment.model.context_length:
        yield (
            f"train.sequence_length = {train.sequence_length}: longer than "
            f"model.context_length = {experiment.model.context_length}"
        )
    if not 0 < data.heldout_fraction < 1:
        yield f"data.heldout_fraction = {data.heldout_fraction}: expected a share between 0 and 1"
    if not 0 <= optim.final_fraction <= 1:
        yield f"optim.final_fraction = {optim.final_fraction}: expected a share from 0 to 1"
    for name in ("b1", "b2"):
        for section in ("optim", "balance"):
            value = getattr(getattr(experiment, section), name)
            if not 0 <= value < 1:
                yield f"{section}.{name} = {value}: expected 0 <= {name} < 1"
    if not 0 <= optim.warmup_steps < train.steps:
        yield (
            f"optim.warmup_steps = {optim.warmup_steps}: expected less than "
            f"train.steps = {train.steps}"
        )
    if experiment.balance.kind != "none" and not experiment.balance.rate > 0:
        yield f"balance.rate = {experiment.balance.rate}: expected a positive number"


def check_model(model: Model) -> typing.Iterator[str]:
    """Yields one message for each mistake in a well-typed model section."""
    a, r = model.attention, model.router
    yield from _positive("model", model, "vocab_size hidden_size num_layers expert_width")
    yield from _positive("model", model, "context_length norm_eps init_std")
    yield from _positive("model.attention", a, "heads kv_heads head_dim")
    yield from _positive("model.attention", a, "rope_theta window_rope_theta")
    yield from _positive("model.router", r, "experts top_k width")
    yield from _among("model.attention.kind", a.kind, ATTENTION_KINDS)
    yield from _among("model.router.kind", r.kind, ROUTER_KINDS)
    yield from _among("model.router.skip", r.skip, SKIP_RULES)
    yield from _among("model.numerics", model.numerics, NUMERICS)
    yield from _among("model.param_dtype", model.param_dtype, DTYPES)
    yield from _among("model.activation_dtype", model.activation_dtype, DTYPES)
    yield from _among("model.layers", model.layers, LAYER_FORMS)
    yield from _among("model.remat", model.remat, REMAT)
    if a.kv_heads > 0 and a.heads % a.kv_heads:
        yield f"model.attention.heads = {a.heads}: not a multiple of kv_heads = {a.kv_heads}"
    if (a.kv_heads * a.head_dim) % 2:
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
    if len(a.conv_kernels) != 2 or any(not isinstance(k, int) or k < 1 for k in a.conv_kernels):
        yield f"model.attention.conv_kernels = {a.conv_kernels}: expected two widths of at least 1"
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
