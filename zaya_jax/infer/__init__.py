"""Weights and prompts in, text out: `Generator` is the way in, `programs` what it compiles."""

from zaya_jax.infer.generate import Generator, Timing
from zaya_jax.infer.request import Completion, Request
from zaya_jax.infer.sampler import Sampling

__all__ = ["Completion", "Generator", "Request", "Sampling", "Timing"]
