"""Prints which share of loops the canary finds (docs/rl.md): python -m tests.rl.canary_table"""

import zlib

import numpy as np

from zaya_jax.rl.compressibility import Compressibility, loops

VOCAB, LOOPS, TOKENS = 262_272, 40, 1500
PERIODS = [(1, 16), (17, 64), (65, 128), (129, 190)]


def share(chunk: int, periods: tuple[int, int], text_before: bool) -> float:
    """Of loops with periods drawn from a range, alone or after 100 to 1,500 tokens of text."""
    rng, found = np.random.default_rng([chunk, *periods]), 0
    for _ in range(LOOPS):
        period = int(rng.integers(*periods, endpoint=True))
        loop = np.tile(rng.integers(0, VOCAB, period), TOKENS // period)
        text = np.minimum(rng.zipf(1.15, int(rng.integers(100, 1500))), VOCAB - 1)
        ids = np.concatenate([text, loop]) if text_before else loop
        found += loops(ids, Compressibility(chunk=chunk))
    return found / LOOPS


def main() -> None:
    print(f"zlib {zlib.ZLIB_RUNTIME_VERSION}, {LOOPS} loops of {TOKENS} tokens; alone / after text")
    for chunk in (128, 64):
        cells = [f"{share(chunk, p, False):.2f} / {share(chunk, p, True):.2f}" for p in PERIODS]
        print(f"| {chunk} |", " | ".join(cells), "|")


if __name__ == "__main__":
    main()
