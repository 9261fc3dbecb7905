"""What the compilers left on disk, read: AMD code objects, PTX, XLA's list of steps, HLO text."""

from __future__ import annotations

import dataclasses
import importlib.util
import re
import shutil
import struct
import subprocess
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgpack

from zaya_jax.aot.report import Kernel

COLLECTIVES = (
    "all-gather",
    "all-reduce",
    "all-to-all",
    "collective-permute",
    "ragged-all-to-all",
    "reduce-scatter",
)
NO_WORK = ("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while")
PALLAS = 'custom_call_target="__gpu$xla.gpu.triton"'
MATMUL = 'custom_call_target="__cublas'  # of hipBLASLt too
WORKSPACE = re.compile(r", s8\[\d+\]\{0\}\)$")
ITEM_BITS = re.compile(r"(?:[a-z]+?)(\d+)")


@dataclasses.dataclass(frozen=True)
class Step:
    """Where XLA's program launches a kernel: the grid, threads and bytes of dynamic memory."""

    grid: tuple[int, ...]
    threads: int
    shared: int


AMD_ENTRY = r"^define amdgpu_kernel void @([\w.$]+)\("


class AmdObjects:
    """The code objects that XLA leaves in a folder, found again where XLA does not remake them.

    XLA keeps the code of what it compiled before, by the LLVM IR it came from, and then leaves no
    new object. Its dump tells the two cases apart: `*ir-with-opt.ll` holds the optimised IR, which
    also lies beside the new object (`NAME.hsaco`, `NAME_opt.ll`), or else the IR as it came in.
    """

    def __init__(self, folder: Path):
        self._folder = folder
        self._by_source: dict[str, Path] = {}
        self._seen: set[Path] = set()

    def of(self, dump: Path) -> list[tuple[Path, str]]:
        """The code objects of the program dumped in `dump`, each with its optimised IR."""
        left = set(self._folder.glob("*_opt.ll")) - self._seen
        self._seen |= left
        new = {path.read_text(): path for path in sorted(left)}
        sources = {
            tuple(_bodies(text, AMD_ENTRY)): text
            for text in (path.read_text() for path in dump.glob("*ir-no-opt.ll"))
        }
        found = []
        for path in sorted(dump.glob("*ir-with-opt.ll")):
            text = path.read_text()
            names = tuple(_bodies(text, AMD_ENTRY))
            if not names:
                continue  # constants
            source = sources[names]
            if text in new:
                self._by_source[source] = new[text]
            optimised = self._by_source.get(source)
            if optimised is not None:
                stem = optimised.name.removesuffix("_opt.ll")
                found.append((optimised.with_name(f"{stem}.hsaco"), optimised.read_text()))
        return found


def amd_kernels(
    objects: Iterable[tuple[Path, str]], steps: Mapping[str, list[Step]]
) -> Iterator[Kernel]:
    """The kernels of code objects, each given with its optimised LLVM IR.

    Matrix instructions are counted as intrinsics of the IR: each becomes one instruction.
    """
    for path, source in objects:
        bodies = _bodies(source, AMD_ENTRY)
        for notes in code_object_notes(path.read_bytes()):
            for facts in notes.get("amdhsa.kernels", ()):
                name = facts[".name"]
                # `.vgpr_count` of gfx90a and later holds the accumulation registers too.
                yield _kernel(
                    name,
                    steps,
                    registers=facts[".vgpr_count"],
                    spills=facts[".vgpr_spill_count"] + facts[".sgpr_spill_count"],
                    scratch=facts[".private_segment_fixed_size"],
                    static=facts[".group_segment_fixed_size"],
                    threads=facts[".max_flat_workgroup_size"],
                    matrix=Counter(
                        re.findall(r"call [^\n]*@llvm\.amdgcn\.(s?mfma[\w.]*)\(", bodies[name])
                    ),
                )


def code_object_notes(image: bytes) -> Iterator[Mapping[str, Any]]:
    """The metadata of an AMD code object: ELF notes of type 32, in MessagePack."""
    table = struct.unpack_from("<Q", image, 40)[0]
    size, count = struct.unpack_from("<HH", image, 58)
    for section in range(count):
        _, kind, _, _, offset, length = struct.unpack_from("<IIQQQQ", image, table + section * size)
        at, end = offset, offset + length
        while kind == 7 and at < end:  # SHT_NOTE
            name, described, note = struct.unpack_from("<III", image, at)
            begin = at + 12 + (name + 3 & ~3)
            if note == 32:  # NT_AMDGPU_METADATA
                yield msgpack.unpackb(image[begin : begin + described])
            at = begin + (described + 3 & ~3)


def nvidia_kernels(
    folder: Path, steps: Mapping[str, list[Step]], architecture: str
) -> tuple[list[Kernel], list[str]]:
    """The kernels of every PTX file in `folder`, assembled once more to read what ptxas says.

    Returns: the kernels, and the warnings of ptxas.
    """
    kernels, warnings = [], []
    for path in sorted(folder.glob("*.ptx")):
        bodies = _bodies(path.read_text(), r"^\.visible \.entry ([\w.$]+)\(")
        if not bodies:
            continue
        said = assemble(path, architecture)
        warnings += [line.strip() for line in said.splitlines() if "(C" in line]
        for usage in usage_of(said):
            limit = re.search(r"\.(?:maxntid|reqntid) ([\d, ]+)", bodies[usage.name])
            kernels.append(
                _kernel(
                    usage.name,
                    steps,
                    registers=usage.registers,
                    spills=usage.spills,
                    scratch=usage.stack,
                    static=usage.shared,
                    threads=int(limit[1].split(",")[0]) if limit else 0,
                    matrix=matrix_of_ptx(bodies[usage.name]),
                )
            )
    return kernels, warnings


class Usage(NamedTuple):
    """What ptxas says of a kernel: registers of a thread, the rest in bytes."""

    name: str
    stack: int
    spills: int
    registers: int
    shared: int


def usage_of(said: str) -> list[Usage]:
    """The kernels in the output of `ptxas -v`."""
    found = re.findall(
        r"Compiling entry function '([\w.$]+)'.*?(\d+) bytes stack frame, (\d+) bytes spill "
        r"stores.*?Used (\d+) registers([^\n]*)",
        said,
        re.DOTALL,
    )
    return [
        Usage(
            name,
            int(stack),
            int(spills),
            int(registers),
            shared=sum(map(int, re.findall(r"(\d+) bytes smem", rest))),
        )
        for name, stack, spills, registers, rest in found
    ]


def assemble(path: Path, architecture: str, assembler: str | None = None) -> str:
    """What `ptxas -v` says of a PTX file; `assembler` instead of the default `ptxas()`."""
    done = subprocess.run(
        [assembler or ptxas(), "-v", f"--gpu-name={architecture}", str(path), "-o", "/dev/null"],
        capture_output=True,
        text=True,
    )
    return done.stdout + done.stderr


def ptxas() -> str:
    """The assembler of the wheel that XLA finds too; else the one on the PATH.

    Raises:
      FileNotFoundError: there is none.
    """
    spec = importlib.util.find_spec("nvidia")
    for root in (spec and spec.submodule_search_locations) or ():
        for found in sorted(Path(root).glob("cu*/bin/ptxas")):
            return str(found)
    found_on_path = shutil.which("ptxas")
    if found_on_path is None:
        raise FileNotFoundError("ptxas: neither the wheel nvidia-cuda-nvcc nor a CUDA toolkit")
    return found_on_path


def matrix_of_ptx(text: str) -> Counter[str]:
    """Matrix instructions by kind, shape and dtypes, e.g. `wgmma m64n128k16 f32.bf16.bf16`."""
    found = re.findall(
        r"\b(wgmma|mma)\.(?:mma_async\.)?sync\.aligned\.(m\d+n\d+k\d+)\.?(?:row\.col\.)?([\w.]*)",
        text,
    )
    return Counter(f"{kind} {shape} {dtypes}" for kind, shape, dtypes in found)


def steps_of(text: str) -> tuple[dict[str, list[Step]], dict[str, dict[str, int]]]:
    """XLA's list of steps (`*.thunk_sequence.txt`).

    Returns: launches by kernel; and steps by section and kind. Sections are `main`, and for each
    loop `condition of N` and `body of N`, N being the number of the loop's own step.
    """
    launches: dict[str, list[Step]] = {}
    sections: dict[str, Counter[str]] = {"main": Counter()}
    open_sections: list[tuple[int, str]] = [(0, "main")]
    loop, opening = "", ""
    for line in text.splitlines():
        header = re.match(r"\s*(condition|body):$", line)
        if header:
            # A body follows its condition, which launches no loops of its own.
            opening = f"{header[1]} of {loop}"
            continue
        step = re.match(r"(\s*)(\d+): (k\w+)", line)
        if step is None:
            continue
        indent, number, kind = len(step[1]), step[2], step[3]
        if opening:
            open_sections.append((indent, opening))
            opening = ""
        while open_sections[-1][0] > indent:
            open_sections.pop()
        if kind == "kWhile":
            loop = number
        if open_sections[-1][0] == indent:  # what stands deeper is part of a step
            sections.setdefault(open_sections[-1][1], Counter())[kind] += 1
        kernel = re.search(
            r"\] (\S+) grid: \[([\d, ]+)\] threads: \[([\d, ]+)\]\s+shared_memory: (\d+)", line
        )
        if kernel:
            x, y, z = map(int, kernel[3].split(","))
            grid = tuple(map(int, kernel[2].split(",")))
            launches.setdefault(kernel[1], []).append(Step(grid, x * y * z, int(kernel[4])))
    return launches, {section: dict(kinds) for section, kinds in sections.items()}


def collectives_of(hlo: str) -> dict[str, dict[str, int]]:
    """Count and bytes (of results, on one device) of collectives, by kind; a loop's body once."""
    found: dict[str, dict[str, int]] = {}
    kinds = "|".join(COLLECTIVES)
    # An asynchronous one is counted at its end, whose type is the result's alone.
    for types, kind in re.findall(rf"= (\([^=\n]*?\)|\S+) ({kinds})(?:-done)?\(", hlo):
        entry = found.setdefault(kind, {"count": 0, "bytes": 0})
        entry["count"] += 1
        entry["bytes"] += _bytes_of(types)
    return dict(sorted(found.items()))


def buffers_of(hlo: str) -> set[tuple[str, tuple[int, ...]]]:
    """Dtype and shape of all that a compiled program's steps give, those inside fusions left out.

    What a fusion computes on its way is in no buffer. Parameters and results are among them.
    """
    lines = hlo.splitlines()
    # Computations that a step applies on its way: of fusions, reductions, sorts; `call` runs steps.
    inner = {
        name
        for line in lines
        if " call(" not in line
        for name in re.findall(r"(?:calls|to_apply|comparator)=%([\w.-]+)", line)
    }
    found: set[tuple[str, tuple[int, ...]]] = set()
    within = False
    for line in lines:
        header = re.match(r"(?:ENTRY )?%([\w.-]+) .*\{$", line)
        if header:
            within = header[1] in inner
        elif not within and " = " in line:
            types = line.split(" = ", 1)[1]
            types = types[: types.index(")") + 1] if types.startswith("(") else types.split(" ")[0]
            for dtype, sizes in re.findall(r"\b([a-z]+\d*\w*)\[([\d,]*)\]", types):
                found.add((dtype, tuple(map(int, filter(None, sizes.split(","))))))
    return found


def other_bytes_of(hlo: str) -> int:
    """Bytes of operands and results of the entry's steps that are not Pallas kernels.

    Each counts whole, also where a step reads a slice of it; a loop's steps are not looked into.
    The workspace that a library's matmul is offered, its last result, is not counted.
    """
    entry = hlo[hlo.find("\nENTRY ") :]
    steps = re.findall(
        r"^ *(?:ROOT )?%([\w.-]+) = (\(.*?\)|\S+) ([\w-]+)\((.*?)\)(.*)$", entry, re.MULTILINE
    )
    sizes = {name: _bytes_of(types) for name, types, _, _, _ in steps}
    total = 0
    for _, types, opcode, operands, rest in steps:
        if opcode not in NO_WORK and PALLAS not in rest:
            read = re.findall(r"%([\w.-]+)", operands)
            written = WORKSPACE.sub(")", types) if MATMUL in rest else types
            total += _bytes_of(written) + sum(sizes.get(operand, 0) for operand in read)
    return total


def _bytes_of(types: str) -> int:
    total = 0
    for dtype, sizes in re.findall(r"\b([a-z]+\d*\w*)\[([\d,]*)\]", types):
        bits = ITEM_BITS.match(dtype)
        items = 1
        for size in filter(None, sizes.split(",")):
            items *= int(size)
        total += items * (int(bits[1]) if bits else 8) // 8  # pred is a byte
    return total


def _kernel(
    name: str,
    steps: Mapping[str, list[Step]],
    *,
    registers: int,
    spills: int,
    scratch: int,
    static: int,
    threads: int,
    matrix: Mapping[str, int],
) -> Kernel:
    own = steps.get(name, [])
    return Kernel(
        name,
        registers,
        spills,
        scratch,
        shared=static + max((step.shared for step in own), default=0),
        threads=max((step.threads for step in own), default=threads),
        grid=own[0].grid if len(own) == 1 else None,
        launches=len(own),
        matrix=dict(matrix),
    )


def _bodies(text: str, entry: str) -> dict[str, str]:
    """`text` cut at its entries: the name of each, and what follows it."""
    names = list(re.finditer(entry, text, re.MULTILINE))
    ends = [*(match.start() for match in names), len(text)][1:]
    return {match[1]: text[match.start() : end] for match, end in zip(names, ends, strict=True)}


def matmuls_of(hlo: str) -> set[tuple[int, ...]]:
    """Shapes of operands and results of matrix products that are no Pallas kernel's: of XLA's own,
    those inside of fusions among them, and of a library's."""
    definition = re.compile(r"%([\w.-]+) = \(?\w+\[([\d,]*)\]")
    own = re.compile(r" = \S+ (?:dot|ragged-dot)\((.*?)\)")
    library = re.compile(
        r" = .* custom-call\((.*?)\).*custom_call_target=\"[^\"]*(?:matmul|gemm)"
    )
    shapes, found = {}, set()
    for line in hlo.splitlines():
        if (defined := definition.search(line)) is None:
            continue
        shapes[defined[1]] = tuple(map(int, filter(None, defined[2].split(","))))
        if (product := own.search(line) or library.search(line)) is not None:
            # Operands stand before what reads them.
            operands = re.findall(r"%([\w.-]+)", product[1])
            found |= {shapes[name] for name in (defined[1], *operands) if name in shapes}
    return found
