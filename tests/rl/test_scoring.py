"""Held-out tasks answered greedily, by a vote and with RSA; what the engine writes is given."""

import re
from pathlib import Path
from types import SimpleNamespace

import pytest

from zaya_jax.config.rl import Scoring
from zaya_jax.errors import UserError
from zaya_jax.rl import scoring
from zaya_jax.rl.rewards.interface import Task

TASKS = [Task(f"task {i}", str(i), "exact", "test", str(i)) for i in range(3)]


class Scorer:
    """Right is what is right."""

    def score(self, verifiers, submissions):
        given = [re.findall("<answer>(.*?)</answer>", s.response)[:1] for s in submissions]
        return SimpleNamespace(
            rewards=[float(g == [s.answer]) for g, s in zip(given, submissions, strict=True)]
        )


class Chat:
    """Text is its own tokens."""

    @property
    def tokenizer(self):
        return Tokenizer()

    def encode(self, messages):
        return [ord(c) for c in messages[-1]["content"]]

    def decode(self, completion):
        return completion.text

    def opens_thinking(self, prompt):
        return False


class Tokenizer:
    def encode_with_offsets(self, text):
        return [ord(c) for c in text], [(i, i + 1) for i in range(len(text))]

    def encode(self, text):
        return [ord(c) for c in text]


class Engine:
    """Answers by a function of prompt and seed."""

    def __init__(self, answer):
        self.answer, self.asked = answer, []

    def generate(self, requests):
        self.asked.append(requests)
        return [self._result(request) for request in requests]

    def _result(self, request):
        prompt = "".join(map(chr, request.prompt))
        text = self.answer(prompt, request.sampling)
        return SimpleNamespace(
            text=text, tokens=list(text), logprobs=[0.0] * len(text), finish="eos",
            prompt_tokens=len(prompt),
        )  # fmt: skip


def number(prompt):
    return re.search(r"task (\d)", prompt).group(1)


def test_greedy_is_one_answer_at_temperature_zero():
    engine = Engine(lambda prompt, sampling: f"<answer>{number(prompt)}</answer>")
    found = scoring.score(engine, Chat(), TASKS, Scorer(), Scoring(), 50)
    assert found == (1.0, 18.0, 18.0, len("task 0"), 0) and not found.warning
    (asked,) = engine.asked
    assert all(r.sampling.temperature == 0 and r.max_tokens == 50 for r in asked)


def test_a_vote_counts_what_most_say():
    """Task 1 is right in two of three rollouts, task 2 in one."""
    turns = iter("01x" "112" "2yy")
    engine = Engine(lambda prompt, sampling: f"<answer>{next(turns)}</answer>")
    found = scoring.score(engine, Chat(), TASKS, Scorer(), Scoring(population=3), 50)
    assert found.accuracy == pytest.approx(2 / 3)  # the first of a tie: task 0; task 1 by majority
    assert found.decoded == 3 * 18 and found.length == 18


def test_rsa_shows_tails_round_after_round():
    """What a rollout adds is only in the tails: T rounds count to T."""

    def answer(prompt, sampling):
        counted = max(map(int, re.findall(r"at (\d)", prompt)), default=-1) + 1
        return f"<think>at {counted}</think><answer>{counted}</answer>"

    engine = Engine(answer)
    rsa = Scoring(population=4, candidates=2, rounds=2, tail=16)
    found = scoring.score(engine, Chat(), TASKS, Scorer(), rsa, 50)
    assert found.accuracy == pytest.approx(1 / 3)  # all say 2
    assert [len(asked) for asked in engine.asked] == [12, 12, 12]
    each = len("<think>at 0</think><answer>0</answer>")
    assert found.decoded == 3 * 4 * each
    seeds = {r.sampling.seed for asked in engine.asked for r in asked}
    assert len(seeds) == 36
    assert found.prompt + 50 <= scoring.room(TASKS, rsa, 50, Chat())


class Failing(Scorer):
    """Judges the first so many."""

    def __init__(self, count):
        self.count = count

    def score(self, verifiers, submissions):
        rewards = super().score(verifiers, submissions).rewards
        lost = [float("nan")] * (len(rewards) - self.count)
        return SimpleNamespace(rewards=rewards[: self.count] + lost,
                               messages={"raised": "exact: no sandbox"})  # fmt: skip


def test_verifiers_that_fail_are_told_and_never_a_score_of_nothing():
    engine = Engine(lambda prompt, sampling: f"<answer>{number(prompt)}</answer>")
    found = scoring.score(engine, Chat(), TASKS, Failing(1), Scoring(), 50)
    assert found.accuracy == pytest.approx(1 / 3) and found.failures == 2
    assert "2 of its verifiers failed" in found.warning
    with pytest.raises(UserError, match="no answer could be judged: exact: no sandbox"):
        scoring.score(engine, Chat(), TASKS, Failing(0), Scoring(), 50)


def test_a_template_of_the_repository_is_found_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    named = Scoring(population=2, template="zaya_jax/rl/long_sums.jinja")
    assert Path(scoring.settings_of(named, 5).template).is_file()
    own = Scoring(population=2, template="nowhere.jinja")
    assert scoring.settings_of(own, 5).template == "nowhere.jinja"
