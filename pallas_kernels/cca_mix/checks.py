"""Whether the arrays of a mix fit each other: kernels take sizes from some and trust the rest."""

from __future__ import annotations

from typing import NamedTuple

from pallas_kernels.cca_mix.types import Cache, Place, State, Weights
from pallas_kernels.checks import match


class _Sizes(NamedTuple):
    """B rows of S tokens, K kv heads of C channels, N channels of q and k together."""

    B: int
    S: int
    K: int
    C: int
    N: int

    @classmethod
    def of(cls, op: str, q, k, weights: Weights) -> _Sizes:
        given = f"q {q.shape}, k {k.shape}, weights.temperature {weights.temperature.shape}"
        if q.ndim != 3 or k.ndim != 3 or weights.temperature.ndim != 1:
            raise ValueError(f"{op}: want q [B, S, H * C], k [B, S, K * C], [K]; got {given}")
        (B, S, queries), keys, K = q.shape, k.shape[2], weights.temperature.shape[0]
        if K == 0 or keys == 0 or keys % K:
            raise ValueError(f"{op}: k must have channels for K heads; got {given}")
        if queries == 0 or queries % keys:
            raise ValueError(f"{op}: q's heads must be a multiple of k's; got {given}")
        return cls(B, S, K, keys // K, queries + keys)


def check_mix(op: str, q, k, v_current, v_delayed, weights: Weights, cos, sin, positions) -> None:
    """Raises ValueError, with what `op` wants and what was given, unless all but a state fit.

    Arguments are those of `cca_mix`.
    """
    B, S, K, C, N = _Sizes.of(op, q, k, weights)
    if cos.ndim != 3 or 2 * cos.shape[2] > C:
        raise ValueError(
            f"{op}: cos must be [B, S, n] with n up to {C // 2}, half of a head; got {cos.shape}"
        )
    match(
        op,
        {
            "k": (k, (B, S, K * C)),
            "v_current": (v_current, (B, S, K * C // 2)),
            "v_delayed": (v_delayed, (B, S, K * C // 2)),
            "cos": (cos, (B, S, cos.shape[2])),
            "sin": (sin, (B, S, cos.shape[2])),
            "positions": (positions, (B, S)),
        },
    )
    for name, inner in (("depthwise", (N,)), ("grouped", (N // C, C, C))):
        weight, bias = getattr(weights, name), getattr(weights, f"{name}_bias")
        if (weight is None) != (bias is None):
            raise ValueError(f"{op}: weights.{name} has a bias, or both are None; one of them is")
        taps = 1 if weight is None else max((1, *weight.shape[:1]))
        wanted = {f"weights.{name}": (weight, (taps, *inner)), f"weights.{name}_bias": (bias, (N,))}
        match(op, wanted)


def check_state(
    op: str, q, k, weights: Weights, state: State, *, value_shift: bool, rows: int | None = None
) -> None:
    """The same of a state in front of q and k, which passed `check_mix`, in `rows`: pages, or B."""
    B, _, K, C, N = _Sizes.of(op, q, k, weights)
    rows = B if rows is None else rows
    if value_shift and state.v_delayed is None:
        wanted = [rows, K * C // 2]
        raise ValueError(f"{op}: a value shift wants state.v_delayed {wanted}; got None")
    match(
        op,
        {
            "state.qk": (state.qk, (rows, weights.past, N)),
            "state.v_delayed": (state.v_delayed, (rows, K * C // 2)),
        },
    )


def check_cache(
    op: str, q, k, weights: Weights, cache: Cache, place: Place, *, value_shift: bool
) -> None:
    """The same of a cache and of where its new tokens go."""
    B, _, K, C, _ = _Sizes.of(op, q, k, weights)
    if cache.keys.ndim != 4:
        raise ValueError(f"{op}: cache.keys must be [B, K, T, C]; got {cache.keys.shape}")
    rows = B if place.pages is None else cache.keys.shape[0]
    before, after = (None, None) if place.pages is None else place.pages
    shape = (rows, K, cache.keys.shape[2], C)
    match(
        op,
        {
            "cache.keys": (cache.keys, shape),
            "cache.values": (cache.values, shape),
            "place.slot": (place.slot, (B,)),
            "place.live": (place.live, (B,)),
            "place.pages[0]": (before, (B,)),
            "place.pages[1]": (after, (B,)),
        },
    )
    check_state(op, q, k, weights, cache.state, value_shift=value_shift, rows=rows)
