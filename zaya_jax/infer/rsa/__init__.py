"""Markovian RSA: many rollouts, aggregated over rounds, of which only the ends are carried on.

`settings` names the numbers and the report's presets, `prompts` what a round is shown, `algorithm`
runs the rounds over any `policy`, `selection` picks an answer, `accounting` counts what was
decoded, `trace` lets a run be taken up again, `view` shows it. docs/rsa.md has the equations.
"""

from zaya_jax.infer.rsa.algorithm import Result, solve
from zaya_jax.infer.rsa.policy import Ask, Policy, Sample
from zaya_jax.infer.rsa.settings import PRESETS, Settings

__all__ = ["PRESETS", "Ask", "Policy", "Result", "Sample", "Settings", "solve"]
