"""The device's memory of all sequences: pages of keys, values, CCA states and routes.

A page is one row of every array here, so that to share it, to move it or to overwrite it is one
thing. See `zaya_jax.model.attention.paged` for what a page means to a layer.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from zaya_jax.config import Model
from zaya_jax.errors import UserError
from zaya_jax.infer.engine.allocator import NOBODYS
from zaya_jax.infer.engine.options import Options
from zaya_jax.model.attention import kind_of
from zaya_jax.model.attention.cache import LayerCache
from zaya_jax.model.attention.paged import narrow
from zaya_jax.model.router import classes

MOVED = 16
"""Pages that one call copies to or from the host's memory."""


class Pool(NamedTuple):
    """P pages of T tokens.

    layers: for each, k and v [P, K, T, C] and the CCA state at the end of the page; the scales of
      keys and values where they are int8.
    routes: [P, T, L, k] the classes that each layer's router chose for each token; uint8, or int32
      where there are more than 255.
    """

    layers: tuple[LayerCache, ...]
    routes: jax.Array


def empty(model: Model, pages: int, page: int, cache_dtype: str | None = None) -> Pool:
    """A pool of `pages` pages of `page` tokens, in the activation dtype but for keys and values in
    `cache_dtype`.

    Raises:
      UserError: an attention kind that does not keep keys and values of each token.
    """
    kind = kind_of(model)
    layers = tuple(kind.empty_cache(model, pages, page) for _ in range(model.num_layers))
    if layers[0].k.shape != layers[0].v.shape:
        raise UserError(
            f"engine: model.attention.kind = {model.attention.kind!r} keeps a latent in place of "
            "keys and values; the engine serves cca, gqa and mha (launch.py generate takes all)"
        )
    if cache_dtype == "int8":
        layers = tuple(map(narrow, layers))
    dtype = jnp.uint8 if classes(model) < 256 else jnp.int32
    shape = (pages, page, model.num_layers, model.router.top_k)
    return Pool(layers, jnp.zeros(shape, dtype))


def page_bytes(model: Model, page: int, cache_dtype: str | None = None) -> int:
    """Bytes of one page, over all layers."""
    abstract = jax.eval_shape(lambda: empty(model, 1, page, cache_dtype))
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(abstract))


def pages_of(model: Model, options: Options, context: int) -> int:
    """Pages of the pool under these options; see `Options.pages`.

    Raises:
      UserError: there is not room for two pages.
    """
    if options.pages is not None:
        return options.pages
    wanted = 1 + options.rows * -(-context // options.page)
    each = page_bytes(model, options.page, options.cache_dtype)
    fit = options.pool_bytes // each
    if fit < 2:
        raise UserError(
            f"engine: pool_bytes = {options.pool_bytes} (serve: --pool_gb): a page of "
            f"{options.page} tokens takes {each} bytes; expected at least two"
        )
    return min(wanted, fit)


@jax.jit
def _read(pool: Pool, pages: jax.Array) -> Pool:
    return jax.tree.map(lambda x: x[pages], pool)


@functools.partial(jax.jit, donate_argnums=0)
def _write(pool: Pool, pages: jax.Array, contents: Pool) -> Pool:
    return jax.tree.map(lambda x, new: x.at[pages].set(new), pool, contents)


def _blocks(pages: list[int]) -> list[np.ndarray]:
    """[MOVED] int32 each, the last filled with the page that is nobody's."""
    padded = [*pages, *[NOBODYS] * (-len(pages) % MOVED)]
    return list(np.array(padded, np.int32).reshape(-1, MOVED))


def read(pool: Pool, pages: list[int]) -> list[Any]:
    """What the pages hold, in the host's memory."""
    return [jax.device_get(_read(pool, block)) for block in _blocks(pages)]


def write(pool: Pool, pages: list[int], saved: list[Any]) -> Pool:
    """The pool with what `read` gave in these pages, as many as then; the old one is used up."""
    for block, contents in zip(_blocks(pages), saved, strict=True):
        pool = _write(pool, block, contents)
    return pool


@functools.partial(jax.jit, donate_argnums=0)
def _clear(pool: Pool, pages: jax.Array) -> Pool:
    return jax.tree.map(lambda x: x.at[pages].set(0), pool)


def clear(pool: Pool, pages: list[int]) -> Pool:
    """The pool with zeros in these pages; the old one is used up."""
    for block in _blocks(pages):
        pool = _clear(pool, block)
    return pool


@jax.jit
def _routes(pool: Pool, pages: jax.Array) -> jax.Array:
    return pool.routes[pages]


def routes(pool: Pool, pages: list[int], count: int) -> np.ndarray:
    """[count, L, k]: the routes of the first `count` tokens in these pages."""
    found = [np.asarray(_routes(pool, block)) for block in _blocks(pages)]
    if not found:
        return np.zeros((0, *pool.routes.shape[2:]), pool.routes.dtype)
    return np.concatenate(found).reshape(-1, *pool.routes.shape[2:])[:count]
