"""The same kernels through the `triton` wheel: another compiler's view of registers and spills.

    python -m zaya_jax.aot.second_opinion TARGET FOLDER

reads questions (TTIR and settings) from standard input, one a line, and answers each with one line,
in JSON. A process of its own: two LLVMs in one do not get on.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from zaya_jax.aot import machine_code, wheels
from zaya_jax.aot.process import Fallen, Helper
from zaya_jax.aot.report import Kernel, Launch
from zaya_jax.aot.targets import Target, target_of

TIMEOUT = 300.0  # seconds


class SecondOpinion(contextlib.AbstractContextManager):
    """The triton wheel of the compiling interpreter, for one target."""

    def __init__(self, target: Target, python: str | None = None):
        python = python or wheels.interpreter()
        self._helper = Helper(python, "zaya_jax.aot.second_opinion", [target.name])
        self._stopped = False

    def __exit__(self, *exception: object) -> None:
        self._helper.close()

    def stop(self) -> None:
        """From another thread: what is being compiled falls, and nothing begins."""
        self._stopped = True
        self._helper.kill()

    def of(self, launch: Launch) -> Kernel | str:
        """The kernel as triton compiles it, or why it does not."""
        if self._stopped:
            return "stopped"
        question = {"ttir": launch.ttir, "warps": launch.warps, "stages": launch.stages}
        try:
            answer = self._helper.ask(question, TIMEOUT)
        except Fallen as reason:
            return str(reason)
        return answer["error"] if "error" in answer else Kernel(**answer)


def main(arguments: list[str]) -> int:
    target, folder = target_of(arguments[0]), Path(arguments[1])
    answers = os.fdopen(os.dup(1), "w")
    log = os.open(folder / "log.txt", os.O_RDWR | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.environ["TRITON_CACHE_DIR"] = str(folder / "cache")
    for line in sys.stdin:
        question = json.loads(line)
        try:
            answer = compiled(question, target, folder)
        except Exception as error:  # a refusal is the opinion
            answer = {"error": " ".join(f"{type(error).__name__}: {error}".split())}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
    return 0


def compiled(question: dict[str, Any], target: Target, folder: Path) -> dict[str, Any]:
    """One kernel as fields of a `Kernel`."""
    import triton
    from triton.backends.compiler import GPUTarget

    path = folder / "kernel.ttir"
    path.write_text(question["ttir"])
    amd = target.platform == "rocm"
    gpu = GPUTarget("hip", target.architecture, 64) if amd else GPUTarget("cuda", 90, 32)
    options = {"num_warps": question["warps"], "num_stages": question["stages"]}
    kernel = triton.compile(str(path), target=gpu, options=options)
    facts: dict[str, Any]
    if amd:
        [notes] = machine_code.code_object_notes(kernel.asm["hsaco"])
        [own] = notes["amdhsa.kernels"]
        facts = {
            "registers": own[".vgpr_count"],
            "spills": own[".vgpr_spill_count"] + own[".sgpr_spill_count"],
            "scratch": own[".private_segment_fixed_size"],
            "matrix": Counter(re.findall(r"\bv_(s?mfma_\w+)", kernel.asm["amdgcn"])),
        }
    else:
        ptx = folder / "kernel.ptx"
        ptx.write_text(kernel.asm["ptx"])
        assembler = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "ptxas"
        [usage] = machine_code.usage_of(
            machine_code.assemble(ptx, target.architecture, str(assembler))
        )
        facts = {
            "registers": usage.registers,
            "spills": usage.spills,
            "scratch": usage.stack,
            "matrix": machine_code.matrix_of_ptx(kernel.asm["ptx"]),
        }
    return {
        "name": kernel.metadata.name,
        "shared": kernel.metadata.shared,
        "threads": kernel.metadata.num_warps * target.warp,
        "grid": None,
        "launches": 0,
        **facts,
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
