"""The fields of an experiment, their defaults, and the names that some of them take.

Those of attention kinds, router kinds and balancers are in `zaya_jax.config.kinds`.
"""

from __future__ import annotations

import dataclasses

from zaya_jax.config.rl import RL, Preference

SKIP_RULES = ("zero", "passthrough", "none")
NUMERICS = ("training", "reference")
DTYPES = ("float32", "bfloat16", "float64")
LAYER_FORMS = ("scan", "unroll")
REMAT = ("none", "dots", "full")
SPANS = ("full", "sliding")
OPTIMIZERS = ("adamw", "muon")
SCHEDULES = ("cosine", "wsd", "constant")
BAD_TEXT = ("strict", "skip", "replace")
BAD_RECORDS = ("fail", "skip")
FORMATS = ("auto", "text", "chat")
PACKINGS = ("stream", "best_fit")
LORA_TARGETS = ("q", "k", "v", "o", "experts")
ALL_TO_ALL = ("auto", "ragged", "padded")


@dataclasses.dataclass(frozen=True)
class Attention:
    """Compressed convolutional attention (arXiv 2510.04476), or what it is compared with."""

    kind: str = "cca"  # cca | gqa | mha | mla, or module:Class (docs/extending.md)
    heads: int = 8
    kv_heads: int = 2  # of cca and gqa; mha and mla have one a query head
    head_dim: int = 128
    conv_kernels: tuple[int, ...] = (2, 2)  # of cca: (depthwise K0, head-wise K1), (K0,) or ()
    qk_mean: bool = True  # of cca: the mean of q and k joins the convolved latents
    value_shift: bool = True  # of cca: half of each value is the token's before
    kv_rank: int = 512  # of mla: width of the latent that keys and values are made from
    q_rank: int = 0  # of mla: width of the queries' latent; 0 makes them of the input itself
    rope_fraction: float = 0.5  # share of each head that is rotated
    rope_theta: float = 5e6
    pattern: tuple[str, ...] = ("full",)  # repeated over the layers: full | sliding
    window: int | None = None  # keys a sliding layer sees, its own included
    window_rope_theta: float = 1e4


@dataclasses.dataclass(frozen=True)
class Router:
    """The ZAYA1 router: down-projection, depth averaging, MLP, biased top-k."""

    kind: str = "mlp_eda"  # mlp_eda | mlp | linear, or module:function
    experts: int = 16
    top_k: int = 1
    width: int = 256
    depth: int = 2  # hidden layers of the MLP
    skip: str = "zero"  # what the skip class does: zero | passthrough | none (no such class)
    skip_bias: float = -1.0  # its fixed balancing bias; it stays outside the balancer


@dataclasses.dataclass(frozen=True)
class Ops:
    """Implementation of each op, by name; `auto` takes the fastest of the platform."""

    projections: str = "auto"  # of a token that is decoded; else they are one matmul of XLA's
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
    """Where text comes from and how it becomes rows; see `zaya_jax.data`."""

    # stdlib | stdlib-chat | stdlib-docs | recall | a folder, text, JSONL, Parquet or prepared data
    # | package.module:function, whose records are always the same
    source: str = "stdlib"
    mixture: tuple[tuple[str, float], ...] = ()  # ((source, weight), ...) instead of `source`
    # From these steps on, the sources of `mixture` have other weights: ((step, (weight, ...)), ...)
    mixture_schedule: tuple[tuple[int, tuple[float, ...]], ...] = ()
    format: str = "auto"  # auto (by the file's fields) | text | chat
    text_field: str = "text"
    messages_field: str = "messages"
    packing: str = "stream"  # stream (cut every S tokens) | best_fit (whole examples, trimmed)
    tokenizer: str | None = None  # a tokenizer.json; None trains a BPE of model.vocab_size
    chat_template: str | None = None  # a Jinja file; None takes the tokenizer's, else ours
    heldout_fraction: float = 0.02
    heldout_max_bytes: int | None = None
    on_bad_text: str = "strict"  # bytes that are not UTF-8: strict | skip | replace
    on_bad_record: str = "fail"  # a record that is malformed: fail | skip (and count)
    cache_dir: str = ".cache/data"


@dataclasses.dataclass(frozen=True)
class Train:
    """The loop."""

    steps: int = 1000
    batch_size: int = 16  # rows of an optimizer step
    microbatches: int = 1  # parts of it whose gradients are accumulated
    sequence_length: int = 512
    seed: int = 0
    z_loss: float = 0.0  # weight of the mean of log^2 Z of the logits (PaLM); off in ZAYA1
    log_every: int = 10
    log_loads: bool = False  # of every expert, in each training line: L x E numbers
    eval_every: int = 250
    checkpoint_every: int = 250
    keep_checkpoints: int = 2
    init_from: str | None = None  # a run, checkpoint or Hugging Face folder to start from
    peak_tflops: float | None = None  # of the device, for MFU; None takes a known device's
    wandb: str | None = None  # project to log to as well; needs the wandb package


@dataclasses.dataclass(frozen=True)
class Faults:
    """Steps that are not taken: no numbers, or a spike of the gradient's norm."""

    spike: float = 10.0  # times the mean norm of accepted steps; 0 accepts any finite step
    window: int = 50  # accepted steps that the mean remembers, and before which none is a spike
    limit: int = 5  # steps refused in a row after which the run goes back to a checkpoint
    rollbacks: int = 3  # times that it does so before it gives up


@dataclasses.dataclass(frozen=True)
class Muon:
    """Momentum, orthogonalised by Newton-Schulz (report Table III); for `optim.kind = muon`."""

    momentum: float = 0.95  # 0: no momentum, and no buffer for it
    nesterov: bool = True
    iterations: int = 5
    rms: float = 0.2  # size of an update's elements: rms * sqrt(max(m, n)) times orthogonal
    split_gate_up: bool = False  # orthogonalise the experts' gate and up matrices apart
    bfloat16_products: bool = False  # of Newton-Schulz: 8 times faster on a GPU, rounds 2^-9
    implementation: str = "auto"  # of the op newton_schulz


@dataclasses.dataclass(frozen=True)
class Factors:
    """Learning rate of each group of parameters, as a multiple of `optim.learning_rate`."""

    matrix: float = 1.0
    embedding: float = 1.0
    convolution: float = 1.0
    vector: float = 1.0


@dataclasses.dataclass(frozen=True)
class Optim:
    """What moves the parameters: AdamW for all, or Muon for matrices and AdamW for the rest."""

    kind: str = "adamw"  # adamw | muon
    learning_rate: float = 6e-4
    final_fraction: float = 1 / 3  # of the peak, at the last step (6e-4 -> 2e-4 in the report)
    schedule: str = "cosine"  # cosine | wsd | constant, after the warm-up
    warmup_steps: int = 100
    decay_fraction: float = 0.2  # last share of the steps, in which wsd falls linearly
    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.1  # decoupled, on matrices only
    clip_norm: float = 1.0
    factors: Factors = Factors()
    muon: Muon = Muon()


@dataclasses.dataclass(frozen=True)
class Balance:
    """Bias control of the experts' loads (report eq 4 and 5), and losses that balance."""

    kind: str = "adamw"  # adamw | pid | sign | none, or module:function
    rate: float = 1e-3  # of adamw and sign
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    kp: float = 0.0  # of pid: proportional (it makes loads swing),
    ki: float = 0.005  # integral
    kd: float = 0.0  # and derivative gain
    integral_limit: float = 1.0  # largest |integral term|, in units of probability (anti-windup)
    derivative_decay: float = 0.9  # of the filter on the derivative; 0 does not filter
    aux_loss: float = 0.0  # weight of the load-balancing loss; off in ZAYA1
    z_loss: float = 0.0  # weight of the router's z-loss; off in ZAYA1


@dataclasses.dataclass(frozen=True)
class Lora:
    """Low-rank adapters (arXiv 2106.09685) instead of full fine-tuning."""

    rank: int = 0  # 0: all parameters are trained
    alpha: float = 16.0  # the adapter's product is scaled by alpha / rank
    targets: tuple[str, ...] = ("q", "k", "v", "o")  # v: both halves; also: experts


@dataclasses.dataclass(frozen=True)
class Parallel:
    """How the devices of a mesh work together; changes nothing that is computed beyond rounding."""

    all_to_all: str = "auto"  # of tokens to experts: ragged (GPUs) | padded; auto by the platform
    room: float = 1.25  # rows of one exchange, as a multiple of an even share; more take turns


@dataclasses.dataclass(frozen=True)
class Experiment:
    """One run that a person would name."""

    name: str = "zaya1"
    model: Model = Model()
    data: Data = Data()
    train: Train = Train()
    optim: Optim = Optim()
    balance: Balance = Balance()
    faults: Faults = Faults()
    lora: Lora = Lora()
    mesh: str = ""  # devices by axis, e.g. data=4,expert=2; also fsdp, context. Empty: one device
    parallel: Parallel = Parallel()
    rl: RL = RL()
    preference: Preference = Preference()
