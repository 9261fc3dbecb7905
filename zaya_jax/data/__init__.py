"""Text in, batches out: `prepare` is the way in, `Batch` is what a training step gets."""

from zaya_jax.data.heldout import Heldout
from zaya_jax.data.info import DataInfo
from zaya_jax.data.mixture import Batches
from zaya_jax.data.packing import Batch
from zaya_jax.data.pipeline import Prepared, prepare
from zaya_jax.data.tokenizer import Stream, Tokenizer

__all__ = [
    "Batch",
    "Batches",
    "DataInfo",
    "Heldout",
    "Prepared",
    "Stream",
    "Tokenizer",
    "prepare",
]
