"""A page is made of what is there, and says what is not."""

import json
import shutil

import pytest
from absl import flags

from tests.report import fake
from zaya_jax.errors import UserError
from zaya_jax.report import cli, compare, html, run
from zaya_jax.sweep import record
from zaya_jax.train import metrics, workdir

pytestmark = pytest.mark.usefixtures("undrawn")


@pytest.fixture
def folder(run_folder, tmp_path):
    """A copy of a finished run, to be spoilt."""
    return shutil.copytree(run_folder, tmp_path / "run")


def words(*folders):
    return html.render(cli.of(folders))


def test_a_line_that_was_cut_off_is_left_out_and_told(folder):
    file = folder / workdir.METRICS
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) * 2 // 3])
    text = words(folder)
    assert "lines of metrics.jsonl were cut off; left out" in text
    assert "Under way, or stopped: " in text and "of 400 steps were told of so far" in text


def test_a_run_that_was_stopped_in_its_last_evaluation_is_not_finished(folder):
    file = folder / workdir.METRICS
    lines = file.read_text().splitlines(keepends=True)
    assert json.loads(lines[-1])["step"] == 400 and "heldout_loss" in lines[-1]
    file.write_text("".join(lines[:-1]))
    found = run.read(folder)
    assert found.step == 400 and not found.finished
    assert "400 of 400 steps were told of so far, but not the last evaluation." in words(folder)


def test_a_cut_at_any_place_has_a_page(folder):
    file = folder / workdir.METRICS
    whole = file.read_bytes()
    for share in range(0, 10):
        file.write_bytes(whole[: len(whole) * share // 10])
        assert "steps" in words(folder)


def test_nothing_but_a_config_has_a_page(folder):
    for file in folder.iterdir():
        if file.name != workdir.CONFIG:
            file.unlink()
    text = words(folder)
    for said in (
        "no evaluation on held-out text yet",
        "There is no metrics.jsonl yet.",
        "There is no environment.json.",
        "Nothing was evaluated yet.",
    ):
        assert said in text


def test_training_lines_without_an_evaluation_have_a_page(folder):
    records = [r for r in metrics.read(folder) if "loss" in r]
    (folder / workdir.METRICS).write_text("".join(json.dumps(r) + "\n" for r in records))
    text = words(folder)
    assert "Nothing was evaluated yet." in text and "Balance of the experts over time" in text


def test_a_config_of_another_version_is_shown_without_what_needs_it(folder):
    config = json.loads((folder / workdir.CONFIG).read_text())
    config["model"]["router"]["temperature"] = 0.5
    workdir.write_json(folder / workdir.CONFIG, config)
    text = words(folder)
    assert "not one of this version" in text and "model.router.temperature" in text
    assert "Load of each expert" in text and "KV cache" not in text


def test_a_damaged_record_of_starts_is_left_out(folder):
    (folder / workdir.ENVIRONMENT).write_text("[{")
    (folder / workdir.DATA).write_text('["not", "an object"]')
    text = words(folder)
    assert "environment.json is not JSON" in text and "data.json is not what a run writes" in text


def test_half_written_runs_can_be_compared(folder, run_folder, tmp_path):
    shutil.rmtree(tmp_path / "empty", ignore_errors=True)
    (tmp_path / "empty").mkdir()
    shutil.copy(folder / workdir.CONFIG, tmp_path / "empty")
    other = fake.change(fake.BASE, {"balance.rate": 0.5})
    workdir.write_json(tmp_path / "empty" / workdir.CONFIG, fake.config.to_dict(other))
    page = compare.of_runs([run_folder, tmp_path / "empty"])
    assert "no number" in html.render(page)
    assert any("Nothing was evaluated yet" in w for w in page.results["warnings"])


def test_runs_of_which_none_has_a_number_have_a_page(folder, tmp_path):
    (folder / workdir.METRICS).unlink()
    assert "No arm has held-out bits per byte yet." in words(folder, folder)


def test_a_sweep_without_trials_or_runs_has_a_page(arms_folder, search_folder, tmp_path):
    for source in (arms_folder, search_folder):
        bare = tmp_path / source.name
        bare.mkdir()
        shutil.copy(source / record.SWEEP, bare)
        assert "There is no trials.json yet" in words(bare)
        shutil.copy(source / record.TRIALS, bare)
        assert "cannot be read" in words(bare)
        (bare / record.SWEEP).unlink()
        assert "There is no sweep.json." in words(bare)


@pytest.mark.parametrize("content", [None, "{"])
def test_a_directory_that_is_no_run_is_an_error(tmp_path, content):
    if content is not None:
        (tmp_path / workdir.CONFIG).write_text(content)
    with pytest.raises(UserError, match="no config.json" if content is None else "not JSON"):
        run.read(tmp_path)
    with pytest.raises(UserError, match="no config.json"):
        cli.of([tmp_path / "not_there"])


def test_records_of_trials_that_cannot_be_read_are_an_error(tmp_path):
    (tmp_path / record.TRIALS).write_text('[{"number": 0, "colour": "red"}]')
    with pytest.raises(UserError, match="cannot be read"):
        cli.of([tmp_path])


def report(monkeypatch, capsys, **options):
    """Runs the verb with these options; what it printed."""
    values = flags.FlagValues()
    for name in ("workdir", "out", "json"):
        flags.DEFINE_string(name, options.get(name), "", flag_values=values)
    values(["report"])
    monkeypatch.setattr(cli.options, "FLAGS", values)
    cli.main([])
    return capsys.readouterr().out


def test_the_verb_writes_where_it_is_told_and_what_it_printed(
    run_folder, tmp_path, monkeypatch, capsys
):
    out = tmp_path / "pages" / "one.html"
    names = {"workdir": str(run_folder), "out": str(out), "json": str(tmp_path / "one.json")}
    said = report(monkeypatch, capsys, **names)
    assert f"report: {out}" in said and "held-out bits per byte, at the end" in said
    assert out.exists() and out.with_suffix(".md").exists()
    assert list((tmp_path / "pages" / "one_files").glob("*.svg"))
    written = json.loads((tmp_path / "one.json").read_text())
    assert written["report"] == str(out) and written["steps"] == 400


def test_the_page_of_several_runs_goes_where_they_share_a_folder(
    run_folder, tmp_path, monkeypatch, capsys
):
    for name in ("a", "b"):
        shutil.copytree(run_folder, tmp_path / name)
    said = report(monkeypatch, capsys, workdir=f"{tmp_path / 'a'},{tmp_path / 'b'}")
    assert f"report: {tmp_path / 'report.html'}" in said
    assert (tmp_path / "report.md").exists()


def test_a_place_that_cannot_be_written_is_an_error(run_folder, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write there"):
        report(monkeypatch, capsys, workdir=str(run_folder), out=str(tmp_path / "file" / "x.html"))
