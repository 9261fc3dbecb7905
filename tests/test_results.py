"""The studies behind docs/results: pages, the index, and sweeps that fail or do not end."""

import runpy
import subprocess
from pathlib import Path

import pytest

from tests.report import fake
from zaya_jax import cli, config, results

ROOT = Path(__file__).parents[1]


@pytest.fixture
def sweeps(tmp_path, monkeypatch):
    """The sweeps of two studies, as if they had been run; and what their commands return."""
    for name in ("recall", "cca"):
        fake.write_arms(tmp_path / "runs" / name)
    returned = {}

    def run(command, check):
        (workdir,) = (word for word in command if word.startswith("--workdir="))
        name = Path(workdir.removeprefix("--workdir=")).name
        assert f"--config={results.STUDIES[name]}" in command
        return subprocess.CompletedProcess(command, returned.get(name, 0))

    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(results.subprocess, "run", run)
    return returned


@pytest.fixture
def rerun(tmp_path):
    """`rerun("recall,cca")` gives the exit status."""
    places = [f"--workdir={tmp_path / 'runs'}", f"--out={tmp_path / 'pages'}"]
    return lambda only: cli.main(["results", f"--only={only}", *places])


def index(tmp_path):
    return (tmp_path / "pages" / "README.md").read_text()


def test_every_study_is_a_sweep_of_at_least_three_seeds():
    for file in results.STUDIES.values():
        sweep = config.freeze_sweep(runpy.run_path(str(ROOT / file))["get_config"]())
        assert len(sweep.seeds) >= 3
    files = {str(path.relative_to(ROOT)) for path in (ROOT / "experiments/ablations").glob("*.py")}
    assert set(results.OUTLOOK) == set(results.STUDIES)
    assert files - set(results.STUDIES.values()) == {"experiments/ablations/base.py"}


def test_a_study_rerun_takes_its_place_in_the_index_and_no_other(sweeps, rerun, tmp_path):
    assert rerun("cca") == 0
    assert rerun("recall") == 0
    text = index(tmp_path)
    assert text.startswith(results.INTRODUCTION)
    assert text.index("## [recall](recall.md)") < text.index("## [cca](cca.md)")
    assert "| claim | verdict |" in text and "minutes together; the longest took" in text
    assert rerun("cca") == 0
    assert index(tmp_path) == text
    page = (tmp_path / "pages" / "recall.md").read_text()
    assert "What a larger run would settle" in page and "would settle" in text
    assert "## Claims" in page and (tmp_path / "pages" / "recall_files").is_dir()


def test_a_failed_trial_keeps_no_study_back(sweeps, rerun, tmp_path):
    sweeps["recall"] = 1
    assert rerun("recall,cca") == 1
    assert "[recall]" in index(tmp_path) and "[cca]" in index(tmp_path)


def test_a_sweep_that_did_not_end_ends_it(sweeps, rerun, tmp_path):
    sweeps["recall"] = 143
    assert rerun("recall,cca") == 143
    assert not (tmp_path / "pages").exists()


def test_an_unknown_study_is_named(rerun, capsys):
    assert rerun("recal") == 2
    assert "no study 'recal'; did you mean recall?" in capsys.readouterr().err
