"""The answer in what a model wrote, and when two answers are the same.

Who scores rollouts and who votes over them must agree on both, so it stands here once: `extract`
finds an answer, `equivalence` compares, `workers` runs what may hang, raise or eat memory (a
symbolic algebra system on a model's output, say) where it can do no harm.
"""

from zaya_jax.answers.equivalence import canonical, cluster, equivalent
from zaya_jax.answers.extract import FORMATS, KINDS, Kind, extract, final_text

__all__ = [
    "FORMATS",
    "KINDS",
    "Kind",
    "canonical",
    "cluster",
    "equivalent",
    "extract",
    "final_text",
]
