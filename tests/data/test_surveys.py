import numpy as np
import pytest

from zaya_jax.data import surveys
from zaya_jax.data.readers import Document, Rules
from zaya_jax.data.surveys import cached_survey

MODULES = [
    Document(f"m{i}.py", f'"""Number {i}."""\n\ndef f():\n    "Does it."\n') for i in range(9)
]


@pytest.fixture
def library(monkeypatch):
    """A standard library of a few modules, and how often it is surveyed."""
    modules, counted = list(MODULES), []
    monkeypatch.setattr("zaya_jax.data.sources.read_stdlib", lambda intake: iter(modules))
    monkeypatch.setitem(surveys.sources.BUILT_IN, "stdlib", lambda intake: iter(modules))
    survey = surveys.survey

    def count(source, *args):
        counted.append(source)
        return survey(source, *args)

    monkeypatch.setattr(surveys, "survey", count)
    return modules, counted


def same(a, b):
    return a.info == b.info and all(map(np.array_equal, a[1:], b[1:]))


def test_a_derived_source_is_surveyed_once(library, tmp_path):
    modules, counted = library
    first = cached_survey("stdlib-docs", Rules(), tmp_path)
    assert first.info.documents == 9 and counted == ["stdlib-docs"]
    assert same(cached_survey("stdlib-docs", Rules(), tmp_path), first) and len(counted) == 1
    modules[3] = Document("m3.py", '"""Another."""')
    other = cached_survey("stdlib-docs", Rules(), tmp_path)
    assert len(counted) == 2 and other.info.sha256 != first.info.sha256


def test_code_that_changed_is_asked_again(library, tmp_path, monkeypatch):
    _, counted = library
    cached_survey("stdlib-docs", Rules(), tmp_path)
    changed = tmp_path / "stdlib_docs.py"
    changed.write_text("# another")
    monkeypatch.setattr(surveys.stdlib_docs, "__file__", str(changed))
    cached_survey("stdlib-docs", Rules(), tmp_path)
    assert len(counted) == 2


def test_a_damaged_survey_is_made_again(library, tmp_path):
    first = cached_survey("stdlib-docs", Rules(), tmp_path)
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:100])
    with pytest.warns(UserWarning, match="surveying again: .*stdlib-docs.* is damaged"):
        assert same(cached_survey("stdlib-docs", Rules(), tmp_path), first)
    assert same(cached_survey("stdlib-docs", Rules(), tmp_path), first)


def test_of_other_sources_nothing_is_kept(folder, tmp_path):
    cached_survey(str(folder), Rules(), tmp_path / "cache")
    assert not (tmp_path / "cache").exists()
