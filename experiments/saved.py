"""Any run again, exactly: reads a resolved config.

    python launch.py train --config=experiments/saved.py:runs/mine/config.json --workdir=runs/again
"""

import json

from zaya_jax import config


def get_config(path=None):
    """The experiment in the `config.json` of a run directory."""
    if path is None:
        raise config.ConfigError("--config=experiments/saved.py: expected saved.py:RUN/config.json")
    try:
        with open(path) as file:
            return config.to_config_dict(config.from_dict(json.load(file)))
    except (OSError, json.JSONDecodeError) as error:
        raise config.ConfigError(f"--config=experiments/saved.py:{path}: {error}") from None
