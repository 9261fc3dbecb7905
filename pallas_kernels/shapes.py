"""The shapes at which kernels are compiled, counted and tuned: ZAYA1-8B at work on one device.

An op whose `IMPLEMENTATIONS` has a `triton` entry offers in its `example.py`

    def shapes_8b(form: Form) -> dict[str, Call]

which gives the calls of the op in that form of work, by a short name each ("" where there is but
one); empty where the op takes no part. Nothing is computed from them: their arrays are
`jax.ShapeDtypeStruct`s in the dtypes of bfloat16 training or serving. `launch.py kernels` compiles
every call and, where `form.trains`, its backward pass on its own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple


@dataclasses.dataclass(frozen=True)
class Sizes:
    """The sizes of a model that ops see; the defaults are ZAYA1-8B's."""

    hidden: int = 2048  # D
    heads: int = 8  # H
    kv_heads: int = 2  # K
    channels: int = 128  # C, of a head
    rotary: int = 64  # channels of a head that RoPE turns
    conv_kernels: tuple[int, int] = (2, 2)
    experts: int = 16  # E; the router knows one more class, skip
    expert_width: int = 2048  # F
    router_width: int = 256  # R
    top_k: int = 1
    vocabulary: int = 262_272  # V
    layers: int = 40  # L
    norm_eps: float = 1e-5

    @property
    def group(self) -> int:
        """G, query heads of a kv head."""
        return self.heads // self.kv_heads


ZAYA1_8B = Sizes()


@dataclasses.dataclass(frozen=True)
class Form:
    """What one device does at once.

    Attributes:
      rows: B, sequences.
      queries: S, new tokens of each row.
      keys: tokens of each row that there are, new ones included: the length of gathered keys, or
        the positions in use of a cache.
      trains: whether a backward pass follows.
      varied: whether ops tell it in other dtypes, widths and options too.
    """

    rows: int
    queries: int
    keys: int
    trains: bool = False
    varied: bool = False

    @property
    def tokens(self) -> int:
        """T, new tokens."""
        return self.rows * self.queries

    @property
    def decodes(self) -> bool:
        return self.queries == 1


FORMS: Mapping[str, Form] = {
    "train_4k": Form(8, 4096, 4096, trains=True),
    "train_32k": Form(1, 32_768, 32_768, trains=True, varied=True),
    # One of eight context-parallel shards: its own queries, everybody's keys.
    "train_131k": Form(1, 16_384, 131_072, trains=True),
    "prefill": Form(4, 4096, 4096),
    "decode_1": Form(1, 1, 32_768),
    "decode_8": Form(8, 1, 32_768),
    "decode_64": Form(64, 1, 8192, varied=True),
    "decode_256": Form(256, 1, 4096),
}


class Call(NamedTuple):
    """A call to compile.

    Attributes:
      args: with a `jax.ShapeDtypeStruct` for every array; all else is static.
      kwargs: the same; not differentiated.
      function: what to call, where it is not the op's `IMPLEMENTATIONS["triton"]`.
      trains: False for a call without backward pass in a form that trains.
    """

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any] = {}
    function: Callable | None = None
    trains: bool = True
