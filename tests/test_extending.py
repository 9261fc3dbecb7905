"""docs/extending.md: its code, word for word, is what these tests run, from outside the package."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.train.conftest import corpus, experiment  # noqa: F401  # fixtures
from zaya_jax import cli, config, load
from zaya_jax.config import ConfigError
from zaya_jax.config.kinds import ATTENTION_KINDS, BALANCERS, ROUTER_KINDS, find
from zaya_jax.errors import UserError
from zaya_jax.model import cache as caches
from zaya_jax.model.attention import Attention
from zaya_jax.model.functional import declarations, init, merge

PAGE = Path(__file__).parents[1] / "docs" / "extending.md"
BLOCK = re.compile(r"In `(my_\w+)\.py`.*?```python\n(.*?)```", re.DOTALL)
FLAG = re.compile(r"--config\.([\w.]+)=(my_\w+:\w+)")


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The modules of the page, importable; and the flags that it names them by."""
    text = PAGE.read_text()
    folder = tmp_path_factory.mktemp("mine")
    for name, code in BLOCK.findall(text):
        (folder / f"{name}.py").write_text(code)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        yield dict(FLAG.findall(text))
        for path in folder.glob("my_*.py"):
            sys.modules.pop(path.stem, None)


def chosen(experiment, flags):  # noqa: F811
    """The experiment with the fields that the flags name."""
    settings = config.to_config_dict(experiment)
    for field, value in flags.items():
        settings.update_from_flattened_dict({field: value})
    return config.freeze(settings)


def test_the_kinds_of_the_page_train_through_the_command_line(
    written,
    experiment,  # noqa: F811
    tmp_path,
    capsys,
):
    assert set(written) == {"model.router.kind", "model.attention.kind", "balance.kind"}
    plain = config.to_config_dict(experiment).to_json_best_effort()
    file, run = tmp_path / "tiny.py", tmp_path / "run"
    file.write_text(
        "import json\nfrom zaya_jax import config\n\n\ndef get_config():\n"
        f"    return config.to_config_dict(config.from_dict(json.loads({plain!r})))\n"
    )
    flags = [f"--config.{field}={value}" for field, value in written.items()]
    steps = ["--config.train.steps=2", "--config.optim.warmup_steps=1"]
    assert cli.main(["train", f"--config={file}", f"--workdir={run}", *flags, *steps]) == 0
    told = "".join(capsys.readouterr())
    assert "my_attention:Plain with" in told and "(my_router:cosine, top-1" in told
    assert "balance: my_balance:deadband" in told
    assert re.search(r"a token costs [\d.]+ MFLOPs to train on, and 256 bytes of keys", told)

    # What was trained is found again from the run's own config, and has moved.
    opened = load.load(run)
    sharpness = np.asarray(opened.params["layers.0.router.sharpness"])
    assert sharpness.shape == (5,) and np.isfinite(sharpness).all() and (sharpness != 1).any()
    assert not any("router.down" in path for path in opened.params)


@pytest.mark.slow
def test_other_processes_find_a_kind_on_the_path(experiment, tmp_path):  # noqa: F811
    """As one would type it: to train, to read the run, to export it."""
    code = dict(BLOCK.findall(PAGE.read_text()))["my_router"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "my_router.py").write_text(code)
    saved, run = tmp_path / "config.json", tmp_path / "run"
    plain = config.to_dict(experiment)
    plain["model"]["router"]["kind"] = "my_router:cosine"
    plain["train"] |= {"steps": 2, "eval_every": 2}
    plain["optim"]["warmup_steps"] = 1
    saved.write_text(json.dumps(plain))

    def launch(*arguments, path=str(tmp_path / "mine")):
        return subprocess.run(
            [sys.executable, "launch.py", *arguments],
            cwd=PAGE.parents[1],
            env={**os.environ, "PYTHONPATH": path},
            capture_output=True,
            text=True,
        )

    trained = launch("train", f"--config=experiments/saved.py:{saved}", f"--workdir={run}")
    assert trained.returncode == 0, trained.stderr
    told = launch("report", f"--workdir={run}")
    assert told.returncode == 0, told.stderr
    assert "my_router:cosine" in (run / "report.html").read_text()
    exported = launch("export", f"--model={run}", f"--out={tmp_path / 'out'}")
    assert exported.returncode == 2
    assert "model.router.kind = 'my_router:cosine': only 'mlp_eda' exists" in exported.stderr
    lost = launch("export", f"--model={run}", f"--out={tmp_path / 'out'}", path="")
    assert lost.returncode == 2 and "there is no module 'my_router'; set PYTHONPATH" in lost.stderr


def test_an_attention_kind_of_the_page_decodes_as_it_reads(written, experiment):  # noqa: F811
    kinds = {field: value for field, value in written.items() if field.startswith("model.")}
    model = chosen(experiment, kinds).model
    params, biases = init(model, jax.random.key(0))
    ids = jnp.asarray(np.random.default_rng(0).integers(3, 300, (2, 6)))

    @jax.jit
    def both(params):
        decoder = merge(model, params, biases)
        out = decoder(ids[:, :5], cache=caches.empty(model, 2, 6))
        step = decoder(ids[:, 5:], cache=out.cache)
        return decoder(ids).hidden[:, -1], step.hidden[:, 0]

    whole, step = both(params)
    np.testing.assert_allclose(whole, step, atol=1e-5)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("model.router.kind", "cosine", r"'cosine'; there are: mlp_eda, mlp, linear"),
        ("model.router.kind", "mpl", r"'mpl'; did you mean mlp\?"),
        ("model.attention.kind", "mhla", r"'mhla'; did you mean"),
        ("balance.kind", "my_balanse:deadband", r"no module 'my_balanse'; set PYTHONPATH"),
        ("model.router.kind", "my_router:cosin", r"no 'cosin'; expected module:function"),
        ("model.router.kind", ":cosine", r"expected module:function"),
        ("model.router.kind", ".my_router:cosine", r"expected module:function"),
        ("model.router.kind", ".:cosine", r"expected module:function"),
        ("model.router.kind", "my..router:cosine", r"expected module:function"),
        ("model.router.kind", "my_router:", r"expected module:function"),
        ("model.router.kind", "my_router:__name__", r"a function or a class there, found 'my_r"),
    ],
)
def test_a_kind_that_is_not_there_is_refused_when_the_config_is_frozen(
    written,
    experiment,  # noqa: F811
    field,
    value,
    message,
):
    with pytest.raises(ConfigError, match=f"{field} = .*{message}"):
        chosen(experiment, {field: value})


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("import json\njson.nothing", r"AttributeError: module 'json' has no attribute 'nothing'"),
        ("def kind(:", r"SyntaxError: .*\(broken\.py, line 1\)"),
        ("import zzz.deep", r"ModuleNotFoundError: No module named 'zzz'"),
        ("1 / 0", r"ZeroDivisionError: division by zero"),
    ],
)
def test_a_module_that_fails_when_imported_is_told_with_its_own_error(
    experiment,  # noqa: F811
    tmp_path,
    monkeypatch,
    code,
    told,
):
    (tmp_path / "broken.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(
        ConfigError,
        match=rf"balance\.kind = 'broken:kind': the import of 'broken' failed with {told}",
    ):
        chosen(experiment, {"balance.kind": "broken:kind"})


def test_every_built_in_name_stands_for_something():
    for kinds in (ATTENTION_KINDS, ROUTER_KINDS, BALANCERS):
        assert all(callable(find(kinds, name)) for name in kinds)


def few(param, x, state, model):
    return x @ param("out", (model.hidden_size, 2), ("embed", None)), None


def twice(param, x, state, model):
    out = param("out", (model.hidden_size, 5), ("embed", "experts"))
    return x @ (out + param("out", (model.hidden_size, 5), ("embed", "experts"))), None


def reserved(param, x, state, model):
    return x @ param("biases", (model.hidden_size, 5), ("embed", "experts")), None


def namesakes(param, x, state, model):
    """A second parameter of another name, but the same in a Hugging Face file."""
    shape, axes = (model.hidden_size, 5), ("embed", "experts")
    return x @ (param("out", shape, axes) - param("other", shape, axes, hf="out")), None


def alone(param, x, state, model):
    return x @ param("out", (model.hidden_size, 5), ("embed", "experts"))


def stateful(param, x, state, model):
    """Depth averaging of one's own: the first layer has no weight for a state."""
    logits = x @ param("out", (model.hidden_size, 5), ("embed", "experts"))
    if state is not None:
        logits = logits + state * param("depth", (5,), ("experts",))
    return logits, logits


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("few", r"logits of shape \(1, 2\); expected \(1, 5\)"),
        ("twice", r"names 'out' twice"),
        ("reserved", r"'biases' is no free name"),
        ("alone", r"returns \w*Tracer\w*; expected \(logits, state\), or Fused"),
    ],
)
def test_mistakes_of_a_router_kind_are_told_when_the_network_is_built(
    experiment,  # noqa: F811
    kind,
    message,
):
    with pytest.raises(UserError, match=f"router kind '.*{message}"):
        declarations(chosen(experiment, {"model.router.kind": f"{__name__}:{kind}"}).model)


class Forgetful(Attention):
    def __call__(self, x, tokens, cache=None):
        return x, cache


class Idle(Attention):
    @staticmethod
    def empty_cache(model, batch, capacity):
        return None


@pytest.mark.parametrize(
    ("field", "kind", "message"),
    [
        ("attention", "Forgetful", "it has no empty_cache of its own"),
        ("attention", "Idle", "it has no __call__ of its own"),
        ("attention", "few", "expected a subclass of zaya_jax.model.attention.Attention"),
        ("attention", "UserError", "expected a subclass"),
        ("router", "Idle", "expected a function"),
    ],
)
def test_what_is_no_kind_is_told_when_the_network_is_built(
    experiment,  # noqa: F811
    field,
    kind,
    message,
):
    model = chosen(experiment, {f"model.{field}.kind": f"{__name__}:{kind}"}).model
    with pytest.raises(UserError, match=f"model.{field}.kind = '.*:{kind}': {message}"):
        declarations(model)


def test_the_logits_of_the_page_are_made_in_the_dtype_of_the_softmax(written, experiment):  # noqa: F811
    def logits(numerics):
        settings = {**written, "model.activation_dtype": "bfloat16", "model.numerics": numerics}
        model = chosen(experiment, settings).model
        x = jax.random.normal(jax.random.key(0), (64, model.hidden_size), jnp.bfloat16)

        def param(name, shape, axes, init=None):
            return jax.random.normal(jax.random.key(1), shape)

        return find(ROUTER_KINDS, model.router.kind)(param, x, None, model)[0]

    exact = logits("training")
    assert exact.dtype == jnp.float32 and logits("reference").dtype == jnp.bfloat16
    assert (exact != exact.astype(jnp.bfloat16)).mean() > 0.9  # not rounded on the way


@pytest.mark.parametrize("layers", ["unroll", "scan"])
def test_two_parameters_of_one_name_are_refused(experiment, layers):  # noqa: F811
    kind = {"model.router.kind": f"{__name__}:namesakes", "model.layers": layers}
    with pytest.raises(UserError, match=r"router\.other and .*router\.out are both named 'mlp"):
        declarations(chosen(experiment, kind).model)


def test_a_router_kind_can_carry_a_state_over_depth(experiment):  # noqa: F811
    kind = {"model.router.kind": f"{__name__}:stateful", "model.num_layers": 2}
    model = chosen(experiment, kind).model
    found = declarations(model)
    assert "layers.1.router.depth" in found and "layers.0.router.depth" not in found
    assert found["layers.1.router.out"].group == "matrix"
    assert found["layers.1.router.out"].full_name(1) == "model.layers.1.mlp.gate.out"
    scanned = dataclasses.replace(model, layers="scan")
    assert declarations(scanned)["stacks.0.router.depth"].shape == (1, 5)
