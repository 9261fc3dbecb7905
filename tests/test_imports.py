"""Guards the house: imports point one way, files stay short, no path of somebody's machine."""

from __future__ import annotations

import ast
import functools
import re
import subprocess
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# Each room with its floor. A room imports rooms of its own floor or below, and rooms of one floor
# not in a circle. A new room is given its place here.
FLOOR = {
    "pallas_kernels": 0,
    "errors": 0,
    "grammar": 1,
    "cluster": 1,
    "config": 1,
    "options": 1,
    "platform": 1,
    "sandbox": 1,
    "model": 2,
    "balance": 3,
    "costs": 3,
    "answers": 3,
    "data": 3,
    "lora": 3,
    "muon": 2,
    "optim": 3,
    "parallel": 3,
    "hf": 4,
    "infer": 4,
    "load": 4,
    "train": 4,
    "evals": 5,
    "rl": 5,
    "serve": 5,
    "sweep": 5,
    "aot": 6,
    "bench": 6,
    "report": 6,
    "cli": 7,
    "cascade": 7,
    "demo": 7,
    "demo_rl": 7,
    "doctor": 7,
    "plan": 7,
    "results": 7,
    "experiments": 8,
    "launch": 8,
}
# These look at the others; only the top floors look at them.
ONLOOKERS = {"aot", "bench", "report"}
# Floor by floor is not strict enough for these.
ONLY = {
    "pallas_kernels": set(),
    "errors": set(),
    "model": {"pallas_kernels", "config", "errors"},
    "experiments": {"config"},
    "launch": {"cli", "platform"},
}


def room_of(module: str) -> str | None:
    """`zaya_jax.model.block` -> `model`; None for what is not ours."""
    top, _, rest = module.partition(".")
    if top == "zaya_jax":
        return rest.split(".")[0] or None
    return top if top in ("pallas_kernels", "experiments", "launch") else None


def imported_modules(source: str) -> set[str]:
    """Absolute names of all modules that `source` imports, inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import: write the absolute one"
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


@functools.cache
def tracked() -> tuple[Path, ...]:
    """Files of the repository: what git tracks, or everything where there is no git."""
    try:
        listing = subprocess.run(
            ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True, text=True
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        found = (
            path
            for path in ROOT.rglob("*")
            if not any(
                part.startswith(".") or part in ("runs", "demo")
                for part in path.relative_to(ROOT).parts
            )
        )
        return tuple(path for path in found if path.is_file())
    return tuple(path for name in listing.split("\0") if name and (path := ROOT / name).is_file())


@functools.cache
def arrows() -> dict[str, dict[str, str]]:
    """For every room: the other rooms it imports, each with one file that does."""
    found: dict[str, dict[str, str]] = {}
    for path in tracked():
        name = path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".")
        room = room_of(name.removesuffix(".__init__"))
        if path.suffix != ".py" or room is None:
            continue
        targets = found.setdefault(room, {})
        for module in imported_modules(path.read_text()):
            target = room_of(module)
            if target not in (None, room):
                targets[target] = str(path.relative_to(ROOT))
    return found


def test_every_room_has_a_floor():
    assert set(arrows()) <= set(FLOOR), "give the new room its place in FLOOR"


def test_imports_point_down():
    wrong = [
        f"{file}: {room} imports {target}"
        for room, targets in arrows().items()
        for target, file in targets.items()
        if FLOOR[target] > FLOOR[room] or target not in ONLY.get(room, FLOOR)
    ]
    assert not wrong, "\n".join(wrong)


def test_nobody_but_the_top_imports_the_onlookers():
    wrong = [
        f"{file}: {room} imports {target}"
        for room, targets in arrows().items()
        for target, file in targets.items()
        if target in ONLOOKERS and FLOOR[room] < 7
    ]
    assert not wrong, "\n".join(wrong)


def test_rooms_do_not_import_in_a_circle():
    # Raises CycleError, which names the circle.
    TopologicalSorter({room: set(targets) for room, targets in arrows().items()}).prepare()


def test_every_import_is_seen():
    source = "import zaya_jax.rl\ndef f():\n    from zaya_jax import train\n"
    rooms = {room_of(module) for module in imported_modules(source)}
    assert {"rl", "train"} <= rooms


def python_files() -> list[str]:
    return [str(path.relative_to(ROOT)) for path in tracked() if path.suffix == ".py"]


def test_no_file_is_longer_than_500_lines():
    long = {
        file: n
        for file in python_files()
        if (n := len((ROOT / file).read_text().splitlines())) > 500
    }
    assert not long


# An absolute path into a home or a workplace; URLs and longer paths that end alike are let be.
PRIVATE_PATH = re.compile(rb"(?<![\w.:/}-])/(?:work|root|home|Users)/")


def test_no_tracked_file_names_a_path_of_somebodys_machine():
    found = [
        str(path.relative_to(ROOT))
        for path in tracked()
        if path != Path(__file__) and PRIVATE_PATH.search(path.read_bytes())
    ]
    assert not found


@pytest.mark.parametrize(
    ("text", "private"),
    [(b"see /home/me/x", True), (b"https://x.org/home/", False), (b"a/work/b", False)],
)
def test_private_paths_are_told_from_others(text, private):
    assert bool(PRIVATE_PATH.search(text)) is private
