"""The process that compiles: `python -m zaya_jax.aot.worker TARGET FOLDER`.

It reads jobs from standard input, one a line, and answers each with a report, one a line, both in
JSON. It alone uses jax's private hooks and loads stand-ins for ROCm; if a compiler brings it down,
nothing else falls. `--check` instead of a folder prints which wheels are missing.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import numpy as np

from zaya_jax.aot import machine_code, wheels
from zaya_jax.aot.program import Job, arrays_only, load
from zaya_jax.aot.report import Launch, Memory, Report, to_json
from zaya_jax.aot.targets import Target, target_of

# What is worth telling of a compiler's chatter.
WARNINGS = ("Involuntary full rematerialization", "spill", "wgmma")


def main(arguments: list[str]) -> int:
    target = target_of(arguments[0])
    if arguments[1:] == ["--check"]:
        print(", ".join(wheels.missing(target)))
        return 0
    folder = Path(arguments[1])
    # What compilers and programs print goes to the log; reports alone go to standard output.
    answers = os.fdopen(os.dup(1), "w")
    log = os.open(folder / "log.txt", os.O_RDWR | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    prepare(target, folder)
    session = Session(target, folder)
    for line in sys.stdin:
        os.truncate(log, 0)
        report = session.compile(Job(**json.loads(line)))
        answers.write(json.dumps(to_json(report)) + "\n")
        answers.flush()
    return 0


def prepare(target: Target, folder: Path) -> None:
    """What must be set before jax looks for its backends."""
    from zaya_jax import platform

    os.environ["TMPDIR"] = str(folder / "objects")
    # As `launch.py` sets it on a GPU, where the user does not: else float32 steps would be TF32.
    precision = "JAX_DEFAULT_MATMUL_PRECISION"
    os.environ.setdefault(precision, platform.GPU_ENVIRONMENT[precision])
    if target.platform == "rocm":
        from zaya_jax.aot import stand_ins

        # The code objects are left in TMPDIR, where we read them.
        os.environ["TF_ROCM_KEEP_XLA_TEMPFILES"] = "1"
        os.environ["XLA_FLAGS"] = platform.rocm_preset({})["XLA_FLAGS"]
        if not stand_ins.real_rocm():
            stand_ins.preload(wheels.CACHE)
        from jax._src import hardware_utils

        # The plugin refuses to register where it sees no GPU; to compile it needs none.
        hardware_utils.num_available_amd_gpus = lambda stop_at=None: 1
    else:
        os.environ.pop("XLA_FLAGS", None)
    import jax

    # A cached program would leave nothing to read.
    jax.config.update("jax_enable_compilation_cache", False)


class Session:
    """Compiles job after job for one target; compilers leave their files in `folder`."""

    def __init__(self, target: Target, folder: Path):
        self.target, self.folder = target, folder
        self.dump = folder / "dump"
        (folder / "objects").mkdir(exist_ok=True)
        self.objects = machine_code.AmdObjects(folder / "objects")

    def compile(self, job: Job) -> Report:
        """Compiles one job; what goes wrong becomes the report's `error`."""
        import jax

        from pallas_kernels import dispatch

        shutil.rmtree(self.dump, ignore_errors=True)
        self.dump.mkdir()
        try:
            with dispatch.compiling_for(self.target.platform):
                return self._compile(job)
        except Exception as error:  # the compiler's refusal is a finding, not a failure of ours
            self.objects.of(self.dump)  # what was compiled until then will not be left again
            message = " ".join(f"{type(error).__name__}: {error}".split())
            if not isinstance(error, jax.errors.JaxRuntimeError):
                place = traceback.extract_tb(error.__traceback__)[-1]
                message += f" ({Path(place.filename).name}:{place.lineno})"
            versions = wheels.versions(self.target)
            return Report(self.target.name, job.devices, error=message, versions=versions)

    def _compile(self, job: Job) -> Report:
        import jax
        from jax.experimental import topologies

        began = time.monotonic()
        topology = topologies.get_topology_desc(
            platform=self.target.platform,
            target_config=self.target.description(),
            topology=job.topology,
        )
        build = load(job.function)
        default: Any
        if job.mesh is None:
            program = build(**job.arguments)
            default = jax.sharding.SingleDeviceSharding(topology.devices[0])
        else:
            devices = np.array(topology.devices).reshape(tuple(job.mesh.values()))
            mesh = jax.sharding.Mesh(devices, tuple(job.mesh))
            program = build(mesh=mesh, **job.arguments)
            default = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
        call, arrays = arrays_only(program)
        shapes = jax.tree.map(lambda array: _shape(array, default), arrays)
        lowered = jax.jit(call, donate_argnums=program.donate).lower(*shapes)
        options = {"xla_dump_to": str(self.dump), "xla_dump_hlo_as_text": True}
        compiled = lowered.compile(compiler_options=options)
        seconds = time.monotonic() - began
        launches = _launches(call, arrays, self.target.platform) if job.want_kernels else ()
        return self._report(job, compiled, launches, seconds)

    def _report(
        self, job: Job, compiled: Any, launches: tuple[Launch, ...], seconds: float
    ) -> Report:
        planned = compiled.memory_analysis()
        hlo = compiled.as_text()
        lists = (path.read_text() for path in self.dump.glob("*thunk_sequence.txt"))
        launched, steps = machine_code.steps_of("\n".join(lists))
        said = (self.folder / "log.txt").read_text(errors="replace").splitlines()
        warnings = [line.strip() for line in said if any(word in line for word in WARNINGS)]
        if self.target.platform == "rocm":
            kernels = list(machine_code.amd_kernels(self.objects.of(self.dump), launched))
        else:
            architecture = self.target.architecture
            kernels, told = machine_code.nvidia_kernels(self.dump, launched, architecture)
            warnings += told
        return Report(
            target=self.target.name,
            devices=job.devices,
            seconds=round(seconds, 3),
            memory=Memory(
                arguments=planned.argument_size_in_bytes,
                outputs=planned.output_size_in_bytes,
                temporaries=planned.temp_size_in_bytes,
                aliased=planned.alias_size_in_bytes,
            ),
            kernels=tuple(kernels),
            launches=launches,
            steps=steps,
            other_bytes=machine_code.other_bytes_of(hlo),
            collectives=machine_code.collectives_of(hlo),
            warnings=tuple(dict.fromkeys(warnings)),
            hlo=hlo if job.want_hlo else "",
            versions=wheels.versions(self.target),
        )


def _shape(array: Any, default: Any) -> Any:
    import jax

    own = array.sharding if isinstance(array, jax.ShapeDtypeStruct) else None
    return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=own or default)


def _launches(call: Any, arrays: tuple[list, ...], platform: str) -> tuple[Launch, ...]:
    """The Pallas kernels of a program, counted."""
    import jax

    from zaya_jax.aot import launches

    leaves = jax.tree.leaves(arrays)
    jaxpr = jax.make_jaxpr(call)(*(jax.tree.map(lambda a: _shape(a, None), arrays)))
    known = [
        None if isinstance(leaf, jax.ShapeDtypeStruct) else np.asarray(leaf) for leaf in leaves
    ]
    _, calls = launches.follow(jaxpr.jaxpr, jaxpr.consts, known)
    return tuple(launches.counted(call, platform) for call in calls)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
