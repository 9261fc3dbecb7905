import json

import numpy as np
import pytest

from zaya_jax import cli
from zaya_jax.config import to_config_dict


@pytest.fixture
def config_file(experiment, tmp_path):
    """The test's experiment as a file with a get_config."""
    plain = to_config_dict(experiment).to_json_best_effort()
    file = tmp_path / "tiny.py"
    file.write_text(
        "import json\nfrom zaya_jax import config\n\n\ndef get_config():\n"
        f"    return config.to_config_dict(config.from_dict(json.loads({plain!r})))\n"
    )
    return file


def test_train_needs_a_workdir(config_file, capsys):
    assert cli.main(["train", f"--config={config_file}"]) == 2
    assert "--workdir is missing" in capsys.readouterr().err


def test_train_trains_and_says_what_next(config_file, tmp_path, capsys):
    run, record = tmp_path / "run", tmp_path / "out.json"
    arguments = [f"--config={config_file}", f"--workdir={run}", f"--json={record}"]
    logging = ["--config.train.log_every=2", "--config.train.log_loads=True"]
    assert cli.main(["train", *arguments, *logging]) == 0
    assert f"generate --model={run}" in capsys.readouterr().out
    assert json.loads(record.read_text())["step"] == 6
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    loads = np.array([line["load"] for line in lines if "loss" in line])
    assert loads.shape == (4, 1, 4)  # at steps 1, 2, 4, 6
    np.testing.assert_allclose(loads.sum(-1), 1, atol=1e-4)
    assert all(len(repr(share)) <= len("0.123456") for share in loads.ravel().tolist())
    start = json.loads((run / "environment.json").read_text())[0]
    assert start["command"].startswith("python launch.py train --config=")

    assert cli.main(["train", *arguments, "--config.optim.learning_rate=0.5"]) == 2
    assert "optim.learning_rate: 0.01 there, 0.5 here" in capsys.readouterr().err
