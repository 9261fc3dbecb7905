"""Markovian RSA with a real network, and `launch.py solve`."""

import json

import pytest

from zaya_jax import cli
from zaya_jax.data import chat
from zaya_jax.data.tokenizer import train_bpe
from zaya_jax.errors import UserError
from zaya_jax.hf import write_folder
from zaya_jax.infer import Sampling
from zaya_jax.infer.engine import Request
from zaya_jax.infer.rsa import Settings, algorithm
from zaya_jax.infer.rsa.generator import Chat, LocalPolicy, capacity
from zaya_jax.infer.rsa.trace import Trace

CONVERSATION = [{"role": "user", "content": "f(x)?"}]
SETTINGS = Settings(
    population=3, candidates=2, rounds=1, tail=8, budget=10, final_budget=12, kind="boxed"
)


@pytest.fixture(scope="module")
def loaded(network):
    words = ["def f(x):\n    return x\n", "Below are a problem and candidate solutions to it, "] * 9
    tokenizer = train_bpe(words, 299, chat.SPECIAL_TOKENS)
    return network(tokenizer=tokenizer, context_length=1024)


@pytest.fixture(scope="module")
def policy(loaded):
    form = Chat(loaded)
    room = capacity(CONVERSATION, SETTINGS, form, loaded.model.context_length)
    return LocalPolicy(loaded, form, batch=2, capacity=room)


def solve(policy, loaded, trace=None):
    tokenizer = loaded.require_tokenizer()
    return algorithm.solve(policy, CONVERSATION, SETTINGS, tokenizer, trace=trace)


@pytest.fixture(scope="module")
def whole(policy, loaded):
    return solve(policy, loaded)


def test_the_first_stage_is_plain_generation(policy, loaded, whole):
    asks: list = []

    def spy(given, done, progress=None):
        asks.extend(given)
        policy(given, done)

    assert solve(spy, loaded).as_json() == whole.as_json()
    form = Chat(loaded)
    ids = form.encode(CONVERSATION)
    assert ids == chat.prompt(CONVERSATION, loaded.tokenizer, form.template)
    requests = [Request(ids, 10, Sampling(1.0, seed=ask.seed)) for ask in asks[:3]]
    completions = policy.engine.generate(requests)  # its programs are compiled
    for sample, completion in zip(whole.stages[0], completions, strict=True):
        assert sample.text == form.decode(completion)
        assert sample.tokens == len(completion.tokens) <= 10
        assert sample.prompt_tokens == len(ids)


def test_prompts_stay_within_the_room_that_was_reserved(loaded, whole):
    form = Chat(loaded)
    room = capacity(CONVERSATION, SETTINGS, form, 1024)
    assert max(cost.longest_context for cost in whole.costs) <= room
    with pytest.raises(UserError, match="do not fit the model's context of 400"):
        capacity(CONVERSATION, SETTINGS, form, 400)


def test_a_run_that_was_interrupted_ends_the_same(policy, loaded, whole, tmp_path):
    path = tmp_path / "t.jsonl"
    about = algorithm.about(CONVERSATION, SETTINGS, {})
    with Trace(path, about) as trace:
        solve(policy, loaded, trace)
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:3]) + lines[3][:9])
    with Trace(path, about) as trace:
        assert len(trace.known) == 2
        assert solve(policy, loaded, trace).as_json() == whole.as_json()


def test_think_blocks_that_the_prompt_opens_are_noticed(loaded):
    form, id_of = Chat(loaded), loaded.tokenizer.id_of
    opening, closing = id_of("<think>"), id_of("</think>")
    assert form.opens_thinking([99, opening]) and not form.opens_thinking([99, opening, closing])
    assert not form.opens_thinking([99])


@pytest.fixture(scope="module")
def folder(loaded, tmp_path_factory):
    where = tmp_path_factory.mktemp("model")
    loaded.tokenizer.save(where / "tokenizer")
    return write_folder(
        loaded.model, loaded.params, loaded.biases, where / "out", tokenizer_dir=where / "tokenizer"
    )


ARGUMENTS = ("--prompt=f(x)?", "--population=3", "--candidates=2", "--rounds=1", "--tail=8",
             "--budget=10", "--final_budget=12", "--kind=boxed", "--batch=2")  # fmt: skip


def run(folder, *arguments):
    return cli.main(["solve", f"--model={folder}", *ARGUMENTS, *arguments])


def test_solve_shows_a_run_logs_it_and_takes_it_up_again(folder, tmp_path, capsys, whole):
    log, report = tmp_path / "t.jsonl", tmp_path / "r.json"
    assert run(folder, f"--trace={log}", f"--json={report}") == 0
    shown = capsys.readouterr()
    assert "stage 1 of 1, rollout 2" in shown.err and "D(q) =" in shown.err
    record = json.loads(report.read_text())
    assert [[s["text"] for s in stage] for stage in record["stages"]] == [
        [s.text for s in stage] for stage in whole.stages
    ]
    assert record["decoded"] == whole.decoded and record["settings"]["tail"] == 8
    log.write_bytes(log.read_bytes()[:-20])
    assert run(folder, f"--trace={log}", "--selection=none") == 0
    again = capsys.readouterr()
    assert "5 rollouts are in" in again.err and again.out.startswith("0\t")
    about = json.loads(log.read_text().splitlines()[0])["run"]["model"]
    assert about["batch"] == 2 and len(about["tokenizer"]) == len(about["chat_template"]) == 64
    assert run(folder, f"--trace={log}", "--batch=3") == 2  # it might differ by rounding
    assert "its model is" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--tail=2000",), "do not fit the model's context"),
        (("--candidates=4",), "candidates = 4 of population = 3"),
        (("--selection=verifier",), "go together"),
        (("--selection=verifier", "--verifier=no.module:f"), "no module"),
        (("--chat_template=nowhere.jinja",), "nowhere.jinja"),
        (("--temperature=-1",), "temperature = -1"),
        (("--prompt_file=x",), "give one of --prompt"),
        (("--preset=best",), "preset"),
    ],
)
def test_mistakes_on_the_command_line(folder, arguments, words, capsys):
    assert run(folder, *arguments) == 2
    assert words in capsys.readouterr().err
