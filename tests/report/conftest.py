import pytest

from tests.report import fake
from zaya_jax.report import draw, heatmaps


@pytest.fixture
def undrawn(monkeypatch):
    """Pages without drawings, for tests of their words."""
    for module in (draw, heatmaps):
        monkeypatch.setattr(module, "canvas", lambda *args, **kwargs: "<svg></svg>")


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory):
    """A finished run."""
    folder = tmp_path_factory.mktemp("run") / "run"
    fake.write_run(folder, fake.BASE)
    return folder


@pytest.fixture(scope="session")
def arms_folder(tmp_path_factory):
    """A sweep over arms with claims."""
    return fake.write_arms(tmp_path_factory.mktemp("arms") / "arms")


@pytest.fixture(scope="session")
def search_folder(tmp_path_factory):
    """A random search of 12 trials."""
    return fake.write_search(tmp_path_factory.mktemp("search") / "search", 12)
