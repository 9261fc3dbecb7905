"""`pretrain_1` in minutes on two CPU cores: `experiments/zaya1_tiny.py`, as a stage."""

from experiments import zaya1_tiny


def get_config():
    """From nothing, on Python's own sources."""
    config = zaya1_tiny.get_config()
    config.name = "pretrain_tiny"
    return config
