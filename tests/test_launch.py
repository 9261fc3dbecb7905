"""The command line: verbs, help, mistakes and their exit status."""

import os
import runpy
import signal
import subprocess
import sys
import types
import warnings
from pathlib import Path

import pytest
from absl import flags

from zaya_jax import cli, options
from zaya_jax.errors import UserError

ROOT = Path(__file__).parents[1]

CONFIG = """
from ml_collections import ConfigDict

def get_config(size="8"):
    return ConfigDict({
        "train": {"steps": 100, "rate": 0.5},
        "model": {"router": {"kind": "mlp"}, "size": int(size), "kernels": (2, 2)},
    })
"""


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "experiment.py"
    path.write_text(CONFIG)
    return str(path)


@pytest.fixture
def launch(monkeypatch, capsys):
    """`launch(*argv)` runs a made-up verb `make` and returns status, stdout, stderr.

    `launch.behaviour` may be replaced; it is called in place of the verb's main.
    """
    verb = types.ModuleType("made_up_verb", "Makes things.\n\nMore about it.")

    def define_flags():
        options.config()
        options.workdir("runs/x")
        options.from_("what to make it of")
        options.json()
        flags.DEFINE_enum("layout", "native", ["native", "legacy"], "which one")
        flags.DEFINE_bool("stream", True, "print as it comes")

    def run(*argv):
        verb.main = lambda argv: run.behaviour()
        status = cli.main(argv, {"make": cli.Verb(verb.__name__, "makes it", ("make --x=1",))})
        printed = capsys.readouterr()
        return status, printed.out, printed.err

    verb.define_flags = define_flags
    run.behaviour = lambda: None
    monkeypatch.setitem(sys.modules, verb.__name__, verb)
    return run


@pytest.mark.parametrize("argv", [(), ("help",), ("--help",), ("-h",)])
def test_without_a_verb_the_verbs_are_listed(launch, argv):
    status, out, _ = launch(*argv)
    assert status == 0
    assert "make" in out and "makes it" in out


@pytest.mark.parametrize("argv", [("help", "make"), ("make", "--help"), ("make", "-h", "--zz=1")])
def test_help_of_a_verb_shows_its_options_and_examples(launch, argv):
    status, out, _ = launch(*argv)
    assert status == 0
    for expected in (
        "Makes things.",
        "--config=FILE",
        "--layout=native|legacy\n      which one (default: native)",
        "--[no]stream",
        "(default: runs/x)",
        "python launch.py make --x=1",
    ):
        assert expected in out
    assert "verbosity" not in out  # absl's own flags stay out of the way


def test_a_verb_sees_its_options_and_typed_overrides(launch, config):
    seen = {}
    launch.behaviour = lambda: seen.update(
        config=options.require("config"), source=flags.FLAGS["from"].value
    )
    # Overrides may stand before --config, and "--config FILE" is as good as "--config=FILE".
    arguments = ["--config.train.steps=5", "--config.train.rate=1", "--config.model.kernels=(3,4)"]
    status, _, err = launch("make", *arguments, "--config", config + ":16", "--from=x")
    assert (status, err) == (0, "")
    assert seen["source"] == "x"
    assert seen["config"].train.to_dict() == {"steps": 5, "rate": 1.0}
    assert seen["config"].model.kernels == (3, 4)
    assert seen["config"].model.size == 16


def test_flags_do_not_outlive_the_verb(launch, config):
    before = set(flags.FLAGS)
    for _ in range(2):
        assert launch("make", f"--config={config}", "--config.train.steps=5")[0] == 0
    assert set(flags.FLAGS) == before


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (("mkae",), "no verb 'mkae'; did you mean make?"),
        (("zzz",), "no verb 'zzz'; there are: make"),
        (("--layout=legacy", "make"), "--layout=legacy: options follow the verb: python launch.py"),
        (("--layout", "legacy", "make"), "--layout: options follow the verb"),
        (("help", "--seed=1", "make"), "--seed=1: options follow the verb"),
        (("make", "--layot=legacy"), "no option --layot; did you mean --layout?"),
        (("make", "--layout=new"), "--layout=new: value should be one of <native|legacy>"),
        (("make", "stray"), "unexpected argument 'stray'"),
        (("make", "--config=nowhere.py"), "--config=nowhere.py: no such file"),
        (("make", "--config.train.steps=1"), "overrides a field of --config, not given"),
    ],
)
def test_mistakes_are_told_in_one_line(launch, argv, told):
    status, out, err = launch(*argv)
    assert status == 2
    assert told in err and len(err.splitlines()) == 1 and not out


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("model.roter.kind=x", "no field config.model.roter; did you mean config.model.router?"),
        ("train.step=x", "no field config.train.step; did you mean config.train.steps?"),
        ("train.zzz=1", "no field config.train.zzz; there are: config.train.rate, config.train"),
        ("train.steps.x=1", "config.train.steps is a value, not a group of fields"),
        ("train.steps=many", "--config.train.steps=many: invalid literal for int()"),
    ],
)
def test_a_wrong_override_names_the_field(launch, config, override, told):
    status, _, err = launch("make", f"--config={config}", f"--config.{override}")
    assert status == 2
    assert told in err


def test_a_config_that_is_required_lists_the_experiments(launch, monkeypatch):
    monkeypatch.chdir(ROOT)
    launch.behaviour = lambda: options.require("config")
    status, _, err = launch("make")
    assert status == 2
    assert "--config is missing" in err and "experiments/zaya1_8b.py" in err


def test_exit_status(launch):
    launch.behaviour = lambda: 1
    assert launch("make")[0] == 1

    def raising(error):
        def behaviour():
            raise error

        return behaviour

    launch.behaviour = raising(UserError("field x is 3; accepted: 1, 2"))
    assert launch("make") == (2, "", "error: field x is 3; accepted: 1, 2\n")
    launch.behaviour = raising(KeyboardInterrupt())
    assert launch("make") == (130, "", "\ninterrupted\n")
    launch.behaviour = raising(ValueError("a bug"))
    with pytest.raises(ValueError, match="a bug"):
        launch("make")


def test_a_closed_pipe_is_no_bug():
    reads, writes = os.pipe()
    os.close(reads)
    command = [sys.executable, "launch.py", "help"]
    done = subprocess.run(
        command, cwd=ROOT, stdout=writes, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(writes)
    assert (done.returncode, done.stderr) == (141, "")


def test_warnings_are_one_line(launch):
    launch.behaviour = lambda: warnings.warn("mind the gap", stacklevel=1)
    before = warnings.formatwarning
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = (
            lambda *args, **kwargs: print(  # pytest has its own
                warnings.formatwarning(*args[:4]), file=sys.stderr, end=""
            )
        )
        assert launch("make") == (0, "", "warning: mind the gap\n")
    assert warnings.formatwarning is before


def test_json_is_written_or_the_reason_is_told(launch, tmp_path):
    launch.behaviour = lambda: options.write_json({"speed": 3})
    target = tmp_path / "new" / "record.json"
    assert launch("make", f"--json={target}")[0] == 0
    assert target.read_text() == '{\n  "speed": 3\n}\n'
    assert list(target.parent.iterdir()) == [target]
    status, _, err = launch("make", f"--json={target}/below.json")
    assert status == 2 and "cannot write" in err


@pytest.mark.parametrize("verb", cli.VERBS)
def test_every_verb_exists_and_explains_itself(verb, capsys):
    assert cli.main(["help", verb]) == 0
    out = capsys.readouterr().out
    assert cli.VERBS[verb].summary in out
    assert f"python launch.py {verb}" in out


def test_listing_the_verbs_imports_no_jax():
    code = (
        "import runpy, sys; sys.argv = ['launch.py']\n"
        "try: runpy.run_path('launch.py', run_name='__main__')\n"
        "except SystemExit as done: assert not done.code\n"
        "assert not {'jax', 'flax', 'torch'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "train" in done.stdout


def test_launch_returns_the_status_to_the_shell():
    done = subprocess.run(
        [sys.executable, "launch.py", "trian"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "did you mean train?" in done.stderr


def test_sigterm_ends_a_verb_as_an_exception_does(monkeypatch):
    monkeypatch.setattr(os, "environ", dict(os.environ))
    monkeypatch.setattr(cli, "main", lambda argv: signal.raise_signal(signal.SIGTERM))
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(ROOT / "launch.py"))["main"]()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert ended.value.code == 128 + signal.SIGTERM
