"""What fits where, and a bench that measures what it says."""

from types import SimpleNamespace

import pytest

from zaya_jax.bench import fits, quantization
from zaya_jax.config import Attention, Model, Router
from zaya_jax.infer.quantize import Scheme, quantize
from zaya_jax.model.functional import parameter_count


def test_bytes_of_the_published_model_are_those_of_its_shapes():
    model = fits.model_of("zaya1_8b")
    count = parameter_count(model)
    whole = fits.weight_bytes(model, None)
    assert 2 * count <= whole < 2 * count + 10_000  # biases of the routers in float32
    experts = 40 * 16 * 3 * 2048 * 2048
    eight = fits.weight_bytes(model, Scheme("int8"))
    scales = 40 * 16 * (2 * 2048 + 2048) * 4
    assert eight == whole - experts + scales
    four = fits.weight_bytes(model, Scheme("int4"))
    assert four == whole - 2 * experts + experts // 2 + experts // 128 * 2
    embedding = 262_272 * 2048
    everything = fits.weight_bytes(model, Scheme("int4", "all"))
    assert four - 2 * embedding < everything < four - embedding


def test_room_for_tokens():
    gib = 2**30
    # 2 GiB of weights and 1 GiB for the rest leave 5 of 8, which hold 5 x 1,024 pages of 1 MiB.
    assert fits.tokens_in(8, 2 * gib, 2**20 / fits.PAGE) == 5 * 1024 * fits.PAGE
    assert fits.tokens_in(8, 7 * gib, 2**20 / fits.PAGE) is None


def test_the_table_says_what_fits():
    lines = fits.show(fits.rows(("zaya1_8b",))).splitlines()
    assert len(lines) == 2 + len(fits.SCHEMES)
    cells = {line.split("|")[2].strip(): line.split("|")[5:7] for line in lines[2:]}
    assert [cell.strip() for cell in cells["as stored"]] == ["-", "-"]
    assert "k / " in cells["int4 all"][0] and "k / " in cells["int8 experts"][1]


def small(expert_width: int) -> Model:
    return Model(
        vocab_size=300,
        hidden_size=32,
        num_layers=2,
        expert_width=expert_width,
        context_length=256,
        attention=Attention(heads=4, kv_heads=2, head_dim=8),
        router=Router(experts=4, width=16),
    )


def test_forms_whose_groups_do_not_fit_are_left_out_and_told(monkeypatch):
    forms, left_out = quantization.fitting(small(expert_width=48))
    assert len(forms) == len(quantization.FORMS) - 1
    assert left_out[0].startswith("int4 experts, groups of 32: quantize_group = 32: ")
    odd, told = quantization.fitting(small(expert_width=7))  # halves of bytes go by twos
    assert {scheme.kind for scheme, _ in odd if scheme is not None} == {"int8", "fp8"}
    assert len(told) == 4 and "fp4 experts" in told[2]

    class Untimed(quantization.Subject):  # no engine: that all forms run is the next test
        def __init__(self, loaded, scheme, cache, capacity):
            if scheme is not None:
                loaded = quantize(loaded, scheme)  # raises where a group does not fit
            self.scheme, self.cache = scheme, cache
            self.engine = SimpleNamespace(loaded=loaded)

        def rate(self, prompts):
            return 1.0

    monkeypatch.setattr(quantization, "Subject", Untimed)
    monkeypatch.setattr(quantization, "FORMS", ((None, None), (Scheme("int4", group=32), None)))
    rows, told = quantization.measure(None, small(expert_width=48), seed=0, pairs=1)
    assert [row.form for row in rows] == ["as stored"] and told == left_out
    assert quantization.show(rows, told).endswith(f"\nleft out: {left_out[0]}")


@pytest.mark.slow
def test_all_forms_are_measured():
    model = small(expert_width=64)
    rows, left_out = quantization.measure(None, model, seed=0, pairs=1)
    assert len(rows) == len(quantization.FORMS) and not left_out
    assert all(row.alone > 0 and row.batch > 0 and row.bits_per_byte is None for row in rows)
    sizes = {row.form: row.weights for row in rows}
    assert sizes["int4 all"] < sizes["int4 experts"] < sizes["int8 experts"] < sizes["as stored"]
    assert len(quantization.show(rows).splitlines()) == 2 + len(rows)
