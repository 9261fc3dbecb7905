import dataclasses
import json
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from zaya_jax.config import Attention, Experiment, Model, Optim, Router, Train
from zaya_jax.errors import UserError
from zaya_jax.model.functional import bias_declarations
from zaya_jax.report import figures, page
from zaya_jax.report import run as run_lib
from zaya_jax.train import metrics, workdir


def explained(step):
    """What training lines say of three layers and two groups; step 20 was not taken."""
    spoilt = np.float32(np.nan if step == 20 else step)
    return {
        "max_load": np.full(3, 0.5),
        "min_load": np.full(3, 0.01),
        "dead_experts": np.array([1, 0, 0]),
        "routing_entropy": np.full(3, 1.2),
        "residual_norm": np.array([1.0, 2.0, 3.0]) * step,
        "max_bias": np.full(3, 0.1),
        "min_bias": np.full(3, -0.1),
        "grad_norms": {"matrix": spoilt, "vector": np.float32(0)},
        "update_norms": {"matrix": spoilt, "vector": np.float32(0)},
        "skipped": int(step >= 20),
        "rollbacks": 0,
        "mfu": 0.25,
    }


@pytest.fixture(params=["unroll", "scan"])
def folder(request, tmp_path):
    """A run directory with metrics and no weights; bias of expert e in layer l is 10 l + e."""
    model = Model(
        vocab_size=64,
        hidden_size=16,
        num_layers=3,
        expert_width=8,
        eos_id=1,
        attention=Attention(heads=2, kv_heads=1, head_dim=8),
        router=Router(experts=4, width=8),
        layers=request.param,
    )
    train = Train(steps=40, batch_size=2, sequence_length=8)
    experiment = Experiment("a <b> & c", model, train=train, optim=Optim(warmup_steps=5))
    workdir.claim(experiment, tmp_path)
    workdir.check_data(tmp_path, {"heldout": {"documents": 7}})
    workdir.record_environment(tmp_path)
    numbers = 10.0 * np.arange(3)[:, None] + np.arange(5)
    biases = {path: numbers[np.array(d.layers)] for path, d in bias_declarations(model).items()}
    writer = metrics.Writer(tmp_path, 0)
    for step in range(0, 41, 10):
        if step:
            record = {"loss": 4 / step, "load_entropy": np.full(3, 0.9), **explained(step)}
            writer(step, {**record, "tokens_per_second": 9})
        load = np.full((3, 4), 0.25)
        evaluation = {"heldout_bits_per_byte": 3 - step / 40, "heldout_loss": 2.0}
        writer(step, {**evaluation, "heldout_load": load, "biases": biases})
    writer.close()
    return tmp_path


def test_a_run_is_read_as_it_was_written(folder):
    run = run_lib.read(folder)
    assert run.load.shape == (3, 4)
    np.testing.assert_array_equal(run.biases, 10.0 * np.arange(3)[:, None] + np.arange(4))
    results = run.results
    assert results["held-out bits per byte, at the start"] == 3
    assert results["held-out bits per byte, at the end"] == 2
    assert results["tokens trained on"] == 40 * 2 * 8
    assert run_lib.changed_fields(run.experiment)["model.router.experts"] == 4
    assert "optim.b1" not in run_lib.changed_fields(run.experiment)


def test_the_page_stands_alone_and_says_what_it_should(folder):
    run = run_lib.read(folder)
    out = page.write(run, folder / "report.html", {"More": {"thing": 0.5, "other": None}})
    text = out.read_text()
    assert "2.000 bits per byte on 7 held-out documents after 40 steps" in text
    assert "a &lt;b&gt; &amp; c" in text and "<b>" not in text
    assert json.loads((folder / "environment.json").read_text())[0]["command"] in text
    assert text.count("<svg") == 12
    for heading in (
        "Share of the most and the least loaded expert",
        "Dead experts",
        "Norm of the residual stream",
        "Gradient norms",
        "Update norms",
        "Steps not taken",
        "Range of the balancing biases",
    ):
        assert f"<h2>{heading}" in text
    assert "model FLOPs utilisation</th><td>0.25" in text
    assert "prefers-color-scheme" in text or "light-dark(" in text
    assert "width=device-width" in text
    for foreign in ("http://cdn", "https://", "<script", "<link", "src="):
        assert foreign not in text.replace('xmlns:xlink="http://www.w3.org/1999/xlink"', "")


def test_a_run_with_numbers_that_are_none_has_a_page(folder):
    records = metrics.read(folder)
    records[-1] |= {"heldout_bits_per_byte": None, "heldout_loss": None}
    records[-1]["heldout_load"][0][0] = None
    records[-1]["biases"] = {
        path: np.full(np.shape(value), None).tolist()
        for path, value in records[-1]["biases"].items()
    }
    records[-2]["loss"] = None
    (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    run = run_lib.read(folder)
    assert run.results["training loss, last"] is None
    text = page.write(run, folder / "report.html").read_text()
    assert "no number of bits per byte" in text


def test_a_run_of_before_such_metrics_has_a_page_still(folder):
    known = {"step", "seconds", "loss", "load_entropy", "tokens_per_second"}
    records = [
        {k: v for k, v in r.items() if "loss" not in r or k in known} for r in metrics.read(folder)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    assert page.write(run_lib.read(folder), folder / "report.html").read_text().count("<svg") == 4


def test_figures_are_well_formed_and_take_the_ink_of_the_page():
    curves = [1, 2, 3], [3.0, None, 1.0]
    drawn = [
        figures.losses(curves, ([0, 3], [3.0, 1.0])),
        figures.losses(([], []), ([0], [3.0])),
        figures.load_entropy([1, 2], np.random.default_rng(0).random((2, 12))),
        figures.heatmap("load", np.full((40, 16), 1 / 16), "share", 1 / 16),
        figures.by_layer("entropy", [1, 2], np.ones((2, 12)), "nats"),
        figures.ranges("loads", [1, 2], np.zeros((2, 12)), np.ones((2, 12)), "share", 1 / 16),
        figures.depth([7], np.ones((1, 40))),
    ]
    for svg in drawn:
        ET.fromstring(svg)
        assert "currentColor" in svg and figures.INK not in svg
        assert 'width="' not in svg.split(">")[0]


def test_figures_are_reproducible():
    curves = ([1, 2], [2.0, 1.0]), ([0, 2], [2.0, 1.0])
    assert figures.losses(*curves) == figures.losses(*curves)


def test_smoothing_is_a_trailing_mean():
    np.testing.assert_allclose(figures.smooth(np.array([4.0, 2, 0, 6]), 2), [4, 3, 1, 3])
    gap = np.array([4.0, np.nan, np.nan, 6, 2])
    np.testing.assert_allclose(figures.smooth(gap, 2), [4, 4, np.nan, 6, 4])


def test_nothing_to_report_is_said(tmp_path):
    with pytest.raises(UserError, match="no config.json"):
        run_lib.read(tmp_path)
    workdir.claim(dataclasses.replace(Experiment(), name="x"), tmp_path / "run")
    with pytest.raises(UserError, match="nothing to report"):
        run_lib.read(tmp_path / "run")
