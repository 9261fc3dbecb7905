"""Runs and sweeps as they lie on disk, made of formulas: nothing is trained."""

import dataclasses
import json

import numpy as np

from zaya_jax import config
from zaya_jax.config import Attention, Experiment, Model, Optim, Router, Train
from zaya_jax.config.sweep import Sweep, nested
from zaya_jax.model.functional import bias_declarations
from zaya_jax.sweep import record
from zaya_jax.train import workdir

BASE = Experiment(
    "fake",
    Model(
        vocab_size=64,
        hidden_size=16,
        num_layers=4,
        expert_width=8,
        eos_id=1,
        attention=Attention(heads=2, kv_heads=1, head_dim=8),
        router=Router(experts=8, width=8),
    ),
    train=Train(steps=400, batch_size=2, sequence_length=8),
    optim=Optim(warmup_steps=5),
)


def change(experiment, fields):
    """The experiment with other values at dotted paths."""
    plain = config.to_dict(experiment)
    for path, value in fields.items():
        *sections, name = path.split(".")
        node = plain
        for section in sections:
            node = node[section]
        node[name] = value
    return config.from_dict(plain)


def write_run(folder, experiment, speed=0.02, loss=2.0, until=None, evaluations=10):
    """A run whose loads even out at `speed` a step and whose loss ends near `loss`.

    Args:
      until: the step at which it stopped; its end by default.
    """
    train, model = experiment.train, experiment.model
    layers, experts, seed = model.num_layers, model.router.experts, train.seed
    noise = np.random.default_rng((seed, round(1e6 * speed), round(1e6 * loss)))
    tilt = np.random.default_rng(seed).normal(size=(layers, experts))  # of all arms of a seed
    shift = 0.01 * np.random.default_rng(seed).normal() + 0.002 * noise.normal()
    speed *= 1 + 0.1 * noise.normal()
    every = max(train.steps // 40, 1)
    between = max(train.steps // evaluations, 1)
    lines = []
    for step in range(0, (train.steps if until is None else until) + 1):
        uneven = np.exp(2.5 * tilt * np.exp(-speed * step) + 0.05 * noise.normal(size=tilt.shape))
        load = uneven / uneven.sum(1, keepdims=True)
        bits = loss + shift + (5.5 - loss) * np.exp(-step / (0.15 * train.steps))
        here = {"step": step, "seconds": round(0.05 * step, 3)}
        bias = -0.1 * tilt * (1 - np.exp(-speed * step))
        if step and step % every == 0:
            entropy = -(load * np.log(load)).sum(1) / np.log(experts)
            lines.append(
                here
                | {
                    "loss": bits + 0.05 * noise.normal(),
                    "load_entropy": entropy.tolist(),
                    "max_load": load.max(1).tolist(),
                    "min_load": load.min(1).tolist(),
                    "dead_experts": (load < 0.1 / experts).sum(1).tolist(),
                    "routing_entropy": (1.8 - 0.5 * step / train.steps - 0.1 * np.arange(layers)
                                        / layers).tolist(),
                    "residual_norm": (np.sqrt(1 + np.arange(layers)) * (4 + step / train.steps)
                                      * (1 + 0.03 * noise.normal())).tolist(),
                    "max_bias": bias.max(1).tolist(),
                    "min_bias": bias.min(1).tolist(),
                    "grad_norms": {"matrix": 1 / (1 + step / 50), "vector": 0.1},
                    "update_norms": {"matrix": 0.2, "vector": 0.01},
                    "skipped": int(step > 200),
                    "rollbacks": 0,
                    "tokens_per_second": 900.0,
                }
            )  # fmt: skip
        if step % between == 0:
            rows = np.concatenate([bias, np.full((layers, 1), -1.0)], 1)
            biases = {
                path: rows[np.array(d.layers)].tolist()
                for path, d in bias_declarations(model).items()
            }
            lines.append(
                here
                | {
                    "heldout_bits_per_byte": bits,
                    "heldout_loss": bits,
                    "heldout_load": load.tolist(),
                    "biases": biases,
                }
            )
    folder.mkdir(parents=True)
    workdir.write_json(folder / workdir.CONFIG, config.to_dict(experiment))
    workdir.write_json(folder / workdir.DATA, {"rows_sha256": "abc", "heldout": {"documents": 7}})
    workdir.write_json(folder / workdir.ENVIRONMENT, [environment(f"--workdir={folder.name}")])
    (folder / workdir.METRICS).write_text("".join(json.dumps(line) + "\n" for line in lines))


def environment(arguments):
    """The record of a start, on a machine of nobody."""
    return {
        "time": "2026-01-01T00:00:00+00:00",
        "command": f"python launch.py train --config=experiments/fake.py {arguments}",
        "commit": "0123456789abcdef",
        "python": "3.11.0",
        "versions": {"jax": "0.10.2"},
        "platform": "Linux",
        "processor": "an imagined processor",
        "cores": 2,
        "backend": "cpu",
        "devices": ["cpu"],
    }


def write_sweep(folder, sweep, trials):
    """A sweep's own files; its runs are written apart."""
    folder.mkdir(parents=True, exist_ok=True)
    plain = dataclasses.asdict(sweep)
    workdir.write_json(folder / record.SWEEP, plain)
    start = environment("") | {"command": "python launch.py sweep --config=experiments/fake.py"}
    workdir.write_json(folder / workdir.ENVIRONMENT, [start])
    record.write_trials(folder, trials)


def trial(sweep_folder, sweep, number, name, fields, speed, loss):
    """A complete trial and its runs."""
    values = {}
    for seed in sweep.seeds:
        experiment = change(sweep.base, {**fields, "train.seed": seed})
        run = record.folder_of(sweep_folder, number, seed)
        write_run(run, experiment, speed, loss)
        last = (run / workdir.METRICS).read_text().splitlines()[-1]
        values[str(seed)] = json.loads(last)["heldout_bits_per_byte"]
    overrides = " ".join(f"--config.{path}={value}" for path, value in fields.items())
    return record.Trial(
        number=number,
        name=name,
        state="complete",
        fields=fields,
        values=values,
        value=float(np.mean(list(values.values()))),
        command=f"python launch.py train --config=experiments/fake.py {overrides}".strip(),
        seconds=60.0,
    )


ARMS = {
    "linear": ({"model.router.kind": "linear"}, 0.004, 2.05),
    "mlp": ({"model.router.kind": "mlp"}, 0.02, 2.01),
    "mlp_eda": ({"model.router.kind": "mlp_eda"}, 0.03, 2.0),
}


def write_arms(folder):
    """A sweep of three routers under three seeds, and three trials that came to nothing."""
    sweep = Sweep(
        name="routers",
        about="Does the router's form decide how soon loads are even?",
        file="experiments/fake.py",
        base=BASE,
        arms={name: nested(fields) for name, (fields, _, _) in ARMS.items()},
        measures=("steps_to_balance",),
        claims=(
            ("bits_per_byte", "mlp_eda", "linear", "report, figure 4"),
            ("bits_per_byte", "linear", "mlp", "nobody"),
            ("bits_per_byte", "mlp_eda", "not_there", "nobody"),
        ),
    )
    trials = [
        trial(folder, sweep, number, name, fields, speed, loss)
        for number, (name, (fields, speed, loss)) in enumerate(ARMS.items())
    ]
    trials += [
        record.Trial(3, "broken", "failed", {"model.norm_eps": 0.1}, reason="seed 1: exit code 2"),
        record.Trial(4, "slow", "pruned", {"balance.rate": 1e-5}, {"0": 3.0}, reason="fell behind"),
        record.Trial(5, "odd", "invalid", {"model.hidden_size": 15}, reason="no such model"),
    ]
    write_sweep(folder, sweep, trials)
    return folder


def write_search(folder, count, seeds=(0, 1, 2)):
    """A random search of PID gains and a kind; proportional gains near 0.01 are best."""
    space = {
        "balance": {
            "kp": {"low": 1e-3, "high": 1.0, "log": True},
            "ki": {"low": 0.0, "high": 0.05, "log": False},
        },
        "model": {"router": {"kind": ("mlp", "mlp_eda")}},
    }
    base = change(BASE, {"balance.kind": "pid"})
    sweep = Sweep(
        name="pid gains",
        about="Which gains of the balancer even out the loads soonest, without swinging?",
        file="experiments/fake.py",
        base=base,
        search="random",
        space=space,
        trials=count,
        seeds=seeds,
    )
    drawn = np.random.default_rng(5)
    trials = []
    for number in range(count):
        fields = {
            "balance.kp": float(f"{10 ** drawn.uniform(-3, 0):.3g}"),
            "balance.ki": float(f"{drawn.uniform(0, 0.05):.3g}"),
            "model.router.kind": str(drawn.choice(["mlp", "mlp_eda"])),
        }
        name = " ".join(f"{path}={value}" for path, value in fields.items())
        loss = 2 + 0.02 * (np.log10(fields["balance.kp"]) + 2) ** 2 + 0.2 * fields["balance.ki"]
        trials.append(trial(folder, sweep, number, name, fields, 0.02, loss))
    reason = "the loss was no number at step 30"
    trials.append(record.Trial(count, "", "failed", {"balance.kp": 1.0}, reason=reason))
    write_sweep(folder, sweep, trials)
    return folder
