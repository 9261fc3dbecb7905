"""FLOPs and bytes of three layouts, against counts written out by hand; see `small.experiment`."""

from __future__ import annotations

import pytest

from tests.plan.small import planned

LAYERS, FLOAT = 3, 4
# Of one layer. Matrices of attention: q, k, two halves of v, output; of the router: down, two
# hidden layers, out to 8 experts and the skip class. Experts: gate and up, down.
ATTENTION = [32 * 32, 32 * 16, 32 * 8, 32 * 8, 32 * 32]
ROUTER = [32 * 16, 16 * 16, 16 * 16, 16 * 9]
GATE_UP, DOWN = 32 * 32, 16 * 32
EXPERTS = 8 * (GATE_UP + DOWN)
MATRICES = sum(ATTENTION) + sum(ROUTER)
# Convolutions with their biases; two norms, two merges of four vectors; biases and norm of the
# router. Not among them: a temperature for each of 2 kv heads.
SMALL = (2 * 48 + 48) + (2 * 6 * 8 * 8 + 48) + 2 * 32 + 8 * 32 + 4 * 16
DEPTH_AVERAGING = 2 * 16  # a vector in all layers but the first
OUTSIDE = 3 * 32  # scale and bias of the embedding, the last norm
EMBEDDING = 96 * 32
STATISTICS = LAYERS * (2 * 8 + 5) * FLOAT


def bytes_of(plan) -> dict[tuple[str, str, str], int]:
    found: dict[tuple[str, str, str], int] = {}
    for one in plan.messages:
        key = (one.what, one.kind, ",".join(one.axes))
        found[key] = found.get(key, 0) + one.bytes
    return found


def test_zero_1_on_four_devices():
    """Four divide every parameter but the temperatures."""
    once = LAYERS * (MATRICES + SMALL + EXPERTS) + DEPTH_AVERAGING + OUTSIDE + EMBEDDING
    # Layer 0 stands alone, the other two are a stack: 1 and 2 of each matrix, 8 and 16 experts. A
    # device gets ceil(1 / 4), ceil(2 / 4), 2 and 4 of them whole; gradient, momentum and update.
    whole = 2 * MATRICES + (2 + 4) * (GATE_UP + DOWN)
    assert bytes_of(planned("data=4")) == {
        ("parameters to use", "all-gather", "data"): once * FLOAT,
        ("gradients to rest", "reduce-scatter", "data"): once * FLOAT,
        ("gradients of small parameters", "all-reduce", "data"): LAYERS * 2 * FLOAT,
        ("statistics of routing", "all-reduce", "data"): STATISTICS,
        ("matrices for Muon", "all-to-all", "data"): 3 * whole * FLOAT,
    }


def test_zero_3_in_two_microbatches():
    """Matrices are gathered twice and their gradients reduced once, in each microbatch; the
    embedding is gathered once, and its gradients, of the first layer and the head, are added."""
    inside = LAYERS * (MATRICES + EXPERTS)
    once = LAYERS * (SMALL + 2) + DEPTH_AVERAGING + OUTSIDE
    whole = 2 * MATRICES + (4 + 8) * (GATE_UP + DOWN)
    assert bytes_of(planned("fsdp=2", train={"microbatches": 2})) == {
        ("parameters to use", "all-gather", "fsdp"): once * FLOAT,
        ("gradients to rest", "reduce-scatter", "fsdp"): once * FLOAT,
        ("layers' matrices", "all-gather", "fsdp"): 2 * 2 * inside * FLOAT,
        ("gradients of layers' matrices", "reduce-scatter", "fsdp"): 2 * inside * FLOAT,
        ("the embedding", "all-gather", "fsdp"): 2 * EMBEDDING * FLOAT,
        ("gradients of the embedding", "reduce-scatter", "fsdp"): 2 * EMBEDDING * FLOAT,
        ("statistics of routing", "all-reduce", "fsdp"): 2 * STATISTICS,
        ("matrices for Muon", "all-to-all", "fsdp"): 3 * whole * FLOAT,
    }


def test_context_and_experts():
    """8 rows a device, of which it has 16 tokens each: 128, and as many places in an exchange."""
    rows, length, tokens = 8, 32, 128
    others = LAYERS * (MATRICES + SMALL) + DEPTH_AVERAGING + OUTSIDE + EMBEDDING
    own = LAYERS * (EXPERTS // 2) + LAYERS * 2  # two devices divide the temperatures
    forward, backward = (32 + 1) + 32, (2 * 32 + 1) + (32 + 1)  # numbers a token
    latents = 2 * 48 + 8  # q and k of two tokens, and half of a value
    keys = rows * length * 2 * 16
    # Layer 0 has 4 experts here, the stack 8: of each, 2 and 4 whole.
    experts = (2 + 4) * (GATE_UP + DOWN)
    found = planned("context=2,expert=2", parallel={"all_to_all": "padded"})
    assert bytes_of(found) == {
        ("parameters to use", "all-gather", "context,expert"): others * FLOAT,
        ("parameters to use", "all-gather", "context"): own * FLOAT,
        ("gradients to rest", "reduce-scatter", "context,expert"): others * FLOAT,
        ("gradients to rest", "reduce-scatter", "context"): own * FLOAT,
        ("gradients of small parameters", "all-reduce", "expert"): LAYERS * FLOAT,
        ("documents of rows", "all-gather", "context"): rows * length * 4,
        ("keys and values", "all-gather", "context"): 2 * LAYERS * keys * FLOAT,
        ("gradients of keys and values", "reduce-scatter", "context"): LAYERS * keys * FLOAT,
        ("halos", "collective-permute", "context"): 3 * 2 * LAYERS * rows * latents * FLOAT,
        ("loads of experts", "all-gather", "expert"): 2 * LAYERS * 2 * 8 * 4,
        ("tokens to experts and back", "all-to-all", "expert"): 2
        * LAYERS
        * tokens
        * forward
        * FLOAT,
        ("the same, backward", "all-to-all", "expert"): LAYERS * tokens * backward * FLOAT,
        ("statistics of routing", "all-reduce", "context,expert"): STATISTICS,
        ("matrices for Muon", "all-to-all", "context,expert"): 3 * 2 * MATRICES * FLOAT,
        ("matrices for Muon", "all-to-all", "context"): 3 * experts * FLOAT,
    }


def orthogonalising(a: int, b: int) -> int:
    """Five iterations, a <= b: of X X^T and of A A half of the a^2 entries, of 2 b and of 2 a
    operations each; of F X all a b, of 2 a."""
    return 5 * (a * a * b + a * a * a + a * b * 2 * a)


# Of each kind of matrix, one: q, output; k, the router's down; two halves of v; its hidden layers;
# its last.
ONE_OF_EACH = (
    2 * orthogonalising(32, 32)
    + 2 * orthogonalising(16, 32)
    + 2 * orthogonalising(8, 32)
    + 2 * orthogonalising(16, 16)
    + orthogonalising(9, 16)
)
ONE_EXPERT = orthogonalising(32, 32) + orthogonalising(16, 32)


@pytest.mark.parametrize(
    ("mesh", "changes", "tokens", "plain", "experts"),
    [
        ("data=4", {}, 16 * 32 // 4, 2, 2 + 4),
        ("fsdp=2", {"train": {"microbatches": 2}}, 16 * 32 // 2, 2, 4 + 8),
        ("context=2,expert=2", {}, 16 * 32 // 4, 2, 2 + 4),
    ],
)
def test_flops(mesh, changes, tokens, plain, experts):
    active = LAYERS * (MATRICES + SMALL + 2 + GATE_UP + DOWN)
    active += DEPTH_AVERAGING + OUTSIDE + EMBEDDING
    # Scores and values of 4 heads of 8 channels; a query of a row sees 33 / 2 keys on average.
    attention = LAYERS * 4 * 4 * 8 * 33 / 2
    head = 2 * EMBEDDING
    forward = 2 * active + attention - head
    found = planned(mesh, **changes).work
    assert found.model_flops == tokens * 3 * (forward + head)
    assert found.flops == {
        "layers": tokens * 4 * forward,  # once more under remat
        "head": tokens * 4 * head,  # logits once more
        "optimizer": plain * ONE_OF_EACH + experts * ONE_EXPERT,
    }
    # What `dots` keeps is what plain products with matrices give: attention and experts are again.
    dots = planned(mesh, **changes, model={"remat": "dots"}).work.flops
    again = attention + 2 * LAYERS * (GATE_UP + DOWN)
    assert dots == found.flops | {"layers": tokens * (3 * forward + again)}


def test_a_ragged_exchange_sends_rows_that_are_there():
    """Room of a quarter stands in the buffers on the way out alone."""
    padded, ragged = (
        planned("expert=4", parallel={"all_to_all": kind, "room": 1.25})
        for kind in ("padded", "ragged")
    )
    tokens, places = 128, 4 * 40  # 1.25 x 32, rounded to eights
    for plan, back in ((padded, places), (ragged, tokens)):
        [forward] = [one for one in plan.messages if one.what == "tokens to experts and back"]
        assert forward.bytes == 2 * LAYERS * (33 * places + 32 * back) * FLOAT
    [forward] = [one for one in ragged.messages if one.what == "tokens to experts and back"]
    assert forward.sent(ragged.case.sizes) == 2 * LAYERS * 65 * tokens * FLOAT * 3 / 4
