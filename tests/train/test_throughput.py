import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

from zaya_jax.costs import flops_per_token
from zaya_jax.model.functional import active_parameter_count
from zaya_jax.train import throughput
from zaya_jax.train.throughput import Rate, peak_flops, peak_memory_bytes


def test_model_flops_are_those_of_active_weights_and_seen_keys(experiment):
    model = dataclasses.replace(experiment.model, num_layers=2)
    experiment = dataclasses.replace(experiment, model=model)
    a, S = experiment.model.attention, experiment.train.sequence_length
    weights = active_parameter_count(experiment.model)
    pairs = sum(range(1, S + 1)) / S  # keys that a query sees, on average
    each = 4 * a.heads * a.head_dim * pairs
    assert flops_per_token(experiment) == pytest.approx(6 * weights + 3 * 2 * each)

    adapted = dataclasses.replace(experiment, lora=dataclasses.replace(experiment.lora, rank=2))
    assert flops_per_token(adapted) == pytest.approx(4 * weights + 3 * 2 * each)

    sliding = dataclasses.replace(a, pattern=("full", "sliding"), window=4)
    windowed = dataclasses.replace(
        experiment, model=dataclasses.replace(experiment.model, attention=sliding)
    )
    seen = sum(min(i, 4) for i in range(1, S + 1)) / S
    both = each + 4 * a.heads * a.head_dim * seen
    assert flops_per_token(windowed) == pytest.approx(6 * weights + 3 * both)


@pytest.mark.parametrize(
    "kind, stated, peak",
    [
        ("NVIDIA H100 80GB HBM3", None, 989e12),
        ("NVIDIA H100 PCIe", None, 756e12),
        ("AMD Instinct MI300X", None, 1307e12),
        ("cpu", None, None),
        ("cpu", 0.25, 0.25e12),
        ("NVIDIA H100 80GB HBM3", 700.0, 700e12),
    ],
)
def test_a_peak_is_stated_or_known_or_left_out(changed, kind, stated, peak):
    these = changed("train", peak_tflops=stated)
    assert peak_flops(these, SimpleNamespace(device_kind=kind)) == peak


def test_memory_is_the_devices_or_the_processs():
    device = SimpleNamespace(memory_stats=lambda: {"peak_bytes_in_use": 12})
    assert peak_memory_bytes(device) == 12
    here = peak_memory_bytes(SimpleNamespace(memory_stats=lambda: None))
    assert 50e6 < here < 1e12


def test_a_rate_forgets():
    rate = Rate(decay=0.5)
    assert rate.value == rate.waiting == 0
    rate.add(100, 10, waited=5)
    assert (rate.value, rate.waiting) == (10, 0.5)
    for _ in range(30):
        rate.add(100, 1)
    assert rate.value == pytest.approx(100, rel=1e-6)
    assert rate.waiting == pytest.approx(0, abs=1e-6)


def test_compilations_are_counted_while_one_listens():
    double = jax.jit(lambda x: x * 2.5)
    one, three = jnp.ones(1), jnp.ones(3)
    with throughput.compilations() as counted:
        double(one)
        first = counted.count
        double(one)
        assert counted.count == first >= 1 and counted.seconds > 0
        double(three)
        assert counted.count > first
        last = counted.count
    jax.jit(lambda x: x * 3.5)(one)
    assert counted.count == last
