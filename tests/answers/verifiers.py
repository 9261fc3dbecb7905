"""Functions that worker processes run: good, slow, faulty and deadly ones."""

import os
import sys
import time


def double(value):
    return 2 * value


def odd_ones(value):
    """What it does is told by its argument."""
    if value == "raise":
        raise ValueError("no such thing")
    if value == "hang":
        time.sleep(60)
    if value == "loop":
        while True:
            pass
    if value == "exit":
        sys.exit(3)
    if value == "die":
        os._exit(7)
    if value == "eat":
        return len(bytearray(8 << 30))
    if value == "lambda":
        return lambda: None
    if value == "print":
        print("noise")
    return value


RETURNED = {"nan": float("nan"), "two": 2.0, "minus": -0.1, "none": None, "word": "good"}


def score(submission):
    """A verifier of `zaya_jax.rl.rewards`: the response says what it is to do."""
    if submission.response in RETURNED:
        return RETURNED[submission.response]
    return float(odd_ones(submission.response) == submission.answer)


def longest(problem, response):
    """An external verifier of `launch.py solve`."""
    return odd_ones(response) if response in ("raise", "die") else len(response)
