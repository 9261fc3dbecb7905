import pytest

from zaya_jax import demo
from zaya_jax.config import freeze


@pytest.mark.parametrize(
    "text, python",
    [("x = 1\n", True), ("# nothing but words\n", False), ("def f(:\n", False), ("x\0", False)],
)
def test_what_counts_as_python(text, python):
    assert demo.is_python(text) is python


@pytest.mark.parametrize(
    "text, kept",
    [
        ("import os\n\ndef f():\n    pass\n\nclass A", "import os\n\ndef f():\n    pass\n\n"),
        ("def f(x):\n    y = [\n    1,\n]\n    retu", "def f(x):\n    y = [\n    1,\n]\n"),
        ("no line at all", ""),
    ],
)
def test_the_cut_end_of_a_sample_is_left_out(text, kept):
    assert demo.whole_statements(text) == kept


def test_the_demos_experiment_can_be_run(monkeypatch):
    from pathlib import Path
    from runpy import run_path

    file = Path(demo.__file__).parents[1] / "experiments" / "zaya1_tiny.py"
    experiment = freeze(run_path(str(file))["get_config"]())
    assert experiment.name == "zaya1_tiny"
    assert experiment.model.eos_id == 1  # of a tokenizer trained here
    longest = demo.SAMPLE_TOKENS + max(map(len, demo.PROMPTS))
    assert experiment.model.context_length >= longest
