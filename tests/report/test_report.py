import html
import json
import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from zaya_jax.config import Attention, Experiment, Model, Optim, Router, Train
from zaya_jax.model.functional import bias_declarations
from zaya_jax.report import draw, figures, heatmaps, markdown, page
from zaya_jax.report import run as run_lib
from zaya_jax.report.content import Badge, Table, Text
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


def write(tmp_path, layers="scan"):
    """A run directory with metrics and no weights; bias of expert e in layer l is 10 l + e."""
    model = Model(
        vocab_size=64,
        hidden_size=16,
        num_layers=3,
        expert_width=8,
        eos_id=1,
        attention=Attention(heads=2, kv_heads=1, head_dim=8),
        router=Router(experts=4, width=8),
        layers=layers,
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


@pytest.fixture
def folder(tmp_path):
    return write(tmp_path)


@pytest.mark.parametrize("layers", ["unroll", "scan"])
def test_a_run_is_read_as_it_was_written(tmp_path, layers):
    run = run_lib.read(write(tmp_path, layers))
    steps, loads = run.loads()
    assert steps == [0, 10, 20, 30, 40] and loads.shape == (5, 3, 4)
    steps, biases = run.biases()
    np.testing.assert_array_equal(biases[-1], 10.0 * np.arange(3)[:, None] + np.arange(4))
    results = run.results
    assert results["held-out bits per byte, at the start"] == 3
    assert results["held-out bits per byte, at the end"] == 2
    assert results["tokens trained on"] == 40 * 2 * 8
    changed = run_lib.changed_fields(run.config)
    assert changed["model.router.experts"] == 4
    assert not {"optim.b1", "model.attention.conv_kernels"} & set(changed)
    assert not run.problems


def test_the_page_stands_alone_and_says_what_it_should(folder):
    run = run_lib.read(folder)
    out = page.write(run, folder / "report.html", {"More": {"thing": 0.5, "other": None}})
    text = out.read_text()
    assert "2.000 bits per byte on 7 held-out documents after 40 steps" in text
    assert "a &lt;b&gt; &amp; c" in text and "<b>" not in text
    assert html.escape(json.loads((folder / "environment.json").read_text())[0]["command"]) in text
    assert text.count("<svg") == 14
    for heading in (
        "Share of the most and the least loaded expert",
        "Dead experts",
        "Norm of the residual stream",
        "Gradient norms",
        "Update norms",
        "Steps not taken",
        "Range of the balancing biases",
        "Load of each expert over time",
        "Balancing biases over time",
    ):
        assert f"<h3>{heading}" in text
    assert "<h2>More</h2>" in text
    assert "model FLOPs utilisation</th><td>0.25" in text
    assert "KV cache bytes per token" in text
    assert "width=device-width" in text
    for foreign in ("http:", "https:", "<script", "<link", "src=", "url(http", "@import"):
        assert foreign not in text.replace("http://www.w3.org/", ""), foreign


def test_the_markdown_says_the_same_with_its_figures_beside_it(folder):
    (folder / "report_files").mkdir()
    (folder / "report_files" / "of-before.svg").write_text("<svg/>")
    page.write(run_lib.read(folder), folder / "report.html")
    text = (folder / "report.md").read_text()
    assert text.startswith("# a \\<b> & c\n")
    assert "2.000 bits per byte on 7 held-out documents" in text
    assert "| model FLOPs utilisation | 0.25 |" in text
    drawn = re.findall(r"!\[.*?\]\((report_files/.*?)\)", text)
    assert len(drawn) == 14 and len(set(drawn)) == 14
    assert {folder / name for name in drawn} == set((folder / "report_files").iterdir())
    for name in drawn:
        svg = (folder / name).read_text()
        ET.fromstring(svg)
        assert "currentColor" not in svg and "var(" not in svg and "background: #fff" in svg


def test_tables_and_marks_survive_markdown():
    rows = [("a|b_c", 1234567), ("two\nlines", Badge("agrees", "good"))]
    parts = [Table(rows, ("what", "value")), Text("mind *this*", "note")]
    written = "\n\n".join(markdown._parts(parts, "files", {}))
    assert written.splitlines() == [
        "| what | value |", "|---|---|", r"| a\|b\_c | 1,234,567 |",
        "| two<br>lines | **agrees** |", "", r"_mind \*this\*_",
    ]  # fmt: skip


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
    assert page.write(run_lib.read(folder), folder / "report.html").read_text().count("<svg") == 6


def test_figures_are_well_formed_and_take_the_colours_of_the_page():
    curves = [1, 2, 3], [3.0, None, 1.0]
    random = np.random.default_rng(0).random
    drawn = [
        figures.losses(curves, ([0, 3], [3.0, 1.0])),
        figures.losses(([], []), ([0], [3.0])),
        figures.load_entropy([1, 2], random((2, 12))),
        figures.by_layer("entropy", [1, 2], np.ones((2, 12)), "nats"),
        figures.ranges("loads", [1, 2], np.zeros((2, 12)), np.ones((2, 12)), "share", 1 / 16),
        figures.depth([7], np.ones((1, 40))),
        heatmaps.heatmap("load", np.full((40, 16), 1 / 16), "share", 1 / 16),
        heatmaps.over_time("load over time", [0, 5, 100], random((3, 40, 16)), "share", 0.5),
        heatmaps.over_time("one layer", [0, 1], random((2, 1, 1)), "share", 0.5),
    ]
    for svg in map(draw.on_page, drawn):
        ET.fromstring(svg)
        assert "currentColor" in svg and draw.INK not in svg
        assert not set(draw.COLOURS) & set(re.findall("#[0-9a-f]{6}", svg))
        assert 'width="' not in svg.split(">")[0]


def test_every_layer_of_a_deep_model_has_a_panel_over_time():
    svg = heatmaps.over_time("x", [0, 1], np.ones((2, 40, 16)), "share", 0.5)
    assert all(f"layer {layer}<" in svg for layer in range(40))


def test_colours_are_clear_at_the_centre_and_full_at_their_reach():
    found = heatmaps.colours(np.array([0.5, 1.0, 0.0, 9.0, np.nan]), centre=0.5, reach=0.5)
    assert found[:4, 3].tolist() == [0, 255, 255, 255]
    assert found[1].tolist() == found[3].tolist() != found[2].tolist()
    assert 0 < found[4, 3] < 255


def test_what_a_pointer_is_shown_is_written_as_text():
    def draw_it(axes):
        (line,) = axes.plot([1, 2])
        draw.tip(line, 'trial 1: a="b" <c>')

    root = ET.fromstring(draw.figure("tips", draw_it))
    titles = [node.text for node in root.iter() if node.tag.endswith("title")]
    assert 'trial 1: a="b" <c>' in titles


def test_figures_are_reproducible():
    curves = ([1, 2], [2.0, 1.0]), ([0, 2], [2.0, 1.0])
    assert figures.losses(*curves) == figures.losses(*curves)


def test_smoothing_is_a_trailing_mean():
    np.testing.assert_allclose(figures.smooth(np.array([4.0, 2, 0, 6]), 2), [4, 3, 1, 3])
    gap = np.array([4.0, np.nan, np.nan, 6, 2])
    np.testing.assert_allclose(figures.smooth(gap, 2), [4, 4, np.nan, 6, 4])
