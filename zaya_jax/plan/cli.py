"""Says before a GPU is rented whether a run fits a cluster, what its devices send each other, and
how long a step may take; with --compile, also what the compiler for that cluster says.

Exit status 0 if it fits, 1 if it does not: then what would fit is shown. docs/scale.md has the
formulas, and how near they come.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from typing import Any

from absl import flags

from zaya_jax import options
from zaya_jax.errors import UserError

FLAGS = flags.FLAGS
NODE = 8


def define_flags() -> None:
    """See `zaya_jax.options`."""
    options.config()
    options.mesh()
    flags.DEFINE_string("target", "mi300x", "GPU of the cluster: mi300x, h100")
    flags.DEFINE_integer("nodes", None, "nodes of the cluster; by default what the mesh takes")
    flags.DEFINE_string("hardware", None, "JSON file with fields of zaya_jax.plan.Hardware")
    flags.DEFINE_boolean(
        "search", False, "look for the largest batch and the cheapest remat policy that fit, and "
        "without --mesh for the fastest mesh",
    )  # fmt: skip
    flags.DEFINE_integer("show", 8, "with --search: meshes to show")
    flags.DEFINE_boolean("compile", False, "also compile the step for that cluster")
    flags.DEFINE_string(
        "scaling", None, "instead: draw bytes against devices, from compiled programs, in this SVG"
    )
    options.json()


def main(argv: Sequence[str]) -> int:
    """Prints the plan; 0 if it fits, else 1."""
    del argv
    from zaya_jax.plan import cluster as cluster_of  # not above: `--help` needs no jax

    cluster = cluster_of(FLAGS.target, FLAGS.hardware)
    if FLAGS.scaling is not None:
        from zaya_jax.plan import scaling

        options.write_json(scaling.draw(FLAGS.target, FLAGS.scaling, _say))
        return 0
    return _plan(cluster)


def _plan(cluster: Any) -> int:
    from zaya_jax.config import mesh as line
    from zaya_jax.plan import prediction, words
    from zaya_jax.plan.experiment import experiment_of

    settings = options.require("config")
    if FLAGS.mesh is not None:
        settings.mesh = FLAGS.mesh
    experiment, note = experiment_of(settings)
    if note:
        _say(note)
    taken = line.devices(experiment.mesh)
    devices = taken if FLAGS.nodes is None else FLAGS.nodes * cluster.node
    if FLAGS.nodes is not None and FLAGS.nodes < 1:
        raise UserError(f"--nodes={FLAGS.nodes}: expected at least 1")
    if taken > devices:
        raise UserError(
            f"mesh = {experiment.mesh!r} takes {taken} devices; --nodes={FLAGS.nodes} has {devices}"
        )
    record: dict[str, Any] = {}
    if FLAGS.search:
        experiment = _search(experiment, cluster, devices, record)
        if experiment is None:
            options.write_json({"ok": False, **record})
            return 1
    found = prediction.plan(experiment, cluster)
    print("\n".join(words.lines(found)))
    record["plan"] = prediction.to_json(found)
    fits = found.fits
    if FLAGS.compile:
        fits = _compile(found, record)
    if not fits and not FLAGS.search:
        _what_would_fit(experiment, cluster, devices)
    options.write_json({"ok": fits, **record})
    return 0 if fits else 1


def _search(experiment: Any, cluster: Any, devices: int, record: dict[str, Any]) -> Any:
    """Prints the table of meshes (or of policies on the given mesh); returns the best one's
    experiment, or None."""
    from zaya_jax.plan import prediction, search, words

    if FLAGS.mesh is None:
        found = search.best(experiment, cluster, devices, _progress)
        record["meshes"] = [prediction.to_json(one) for one in found]
        if not found:
            print(
                f"nothing fits: no mesh of {devices} devices, under no policy, as the plan has it"
            )
            return None
        print(words.table(found[: FLAGS.show], f"meshes of {devices} devices, the fastest first"))
        experiment = found[0].case.experiment
    table = search.policies(experiment, cluster)
    largest = {policy: one for policy, one in table.items() if one is not None}
    record["largest"] = {policy: prediction.to_json(one) for policy, one in largest.items()}
    mesh = experiment.mesh or "one device"
    print(words.table(largest.values(), f"largest microbatch of each policy on {mesh}"))
    if not largest:
        print("  none: not even one row a device fits")
        return None
    chosen = search.cheapest(experiment, cluster)
    if chosen is None:
        print("the config's own batch does not fit; the largest that does:\n")
        chosen = max(largest.values(), key=lambda one: one.tokens_per_second)
    return chosen.case.experiment


def _what_would_fit(experiment: Any, cluster: Any, devices: int) -> None:
    from zaya_jax.plan import search, words

    found = search.best(experiment, cluster, devices, _progress)
    if not found:
        print(f"\nnothing fits on {devices} devices, in no layout and under no policy")
        more = search.smallest(experiment, cluster, 2 * devices)
        found = [] if more is None else [more]
    if not found:
        print("nor on more of them: the batch or the context is too large for what they hold")
        return
    one = found[0].case
    print("\n" + words.table(found[:3], f"what would fit on {one.devices} devices"))
    print(
        f"  --mesh={one.mesh} --config.model.remat={one.experiment.model.remat} "
        f"--config.train.microbatches={one.microbatches}"
    )


def _compile(found: Any, record: dict[str, Any]) -> bool:
    """Compiles, and prints what came out beside what was predicted; whether it fits."""
    from zaya_jax.plan import compiled, words

    case, target = found.case, FLAGS.target

    def progress(seconds: float) -> None:
        if sys.stderr.isatty():
            print(f"\rcompiling for {target}: {seconds:.0f} s", end="", file=sys.stderr, flush=True)

    _say(f"\ncompiling for {case.devices:,} x {target}, on this machine's CPUs; it takes minutes")
    result = compiled.compile_case(case, found.messages, target, progress)
    record["compiled"] = dataclasses.asdict(result)
    print("\n".join(words.beside(found, result)))
    return not result.error and result.total <= found.hardware.limit


def _progress(done: int, of: int) -> None:
    if sys.stderr.isatty() and (done % 10 == 0 or done == of):
        end = "\n" if done == of else ""
        print(f"\rlooked at {done} of {of} meshes", end=end, file=sys.stderr, flush=True)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
