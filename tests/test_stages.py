"""The stages can be run, follow one another, and say the report's numbers."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from runpy import run_path

import pytest

from zaya_jax import config
from zaya_jax.config import Attention, Experiment, Model
from zaya_jax.errors import UserError
from zaya_jax.infer.engine.pool import page_bytes
from zaya_jax.load import experiment

STAGES = Path(__file__).parents[1] / "experiments" / "stages"
CASCADE = ("pretrain_1", "pretrain_2", "midtrain_32k", "sft_131k")
TINY = ("pretrain_tiny", "midtrain_tiny", "sft_tiny")


RL = {
    "rl_warmup": 232,
    "rl_rlve": 400,
    "rl_math_code": 384,
    "rl_math_code_2": 464,
    "rl_behaviour": 384,
}


def get(name: str):
    return run_path(str(STAGES / f"{name}.py"))["get_config"]()


def frozen(name: str) -> Experiment:
    return config.freeze(get(name))


def closed(name: str, start: Model) -> Experiment:
    """A stage whose model is open, frozen over the model that it would start from."""
    settings = get(name).to_dict()
    return config.from_dict(settings | {"model": config.fill(settings["model"], start)})


def test_every_stage_is_in_this_test():
    assert {path.stem for path in STAGES.glob("*.py")} == {*CASCADE, *TINY, "sft_lora", *RL}


@pytest.mark.parametrize(("name", "steps"), RL.items())
def test_stages_of_rl_have_the_reports_numbers(name, steps):
    stage = closed(name, frozen("sft_131k").model)
    assert stage.train.steps == steps and stage.rl.prompts == 128 and stage.rl.group == 16
    assert stage.rl.staleness == stage.rl.swap_every == stage.rl.buffer == 2
    assert 2e-6 <= stage.optim.learning_rate <= 1e-5 and stage.optim.muon.momentum == 0
    assert stage.balance.kind == "none" and stage.rl.loss.low == stage.rl.loss.high == 0.1
    # Generation has room for its longest rollout: `rl.pool_gb` is not the default.
    page = 64 / page_bytes(dataclasses.replace(stage.model, layers="unroll"), 64)
    assert stage.rl.pool_gb * 2**30 * page > stage.rl.max_prompt + stage.rl.max_tokens
    behaviour = name == "rl_behaviour"
    assert stage.rl.loss.advantage == ("grpo" if behaviour else "maxrl")
    assert (stage.rl.length.coefficient == 0) == behaviour


@pytest.mark.parametrize(
    ("name", "context", "theta", "trillions"),
    [
        ("pretrain_1", 4096, 1e4, 8.0),
        ("pretrain_2", 4096, 1e4, 4.0),
        ("midtrain_32k", 32_768, 1e6, 1.2),
        ("sft_131k", 131_072, 5e6, 0.66),
    ],
)
def test_the_8b_has_the_reports_numbers(name, context, theta, trillions):
    found = frozen(name)
    train = found.train
    assert (found.model.context_length, train.sequence_length) == (context, context)
    assert found.model.attention.rope_theta == theta
    tokens = train.steps * train.batch_size * train.sequence_length
    assert tokens == pytest.approx(trillions * 1e12, rel=1e-4)
    assert train.batch_size * train.sequence_length == 4096 * 4096
    assert found.optim.kind == "muon" and found.optim.muon.iterations == 5
    assert found.model.param_dtype == "float32"


def test_the_first_phase_goes_from_6e4_to_2e4():
    optim = frozen("pretrain_1").optim
    assert optim.schedule == "cosine"
    assert optim.learning_rate == 6e-4
    assert optim.learning_rate * optim.final_fraction == pytest.approx(2e-4)


@pytest.mark.parametrize("stages", [CASCADE, TINY])
def test_each_stage_starts_where_the_last_one_ended(stages):
    starts = [get(name).train.init_from for name in stages]
    assert starts == [None, *(f"runs/{name}" for name in stages[:-1])]
    assert [get(name).name for name in stages] == list(stages)


def test_the_rate_goes_on_where_it_ended_and_falls():
    sections = [frozen(name).optim for name in CASCADE]
    for before, after in zip(sections, sections[1:], strict=False):
        assert after.learning_rate == pytest.approx(before.learning_rate * before.final_fraction)


def test_tiny_stages_are_twins_of_the_large():
    first = frozen("pretrain_tiny")
    second = closed("midtrain_tiny", first.model)
    third = closed("sft_tiny", second.model)
    assert second.model.context_length > first.model.context_length
    assert second.train.sequence_length > first.train.sequence_length
    assert second.model.attention.rope_theta > first.model.attention.rope_theta
    assert third.model == second.model
    assert third.data.source == "stdlib-chat" and third.data.packing == "best_fit"


def test_an_open_model_takes_everything_but_what_is_said():
    start = Model(num_layers=6, attention=Attention(pattern=("sliding", "full"), window=9))
    found = closed("sft_lora", start)
    assert found.model.num_layers == 6 and found.model.attention == start.attention
    assert (found.model.layers, found.model.remat) == ("scan", "full")
    midtrain = closed("midtrain_tiny", start).model
    assert midtrain.attention.rope_theta == 1e5 and midtrain.attention.window == 9


def test_a_field_of_an_open_model_can_be_overridden():
    settings = get("sft_lora")
    settings.model.attention.rope_theta = 1e7
    settings.model.param_dtype = "float32"
    filled = config.fill(settings.to_dict()["model"], Model(param_dtype="bfloat16"))
    assert filled["attention"]["rope_theta"] == 1e7
    assert (filled["param_dtype"], filled["activation_dtype"]) == ("float32", "float32")


def test_an_open_model_without_a_start_is_refused():
    settings = get("sft_lora")
    settings.train.init_from = None
    with pytest.raises(UserError, match=r"model.vocab_size and \d+ more.*set train.init_from"):
        experiment(settings)
    settings.train.init_from = "no/such/folder"
    with pytest.raises(UserError, match="no/such/folder"):
        experiment(settings)


def test_a_complete_config_is_frozen_as_it_is():
    settings = config.to_config_dict(Experiment())  # model.attention.window is None, and stays so
    assert experiment(settings) == Experiment()
    assert list(config.left_open(settings.to_dict()["model"])) == []


def test_a_field_that_is_not_there_cannot_be_said():
    with pytest.raises(TypeError, match="no_such_field"):
        config.open_model(no_such_field=1)
    with pytest.raises(TypeError, match="no_such_field"):
        config.open_model(attention={"no_such_field": 1})


def test_the_cascades_warm_up_has_the_reports_numbers():
    found = closed("rl_warmup", frozen("sft_131k").model)
    assert found.train.steps == 232 and (found.rl.prompts, found.rl.group) == (128, 16)
    assert (found.rl.max_tokens, found.rl.max_prompt) == (81_920, 4 * 4096 + 4096)
    assert (found.rl.swap_every, found.rl.staleness, found.rl.buffer) == (2, 2, 2)
    assert found.optim.muon.momentum == 0 and found.balance.kind == "none"
    assert sum(weight for _, weight in found.rl.tasks) == pytest.approx(100)
