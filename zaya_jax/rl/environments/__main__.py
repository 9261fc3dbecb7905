"""`python -m zaya_jax.rl.environments`: makes tasks about programs, for `launch.py rl` and `eval`.

python -m zaya_jax.rl.environments --generate=200 --out=tasks.jsonl
python -m zaya_jax.rl.environments --seeds=seeds.jsonl --only=code,codearc --out=tasks.jsonl
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from zaya_jax.errors import UserError
from zaya_jax.rl.environments import build, files, generate


def main(argv: list[str]) -> int:
    """Makes and writes tasks; tells how many of each environment."""
    parser = argparse.ArgumentParser(
        "python -m zaya_jax.rl.environments", description="makes tasks about programs"
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--seeds", type=Path, help="JSONL of problem seeds (docs/sandbox.md)")
    source.add_argument("--generate", type=int, help="how many seeds to generate instead")
    parser.add_argument("--only", default=",".join(build.ENVIRONMENTS), help="environments")
    parser.add_argument("--out", type=Path, required=True, help="the JSONL to write")
    parser.add_argument("--seed", type=int, default=0, help="of all that is drawn")
    given = parser.parse_args(argv)
    try:
        if given.seeds is not None and not given.seeds.is_file():
            raise UserError(f"--seeds={given.seeds}: no such file")
        seeds = (
            files.read(given.seeds)
            if given.seeds is not None
            else generate.seeds(given.generate, given.seed)
        )
        made = build.tasks(seeds, given.only.split(","), seed=given.seed)
        counts = build.write(made, given.out)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for name, count in counts.items():
        print(f"{count:6d} {name}")
    print(f"{counts.total():6d} tasks in {given.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
