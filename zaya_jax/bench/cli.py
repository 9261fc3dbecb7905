"""`launch.py bench`: speed, serving or bfloat16 drift beside transformers, Muon beside optax;
quantized forms of a run beside the run itself, and what fits where; what Markovian RSA carries; a
checkpoint saved on one mesh and restored on another."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import platform
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from absl import flags

from zaya_jax import config, options
from zaya_jax.errors import UserError

FLAGS = flags.FLAGS
WHAT = ("prefill", "train", "decode", "drift", "muon")


def define_flags() -> None:
    """Options of the verb."""
    options.config("experiments/bench.py")
    options.json()
    options.seed()
    suites = ["speed", "serving", "quantization", "rsa", "reshape"]
    flags.DEFINE_enum("suite", "speed", suites, "what to measure; speed is told more by --what")
    flags.DEFINE_string("model", None, "run to quantize; random weights of --config by default")
    flags.DEFINE_enum("against", "transformers", ["transformers"], "the peer")
    flags.DEFINE_list("what", ["prefill", "train", "decode"], f"among {', '.join(WHAT)}")
    flags.DEFINE_integer("pairs", 7, "measurements of each side, taken in turns", lower_bound=1)
    flags.DEFINE_list("batches", ["1", "8", "32"], "batch sizes of decode")
    flags.DEFINE_list("clients", ["1", "4", "8", "16", "32"], "concurrencies of serving")
    flags.DEFINE_string("plot", None, "file for the figure of serving or rsa, .svg or .png")
    flags.DEFINE_integer("experts", 16, "experts of a layer that muon is timed on", lower_bound=1)


def main(argv: Sequence[str]) -> int | None:
    """Prints the tables; see `speed`, `serving`, `drift` and `muon`."""
    if FLAGS.suite == "serving":
        _serving()
        return None
    if FLAGS.suite == "quantization":
        _quantization()
        return None
    if FLAGS.suite == "rsa":
        _rsa()
        return None
    if FLAGS.suite == "reshape":
        return _reshape()
    unknown = set(FLAGS.what) - set(WHAT)
    if unknown:
        raise UserError(f"--what={','.join(sorted(unknown))}: accepted: {', '.join(WHAT)}")
    speed = {"prefill", "train", "decode"} & set(FLAGS.what)
    versions = _peers(["torch", "transformers"] if set(FLAGS.what) - {"muon"} else ["optax"])
    batches = _numbers("batches")
    model = config.freeze(FLAGS.config).model
    if speed:
        _check_comparable(model)
    record: dict[str, Any] = {"machine": _machine(), "model": dataclasses.asdict(model)}
    record["versions"] = versions
    print(f"machine: {record['machine']}")
    print("peer: " + ", ".join(f"{name} {version}" for name, version in versions.items()))
    if speed:
        record["speed"] = _speed(model, batches)
    if "drift" in FLAGS.what:
        record["drift"] = _drift(model)
    if "muon" in FLAGS.what:
        record["muon"] = _muon(model)
    options.write_json(record)
    return 0


def _peers(names: Sequence[str]) -> dict[str, str]:
    """The versions of the peers.

    Raises:
      UserError: one is not installed.
    """
    try:
        return {name: importlib.import_module(name).__version__ for name in names}
    except ImportError as error:
        raise UserError(
            f"bench needs the peer: {error}; install it with pip install -r requirements-dev.txt"
        ) from error


def _numbers(flag: str) -> list[int]:
    """The whole numbers above 0 of a list flag."""
    texts: list[str] = FLAGS[flag].value or []
    if not texts or not all(text.strip().isdigit() and int(text) > 0 for text in texts):
        raise UserError(f"--{flag}={','.join(texts)}: expected whole numbers above 0")
    return [int(text) for text in texts]


def _serving() -> None:
    clients = _numbers("clients")
    plot = _figure()
    versions = _peers(["torch", "transformers"])
    model = config.freeze(FLAGS.config).model
    _check_comparable(model)

    from zaya_jax.bench import serving

    record: dict[str, Any] = {"machine": _machine(), "versions": versions}
    print(f"machine: {record['machine']}")
    lines, prefix, compiled = serving.measure(model, FLAGS.seed, clients, FLAGS.pairs)
    print(serving.show(lines, prefix, compiled))
    if plot is not None:
        serving.plot(lines, plot)
    record |= {
        "lines": [dataclasses.asdict(line) for line in lines],
        "prefix": dataclasses.asdict(prefix),
        "compiled_after_warm_up": compiled,
    }
    options.write_json(record)


def _figure() -> Path | None:
    plot = None if FLAGS.plot is None else Path(FLAGS.plot)
    if plot is not None and plot.suffix not in (".svg", ".png"):
        raise UserError(f"--plot={plot}: expected a file that ends in .svg or .png")
    return plot


def _rsa() -> None:
    plot = _figure()
    from zaya_jax.bench import rsa

    record: dict[str, Any] = {"machine": _machine()}
    print(f"machine: {record['machine']}")
    rows = rsa.measure(config.freeze(FLAGS.config).model, FLAGS.seed)
    print(rsa.show(rows))
    if plot is not None:
        rsa.plot(rows, plot)
    options.write_json(record | {"rows": [dataclasses.asdict(row) for row in rows]})


def _reshape() -> int:
    from zaya_jax.bench import reshape

    record: dict[str, Any] = {"machine": _machine()}
    print(f"machine: {record['machine']}")
    sides = reshape.measure(config.freeze(FLAGS.config))
    print(reshape.table(sides))
    options.write_json(record | {"sides": [dataclasses.asdict(side) for side in sides]})
    return int(any(side.wrong for side in sides))


def _quantization() -> None:
    from zaya_jax.bench import fits, quantization

    model = config.freeze(FLAGS.config).model if FLAGS.model is None else None
    record: dict[str, Any] = {"machine": _machine(), "model": FLAGS.model}
    print(f"machine: {record['machine']}")
    rows, left_out = quantization.measure(FLAGS.model, model, FLAGS.seed, FLAGS.pairs)
    print(quantization.show(rows, left_out))
    fitting = fits.rows()
    print(
        "\ntokens of context, of all sequences together, that fit beside the weights and "
        f"{fits.RESERVE:g} GiB for the rest, with a cache in bfloat16 / in int8:"
    )
    print(fits.show(fitting))
    record |= {
        "rows": quantization.as_json(rows),
        "left_out": left_out,
        "fits": [dataclasses.asdict(row) for row in fitting],
    }
    options.write_json(record)


def _check_comparable(model: config.Model) -> None:
    """The peer runs on the CPU in float32; beside anything else, its times would mean nothing."""
    import jax

    if jax.default_backend() != "cpu":
        raise UserError(
            f"bench compares on the CPU, and jax runs on {jax.default_backend()}: "
            "set JAX_PLATFORMS=cpu"
        )
    for name in ("param_dtype", "activation_dtype"):
        if getattr(model, name) != "float32":
            raise UserError(f"model.{name} = {getattr(model, name)}: bench compares in float32")


def _machine() -> dict[str, Any]:
    import jax

    from zaya_jax.train.workdir import environment

    return {
        **environment(),
        "device": jax.devices()[0].device_kind,
        "system": platform.platform(terse=True),
    }


def _speed(model: config.Model, batches: Sequence[int]) -> dict[str, Any]:
    from zaya_jax.bench.speed import Bench, Measurement

    bench = Bench(model, FLAGS.seed, FLAGS.pairs)
    print(
        f"floors: matmul {bench.matmul_peak / 1e9:.0f} GFLOP/s, "
        f"memory {bench.bandwidth / 1e9:.1f} GB/s; logits agree to {bench.gap:.1e}\n"
    )
    print(
        f"{'':<18}{'ours tok/s':>12}{'peer tok/s':>12}{'ratio':>8}{'spread':>14}"
        f"{'of floor':>10}  peer's experts"
    )
    rows = []
    runs: list[Callable[[], Measurement]] = []
    if "prefill" in FLAGS.what:
        runs.append(bench.prefill)
    if "train" in FLAGS.what:
        runs.append(bench.train)
    if "decode" in FLAGS.what:
        runs += [functools.partial(bench.decode, n) for n in batches]
    for run in runs:
        m = run()
        spread = f"{m.spread[0]:.2f}-{m.spread[1]:.2f}"
        print(
            f"{m.name:<18}{m.ours:>12,.0f}{m.theirs:>12,.0f}{m.ratio:>7.2f}x{spread:>14}"
            f"{m.share:>9.0%}   {m.peer_experts}",
            flush=True,
        )
        rows.append(dataclasses.asdict(m))
    print(f"\nmedians of {FLAGS.pairs} pairs taken in turns; the ratio is the median over pairs.")
    print("of floor: share of the matmul peak (prefill, train) or memory bandwidth (decode).")
    return {"matmul_flops": bench.matmul_peak, "bytes_per_s": bench.bandwidth, "rows": rows}


def _drift(model: config.Model) -> list[dict[str, float]]:
    from zaya_jax.bench.drift import measure

    rows = measure(model, seed=FLAGS.seed)
    print("\nbfloat16 drift of the residual stream, RMS relative to float32")
    print("| layer | reference | training | transformers | reference against transformers | "
          "routes changed, reference | training | transformers |")  # fmt: skip
    print("|---|---|---|---|---|---|---|---|")
    for r in rows:
        print(
            f"| {r.layer} | {r.reference:.2e} | {r.training:.2e} | {r.transformers:.2e} | "
            f"{r.between:.2e} | {r.routes_reference:.1%} | {r.routes_training:.1%} | "
            f"{r.routes_transformers:.1%} |"
        )
    return [dataclasses.asdict(r) for r in rows]


def _muon(model: config.Model) -> dict[str, Any]:
    from zaya_jax.bench import muon

    rows, peak = muon.measure(model, FLAGS.experts, FLAGS.pairs, FLAGS.seed)
    print(muon.show(rows, peak))
    return {"matmul_flops": peak, "rows": [dataclasses.asdict(row) for row in rows]}
